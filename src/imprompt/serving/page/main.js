// The page: settings on one side, pictures on the other, and what connects them.

import { asSentence, call, drawExample, isOver, listExamples, pictureUrl, readCapabilities } from "./api.js";
import { paintArea } from "./brush.js";
import * as writers from "./code.js";
import { $, $$, make } from "./dom.js";
import { addNote, findFault, readField, referenceOf, showForm, showModel } from "./form.js";
import { addPicture } from "./pictures.js";
import { findSelection, select, showStage } from "./results.js";
import {
	activeRun, forgetRuns, measureRun, pictureOf, rejoinRuns, requestOf, runs, settingsOf, startRun, stopRun,
} from "./runs.js";
import { buildRequest, completeSettings, loadSettings, namePictures, newReference, saveSettings } from "./settings.js";

const STRIP = [0, 0.25, 0.5, 0.75, 1];
const FIRST_PROMPT = "sunglasses, on a red background";

const page = { settings: null, capabilities: null, model: null };
let isSubmitting = false;

// Settings

function changeSettings(edited) {
	$("#fault").replaceChildren();
	saveSettings(page.settings);
	showForm(page, edited);
}

function useSettings(settings) {
	page.settings = completeSettings(settings);
	useModel();
}

function useModel() {
	const { settings, capabilities: { models } } = page;
	const model = page.model = models.find(({ name }) => name === settings.model) ?? models[0];
	if (model === models[0]) settings.model = null;
	if (!model.adapters.some(({ name }) => name === settings.adapter)) settings.adapter = null;
	if (!model.controls.includes(settings.control.model)) settings.control.model = model.controls[0] ?? null;
	showModel(page);
	changeSettings();
}

document.addEventListener("input", ({ target }) => {
	if (!target.name) return;
	readField(target, page);
	if (target.name === "model") useModel();
	else changeSettings(target);
});
document.addEventListener("change", ({ target }) => {
	if (target.type === "file") takeFiles([...target.files], target).then(() => (target.value = ""));
	else if (target.name && target.validity.valid) showForm(page);
});

/** Do something that may fail, and say so beside the control at fault. */
async function guard(act, place = "") {
	try {
		await act();
	} catch (error) {
		if (error.status === undefined) throw error;
		addNote(error.place || place, "error", error.message);
	}
}

// Pictures that come in

/** Files for one of the places for one picture go there; all others are image prompts. */
async function takeFiles(files, target) {
	const slot = page.settings[target.closest("#start, #control")?.id];
	await guard(async () => {
		const { side } = page.capabilities.limits;
		if (slot) Object.assign(slot, { image: await addPicture(files[0], { side }), mask: null });
		else for (const file of files) addReference(await addPicture(file));
		changeSettings();
	}, slot ? "" : "references");
}

function addReference({ id, name, width, height }) {
	page.settings.references.push(newReference({ id, name, width, height }));
	changeSettings();
}

for (const name of ["dragover", "dragleave", "drop"]) {
	document.addEventListener(name, (event) => {
		const { types, files } = event.dataTransfer;
		if (!types.includes("Files")) return;
		event.preventDefault();
		document.body.classList.toggle("dropping", name === "dragover");
		if (name === "drop") takeFiles([...files], event.target);
	});
}
document.addEventListener("paste", ({ clipboardData: { files }, target }) => {
	if (files.length) takeFiles([...files], target);
});

async function showExamples() {
	const examples = await listExamples();
	for (const list of $$(".examples")) {
		const add = (name, symbol, find) => {
			const onclick = () => guard(async () => {
				addReference(await find());
				if (list.matches(".tiles")) await generate();
			}, "references");
			list.append(make("button", { type: "button", className: "tile", onclick }, symbol, make("span", {}, name)));
		};
		for (const { url, name, ...one } of examples) {
			const title = name.replaceAll("-", " ");
			add(title, make("img", { src: url, alt: "" }), () => ({ ...one, name: title }));
		}
		if (page.capabilities.can_draw) add("draw a new one", make("i", {}, "✎"), drawExample);
	}
}

// Areas

async function paint(owner, options) {
	const blob = await paintArea({ ...options, mask: pictureUrl(owner.mask) });
	if (blob === undefined) return;
	owner.mask = blob && (await addPicture(blob, { side: Infinity })).id;
	changeSettings();
}

function paintStart() {
	const { start } = page.settings;
	const { id, width, height } = start.image;
	const title = "What is repainted";
	const hint = "Paint what changes. The rest stays as it is.";
	return paint(start, { title, hint, width, height, background: pictureUrl(id) });
}

function paintReference(reference) {
	const { run, index } = findSelection();
	const made = run && pictureOf(run, index);
	const { start, width: w, height: h } = page.settings;
	const own = (w || h) && { width: w ?? h, height: h ?? w };
	const { width, height } = own ?? start.image ?? made ?? { width: 512, height: 512 };
	const title = "Where this picture acts";
	const hint = "Paint the part of the result that follows it.";
	return paint(reference, { title, hint, width, height, background: made?.url });
}

// Runs

function handleEvent(run, name) {
	showProgress(name === "lost" && "Connection lost. Trying again…");
	if (!["step", "queued"].includes(name)) showStage();
	if (isOver(run)) endRun(run);
}

