// What the user has set, kept in the browser and, without pictures, in the address; and the request of it.

const KEY = "imprompt.settings";

const TEXTS = { model: null, adapter: null, prompt: "", negative_prompt: "", scheduler: null };
/** null: the default of the model. */
const SCALARS = { ...TEXTS, steps: null, guidance_scale: null, seed: null, count: null, width: null, height: null };
const REFERENCE = { on: true, scale: 0.6, layers: "full", start: 0, end: 1, crop: "native", mask: null, face_scale: 1 };

/** A reference of a picture {id, name, width, height}. */
export const newReference = (image) => ({ ...REFERENCE, image, key: String(Math.random()) });

export function completeSettings(values) {
	const { references = [], start, control, ...rest } = structuredClone(values);
	return {
		...SCALARS,
		...rest,
		references: references.map((one) => ({ ...newReference(one.image), ...one })),
		start: { image: null, strength: 0.8, mask: null, ...start },
		control: { image: null, model: null, scale: 1, ...control },
	};
}

/** The settings of this tab, or of the last one, and above them those of the address; null: a first visit. */
export function loadSettings() {
	const stored = readStores(KEY);
	const shared = [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => name in SCALARS);
	const values = shared.map(([name, text]) => [name, name in TEXTS ? text : Number(text) || 0]);
	return stored || values.length ? completeSettings({ ...stored, ...Object.fromEntries(values) }) : null;
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

export const chooseAdapter = ({ adapter }, { adapters }) =>
	adapters.find(({ name }) => name === adapter) ?? adapters[0];

/** The references that a model can use. */
export const usableReferences = ({ references }, { adapters }) => (adapters.length ? references : []);

export function buildRequest(settings, model) {
	const { references, start, control, model: _, ...scalars } = settings;
	const { width, height, steps, guidance_scale } = scalars;
	const active = usableReferences(settings, model).filter((one) => one.on).map(buildReference);
	const follow = ({ image, mask, ...rest }) => ({ ...rest, image: image.id });
	const controls = control.image ? [follow(control)] : [];
	const request = {
		...scalars,
		model: model.name,
		adapter: active.length ? chooseAdapter(scalars, model).name : null,
		references: active,
		steps: steps ?? model.steps,
		guidance_scale: guidance_scale ?? model.guidance_scale,
		width: width ?? height,
		height: height ?? width,
		...(start.image && { init_image: start.image.id, strength: start.strength, inpaint: start.mask }),
		controls,
	};
	return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null && value.length !== 0));
}

function buildReference({ image, scale, ...rest }) {
	const changed = Object.entries(rest).filter(([name, value]) => name in REFERENCE && value !== REFERENCE[name]);
	return { images: image.id, scale, ...Object.fromEntries(changed) };
}

/** The ids of all pictures of a request. */
export function listPictures({ references = [], controls = [], init_image: init, inpaint }) {
	const ids = [...references, ...controls].flatMap((one) => [one.images, one.image, one.mask]);
	return [...new Set([...ids, init, inpaint].filter(Boolean))];
}

/** Id → name of all pictures of settings. */
export function namePictures({ references, start, control }) {
	const masks = references.map((one, index) => [one.mask, `area-${index + 1}`]);
	const images = [...references, start, control].map(({ image }) => [image?.id, image?.name]);
	return Object.fromEntries([[start.mask, "area"], ...masks, ...images]);
}
