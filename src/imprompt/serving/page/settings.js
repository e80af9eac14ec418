// What the user has set, kept in the browser and, except for pictures, in the address; and the request that it becomes.

const KEY = "imprompt.settings";

/** null: the default of the model. */
const SCALARS = {
  model: null, adapter: null, prompt: "", negative_prompt: "", steps: null, guidance_scale: null, seed: null,
  count: null, width: null, height: null, scheduler: null,
};
const REFERENCE = { on: true, scale: 0.7, layers: "full", start: 0, end: 1, crop: "center", mask: null, face_scale: 1 };
const START = { image: null, strength: 0.8, mask: null };
const CONTROL = { image: null, model: null, scale: 1 };

/** A reference of a picture {id, name, width, height}. */
export const newReference = (image) => ({ ...REFERENCE, image, key: String(Math.random()) });

export function completeSettings(values = {}) {
  const copy = structuredClone(values);
  const scalars = Object.entries(SCALARS).map(([name, initial]) => [name, copy[name] ?? initial]);
  return {
    ...Object.fromEntries(scalars),
    references: (copy.references ?? []).map((one) => ({ ...newReference(one.image), ...one })),
    start: { ...START, ...copy.start },
    control: { ...CONTROL, ...copy.control },
  };
}

/** The settings of this tab, or else of the last one, with those of the address above them; null: a first visit. */
export function loadSettings() {
  const stored = readStores(KEY);
  const shared = [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => name in SCALARS);
  if (!stored && !shared.length) return null;
  const isText = (name) => ["model", "adapter", "prompt", "negative_prompt", "scheduler"].includes(name);
  const values = shared.map(([name, text]) => [name, isText(name) ? text : Number(text) || 0]);
  return completeSettings({ ...stored, ...Object.fromEntries(values) });
}

export function saveSettings(settings) {
  writeStores(KEY, settings);
  const shared = Object.keys(SCALARS).filter((name) => settings[name] !== SCALARS[name]);
  history.replaceState(null, "", `#${new URLSearchParams(shared.map((name) => [name, settings[name]]))}`);
}

export function readStores(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key) ?? localStorage.getItem(key));
  } catch {
    return null;
  }
}

/** Store for this tab and for the next one; a private window may refuse. */
export function writeStores(key, value) {
  try {
    for (const store of [sessionStorage, localStorage]) store.setItem(key, JSON.stringify(value));
  } catch { /* then nothing is kept */ }
}

export const activeReferences = (settings) => settings.references.filter((one) => one.on);

export function buildRequest(settings, model) {
  const { start, control } = settings;
  const references = activeReferences(settings).map(buildReference);
  return dropEmpty({
    model: model.name,
    adapter: references.length ? settings.adapter ?? model.adapters[0].name : null,
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
    controls: control.image ? [{ image: control.image.id, model: control.model ?? model.controls[0], scale: control.scale }] : [],
  });
}

function buildReference({ image, scale, ...rest }) {
  const changed = Object.entries(rest).filter(([name, value]) => name in REFERENCE && value !== REFERENCE[name]);
  return { images: image.id, scale, ...Object.fromEntries(changed) };
}

const isEmpty = (value) => value === null || value === undefined || value.length === 0;
const dropEmpty = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => !isEmpty(value)));

/** The ids of all pictures of a request. */
export function listPictures({ references = [], controls = [], init_image: init, inpaint }) {
  const ids = [...references.flatMap((one) => [one.images, one.mask]), init, inpaint, ...controls.map((one) => one.image)];
  return [...new Set(ids.filter(Boolean))];
}

/** Id → name of all pictures of settings. */
export function namePictures({ references, start, control }) {
  const named = [...references.map((one) => one.image), start.image, control.image].filter(Boolean);
  const masks = [...references.map((one, index) => [one.mask, `area-${index + 1}`]), [start.mask, "area"]];
  return Object.fromEntries([...masks, ...named.map((image) => [image.id, image.name])]);
}
