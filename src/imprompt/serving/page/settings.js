// What the user has set: kept in the browser and, but for the pictures, in the address; and the request it becomes.

const KEY = "imprompt.settings";

const DEFAULTS = {
  model: null, adapter: null, prompt: "", negative_prompt: "", steps: null, guidance_scale: null, seed: null,
  count: null, width: null, height: null, scheduler: null,
};
const REFERENCE = {
  on: true, scale: 0.7, layers: "full", start: 0, end: 1, crop: "center", mask: null, adapter: null,
  face_scale: 1, lora_scale: 1,
};
const START = { image: null, strength: 0.8, mask: null };
const CONTROL = { image: null, model: null, scale: 1 };

export const emptySettings = () => structuredClone({ ...DEFAULTS, references: [], start: START, control: CONTROL });

/** A reference of a picture {id, name, width, height}. */
export const newReference = (image) => ({ ...REFERENCE, image });

/** Copy values into settings, which other parts of the page hold; unknown names are left out. */
export function assign(settings, values) {
  for (const name of Object.keys(DEFAULTS)) settings[name] = values[name] ?? DEFAULTS[name];
  settings.references = (values.references ?? []).map((one) => ({ ...REFERENCE, ...structuredClone(one) }));
  Object.assign(settings.start, START, structuredClone(values.start));
  Object.assign(settings.control, CONTROL, structuredClone(values.control));
}

/** Read the settings of this tab, or else of the last one, with those of the address above them; null: none. */
export function loadSettings() {
  const stored = readStore(sessionStorage, KEY) ?? readStore(localStorage, KEY);
  const shared = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!stored && !Object.keys(shared).length) return null;
  const settings = emptySettings();
  assign(settings, stored ?? {});
  for (const [name, text] of Object.entries(shared)) {
    if (name in DEFAULTS) settings[name] = isNumeric(name) ? Number(text) || 0 : text;
  }
  return settings;
}

const isNumeric = (name) => ["steps", "guidance_scale", "seed", "count", "width", "height"].includes(name);

export function saveSettings(settings) {
  writeStores(KEY, settings);
  const shared = Object.keys(DEFAULTS).filter((name) => settings[name] !== null && settings[name] !== "");
  const query = new URLSearchParams(shared.map((name) => [name, settings[name]]));
  history.replaceState(null, "", `${location.pathname}${shared.length ? `#${query}` : ""}`);
}

export function readStore(store, key) {
  try {
    return JSON.parse(store.getItem(key));
  } catch {
    return null;
  }
}

/** Store for this tab and for the next one; without room or permission nothing is kept. */
export function writeStores(key, value) {
  for (const store of [sessionStorage, localStorage]) {
    try {
      store.setItem(key, JSON.stringify(value));
    } catch { /* private windows may refuse */ }
  }
}

export const activeReferences = (settings) => settings.references.filter((one) => one.on && one.image);

/** The request of these settings; what equals the default of the API is left out. */
export function buildRequest(settings, model) {
  const { start, control } = settings;
  const controls = control.image ? [{ image: control.image.id, model: control.model ?? model.controls[0], scale: control.scale }] : [];
  const references = activeReferences(settings).map((one) => buildReference(one, settings.adapter));
  return dropEmpty({
    model: model.name,
    adapter: references.length ? settings.adapter ?? model.adapters[0]?.name : null,
    prompt: settings.prompt.trim(),
    negative_prompt: settings.negative_prompt.trim(),
    references,
    steps: settings.steps ?? model.steps,
    guidance_scale: settings.guidance_scale ?? model.guidance_scale,
    seed: settings.seed,
    count: settings.count,
    width: settings.width ?? settings.height,
    height: settings.height ?? settings.width,
    scheduler: settings.scheduler,
    init_image: start.image?.id,
    strength: start.image && start.strength,
    inpaint: start.image && start.mask,
    controls,
  });
}

function buildReference(one, adapter) {
  const request = { images: one.image.id, scale: one.scale };
  for (const name of ["layers", "start", "end", "crop", "mask", "adapter", "face_scale", "lora_scale"]) {
    if (one[name] !== REFERENCE[name] && one[name] !== "") request[name] = one[name];
  }
  if (request.adapter === adapter) delete request.adapter;
  return request;
}

const isEmpty = (value) => value === null || value === undefined || value === "" || value.length === 0;
const dropEmpty = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => !isEmpty(value)));

/** The ids of all pictures of a request. */
export function listPictures(request) {
  const ids = [request.init_image, request.inpaint, ...(request.controls ?? []).map((one) => one.image)];
  for (const one of request.references ?? []) ids.push(one.images, one.mask);
  return [...new Set(ids.filter(Boolean))];
}
