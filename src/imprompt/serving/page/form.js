// The form: fields that show settings and change them, cards of references, and notes beside them.

import { pictureUrl, viewUrl } from "./api.js";
import { $, $$, fillSelect, make, patchList, setSource } from "./dom.js";
import { listNotes } from "./notes.js";
import { chooseAdapter, usableReferences } from "./settings.js";

const USES = { full: "everything", style: "style", composition: "layout" };
/** Fields of a request → the controls that they are about. */
const CONTROLS = { strength: "start.strength", controls: "control.scale", height: "width" };

const percent = (value) => `${Math.round(value * 100)} %`;

export const referenceOf = (element, { settings }) =>
	settings.references.find((one) => one.key === element.closest(".card")?.dataset.key);

/** The object that holds the value of a field, and the value's name in it. */
function locate(field, page) {
	const owner = referenceOf(field, page) ?? page.settings;
	const [name, inner] = field.name.split(".");
	return inner ? [owner[name], inner] : [owner, name];
}

function findDefault(name, { capabilities, model }) {
	const { steps, guidance_scale, adapters } = model;
	const defaults = { steps, guidance_scale, model: capabilities.models[0].name, adapter: adapters[0]?.name };
	return { ...defaults, count: 1, scheduler: "" }[name] ?? null;
}

/** Store what a field says; a value that is not allowed is not stored. */
export function readField(field, page) {
	const [owner, name] = locate(field, page);
	let { value } = field;
	if (field.type === "checkbox") value = field.checked;
	else if (["number", "range"].includes(field.type)) value = value === "" ? null : Number(value);
	if (!field.validity.valid || (value === null && name === "scale")) return;
	owner[name] = value === findDefault(name, page) ? null : value;
}

/** Show the settings in all fields, except in the one that is being edited, and notes. */
export function showForm(page, edited) {
	const { settings, model, capabilities } = page;
	const { seed, start, control } = settings;
	const create = () => createCard(page);
	patchList($("#references"), usableReferences(settings, model), create, (...one) => showCard(page, ...one));
	showSlot("start", start);
	showSlot("control", control);
	for (const field of $$("[name]")) {
		const [owner, name] = locate(field, page);
		const value = owner[name] ?? findDefault(name, page);
		if (field.type === "checkbox") field.checked = value;
		else if (field !== edited) field.value = value ?? "";
		const output = field.previousElementSibling;
		if (output?.matches("output")) output.textContent = name.includes("scale") ? value : percent(value);
	}
	$("#more .value").textContent = `${settings.steps ?? model.steps} steps${seed === null ? "" : ` · seed ${seed}`}`;
	showNotes(listNotes(settings, model, capabilities.limits));
}

function createCard({ capabilities, model }) {
	const card = $("template").content.firstElementChild.cloneNode(true);
	const names = Object.keys(USES).filter((name) => model.modes.includes(name));
	fillSelect($("[name=layers]", card), [...new Set(["full", ...names, ...model.modes])], USES);
	fillSelect($("[name=crop]", card), capabilities.crops);
	return card;
}

function showCard(page, card, reference, index) {
	const { image, on, start, end, crop, mask } = reference;
	const { name, takes } = chooseAdapter(page.settings, page.model);
	const [picture] = $$("img", card);
	card.classList.toggle("off", !on);
	$("legend", card).textContent = `Image prompt ${index + 1}`;
	$(".name", card).textContent = image.name;
	setSource(picture, viewUrl(image.id, { model: page.model.name, adapter: name, crop }));
	picture.onerror = () => {
		reference.isLost = true;
		showForm(page);
	};
	picture.alt = `What the image encoder sees of ${image.name}`;
	$(".face", card).hidden = !takes.includes("face_embedding");
	$("[data-act=paintReference]", card).textContent = mask ? "Change" : "Paint";
	const interval = (start > 0 || end < 1) && `${percent(start)} to ${percent(end)}`;
	$(".value", card).textContent = [interval, crop !== "native" && crop, mask && "area"].filter(Boolean).join(" · ");
}

function showSlot(name, { image, mask }) {
	const slot = $(`#${name}`);
	$(".add", slot).hidden = image;
	$(".chosen", slot).hidden = !image;
	$(".value", slot).textContent = $(".name", slot).textContent = image?.name ?? "";
	setSource($("img", slot), pictureUrl(image?.id));
	if (name === "start") $("[data-act=paint]").textContent = mask ? "Change the area" : "Paint an area";
}

/** Adapt the choices to the model. */
export function showModel({ capabilities, model }) {
	const choices = { model: capabilities.models, adapter: model.adapters, "control.model": model.controls };
	for (const [field, list] of Object.entries(choices)) {
		const select = $(`[name="${field}"]`);
		fillSelect(select, list.map((one) => one.name ?? one));
		select.parentElement.hidden = list.length < 2;
	}
	fillSelect($("[name=scheduler]"), ["", ...capabilities.schedulers], { "": "the model's own" });
	$("#prompts").hidden = !model.adapters.length;
	$("#control").hidden = !model.controls.length;
	$("#references").replaceChildren();
}

function showNotes(notes) {
	for (const slot of $$("#settings .note:not(#fault)")) slot.replaceChildren();
	for (const note of notes) addNote(...note);
	for (const field of $$("#settings :invalid[name]")) {
		const card = field.closest(".card");
		const place = card ? `references[${[...card.parentElement.children].indexOf(card)}]` : field.name;
		addNote(place, "error", field.validationMessage);
	}
}

/** Show a text beside the control that a place, a field of the request, is about. */
export function addNote(place, kind, textContent) {
	findNoteSlot(place).append(make("span", { className: kind, textContent }));
}

function findNoteSlot(place) {
	const index = /^references\[(\d+)/.exec(place)?.[1];
	if (index) return $$(".card .note")[index];
	const field = $(`[name="${CSS.escape(CONTROLS[place] ?? place)}"]`);
	if (!field || field.closest("[hidden]")) return $(place === "references" ? "#references-note" : "#fault");
	const label = field.parentElement;
	if (!label.nextElementSibling?.matches(".note")) {
		label.after(make("p", { className: "note wide", id: `note-${field.name}` }));
		field.setAttribute("aria-describedby", `note-${field.name}`);
	}
	return label.nextElementSibling;
}

/** Go to the first fault of the form; returns whether there is one. */
export function findFault() {
	const fault = $("#settings .error");
	for (let part = fault?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
	fault?.scrollIntoView({ block: "center" });
	return Boolean(fault);
}