async function endRun(run) {
	$("#live").textContent = describeRun(run);
	if (!page.model.loaded) {
		// The modes of a model are known once it is in memory.
		page.capabilities = await readCapabilities().catch(() => page.capabilities);
		useModel();
	}
	if (run.error) addNote(run.error.message.split(/[ :]/)[0], "error", asSentence(run.error.message));
}

async function generate() {
	changeSettings();
	if (findFault()) return;
	const { settings, model } = page;
	const details = { kind: "pictures", settings, names: namePictures(settings) };
	await submit({ ...buildRequest(settings, model), previews: 4 }, details);
}

/** Make the picture that is looked at again with its seed: at several strengths, or without image prompts. */
function compare(kind, strip) {
	const { run, index } = findSelection();
	const details = { kind, source: { id: run.id, index }, settings: settingsOf(run, index), names: run.names };
	return submit({ ...requestOf(run, index), strip, previews: 2 }, details);
}

async function submit(request, { settings, ...details }) {
	if (isSubmitting || activeRun()) return;
	isSubmitting = true;
	showProgress("Sending…");
	await guard(async () => {
		const run = await startRun(request, { ...details, settings: structuredClone(settings) }, handleEvent);
		select(run);
		if (matchMedia("(max-width: 720px)").matches) $("#stage").scrollIntoView();
	});
	isSubmitting = false;
	showProgress();
}

$("#settings").addEventListener("submit", (event) => {
	event.preventDefault();
	if (!isSubmitting && !activeRun()) generate();
	else guard(stopRun);
});
// The second click of a double click on Generate is not meant for Stop.
$("#generate").addEventListener("click", (event) => event.detail > 1 && event.preventDefault());
document.addEventListener("keydown", ({ key, ctrlKey, metaKey }) => {
	if (key === "Enter" && (ctrlKey || metaKey)) $("#settings").requestSubmit();
});

// Progress

function showProgress(message) {
	const run = activeRun();
	const isBusy = isSubmitting || Boolean(run);
	$("#generate").textContent = isBusy ? "Stop" : "Generate";
	$("#generate").classList.toggle("primary", !isBusy);
	$("progress").value = run ? measureRun(run) : 0;
	$("#status").textContent = message || (run || (!isSubmitting && runs.length) ? describeRun(run ?? runs[0]) : "");
	const quarter = run?.status === "running" && `${Math.floor(measureRun(run) * 4) * 25} percent`;
	if (quarter && $("#live").textContent !== quarter) $("#live").textContent = quarter;
}

function describeRun(run) {
	const { status, count, steps, timings, taken, pace = 0 } = run;
	if (status === "queued") return `${run.position ?? 0} before it, about ${Math.ceil(run.eta_s)} s`;
	if (status === "done") return `Done in ${(timings.queue_s + timings.run_s).toFixed(1)} s`;
	if (status !== "running") return status === "canceled" ? "Stopped" : "Failed";
	const left = Math.round((1 - measureRun(run)) * count * steps * pace);
	const step = `Step ${Math.max(0, ...Object.values(taken))} of ${steps}`;
	const parts = [count > 1 && `${run.pictures.length} of ${count}`, step, left > 2 && `${left} s left`];
	return parts.filter(Boolean).join(" · ");
}

// Buttons

const ACTIONS = {
	strip: () => compare("strip", STRIP),
	without: () => compare("without", [null]),
	restore: ({ run, index }) => useSettings(settingsOf(run, index)),
	reuse: async ({ run, index }) => {
		const { url, seed } = pictureOf(run, index);
		addReference(await addPicture(await (await call("GET", url)).blob(), { name: `picture ${seed}` }));
	},
	paint: paintStart,
	paintReference: (_, button) => paintReference(referenceOf(button, page)),
	remove: (_, button) => {
		const slot = button.closest("details");
		Object.assign(page.settings[slot.id], { image: null, mask: null });
		changeSettings();
		$("input", slot).focus();
	},
	removeReference: (_, button) => {
		const { references } = page.settings;
		references.splice(references.indexOf(referenceOf(button, page)), 1);
		changeSettings();
		$("#prompts .add input").focus();
	},
	forget: () => {
		forgetRuns();
		showStage();
		$("#stage").focus();
	},
};

document.addEventListener("click", ({ target }) => {
	const button = target.closest("[data-act], [data-copy]");
	if (button?.dataset.copy) copy(writers[button.dataset.copy]);
	else if (button) guard(() => ACTIONS[button.dataset.act](findSelection(), button));
});

async function copy(write) {
	const { run, index } = findSelection();
	const text = write(requestOf(run, index), run.names);
	$("#code").hidden = false;
	$("#code pre").textContent = text;
	// Browsers let pages copy only behind HTTPS or on this machine.
	const isCopied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
	$("#code span").textContent = isCopied ? "Copied" : "Select and copy it";
	if (!isCopied) getSelection().selectAllChildren($("#code pre"));
}

// Begin

async function begin() {
	page.capabilities = await readCapabilities();
	const isMini = page.capabilities.models[0].name === "mini";
	$("#mini").hidden = !isMini;
	useSettings(loadSettings() ?? { prompt: isMini ? FIRST_PROMPT : "" });
	await Promise.all([rejoinRuns(handleEvent), showExamples()]);
	showStage();
	showProgress();
}

guard(begin).then(() => document.body.classList.add("ready"));
