// The form: fields that show settings and change them, cards of references, and notes beside them.

import { asSentence, pictureUrl, viewUrl } from "./api.js";
import { $, $$, fillSelect, make, patchList, setSource } from "./dom.js";
import { listNotes } from "./notes.js";

const USES = {
  full: "Everything", style: "Style", composition: "Layout", "strong style": "Style, strong",
  "precise style": "Style without layout", "precise composition": "Layout without style",
};
const CROPS = { center: "Middle", pad: "All, with a margin", stretch: "All, stretched", tiles: "All, in tiles" };
/** Fields of a request that have no control of their name, and the controls that they are about. */
const CONTROLS = { strength: "start.strength", init_image: "start.strength", inpaint: "start.strength", controls: "control.scale", height: "width" };

const percent = (value) => `${Math.round(value * 100)} %`;

/** The object that holds the value of a field, and the value's name: "start.strength" is `strength` of `start`. */
function locate(field, { settings }) {
  const card = field.closest(".card");
  const owner = card ? settings.references.find((one) => one.key === card.dataset.key) : settings;
  const [name, inner] = field.name.split(".");
  return inner ? [owner[name], inner] : [owner, name];
}

function findDefault(name, { capabilities, model }) {
  const defaults = { model: capabilities.models[0].name, adapter: model.adapters[0]?.name, count: 1, scheduler: "",
    steps: model.steps, guidance_scale: model.guidance_scale };
  return defaults[name] ?? null;
}

/** Store what a field says. A value that is not allowed is not stored; the browser says why. */
export function readField(field, page) {
  const [owner, name] = locate(field, page);
  const isNumber = ["number", "range"].includes(field.type);
  const text = isNumber && field.value ? Number(field.value) : isNumber ? null : field.value;
  const value = field.type === "checkbox" ? field.checked : text;
  if (field.validity.valid && !(value === null && name === "scale")) owner[name] = value === findDefault(name, page) ? null : value;
}

/** Show the settings in all fields, except in the one that is being edited. */
export function showForm(page, edited) {
  const { settings, model, capabilities } = page;
  patchList($("#references"), settings.references, () => createCard(page), (card, one, index) => showCard(card, one, index, page));
  for (const name of ["start", "control"]) showSlot(name, settings[name]);
  for (const field of $$("[name]")) {
    const [owner, name] = locate(field, page);
    const value = owner[name] ?? findDefault(name, page);
    if (field.type === "checkbox") field.checked = value;
    else if (field !== edited) field.value = value ?? "";
    const output = $("output", field.closest("label") ?? field);
    if (output) output.textContent = field.closest("#control") || name === "face_scale" ? value : percent(value);
  }
  const seed = settings.seed === null ? [] : [`seed ${settings.seed}`];
  $("#more .value").textContent = [`${settings.steps ?? model.steps} steps`, ...seed].join(" · ");
  return showNotes(listNotes(settings, model, capabilities.limits));
}

function createCard({ capabilities, model }) {
  const card = $("template").content.firstElementChild.cloneNode(true);
  const names = [...new Set([...Object.keys(USES).filter((name) => model.modes.includes(name)), ...model.modes, "full"])];
  fillSelect($("[name=layers]", card), names.map((name) => [name, USES[name] ?? name]));
  fillSelect($("[name=crop]", card), capabilities.crops.map((name) => [name, CROPS[name] ?? name]));
  return card;
}

function showCard(card, { image, on, start, end, crop, mask }, index, { settings, model }) {
  const adapter = model.adapters.find(({ name }) => name === settings.adapter) ?? model.adapters[0];
  card.classList.toggle("off", !on);
  $("legend", card).textContent = `Image prompt ${index + 1}`;
  $(".name", card).textContent = image.name;
  setSource($(".seen", card), viewUrl(image.id, { model: model.name, adapter: adapter.name, crop }));
  $(".seen", card).alt = `What the image encoder sees of ${image.name}`;
  $(".face", card).hidden = !adapter.takes.includes("face_embedding");
  $("[data-act=paintReference]", card).textContent = mask ? "Change" : "Paint";
  const parts = [start > 0 || end < 1 ? `${percent(start)} to ${percent(end)}` : "", crop === "center" ? "" : crop, mask ? "area" : ""];
  $("details .value", card).textContent = parts.filter(Boolean).join(" · ");
}

function showSlot(name, { image, mask }) {
  const slot = $(`#${name}`);
  $(".add", slot).hidden = image;
  $(".chosen", slot).hidden = !image;
  $(".value", slot).textContent = $(".name", slot).textContent = image?.name ?? "";
  setSource($(".seen", slot), pictureUrl(image?.id));
  const paint = $("[data-act=paint]", slot);
  if (paint) paint.textContent = mask ? "Change the area" : "Paint an area";
}

/** Adapt the choices to the model. */
export function showModel({ capabilities, model }) {
  const choices = { model: capabilities.models, adapter: model.adapters, "control.model": model.controls.map((name) => ({ name })) };
  for (const [field, list] of Object.entries(choices)) {
    fillSelect($(`[name="${field}"]`), list.map(({ name }) => [name, name]));
    $(`[name="${field}"]`).closest("label").hidden = list.length < 2;
  }
  fillSelect($("[name=scheduler]"), [["", "The model's own"], ...capabilities.schedulers.map((name) => [name, name.replaceAll("_", " ")])]);
  $("#prompts").hidden = !model.adapters.length;
  $("#control").hidden = !model.controls.length;
  $("#references").replaceChildren();
}

/** Show notes [place, kind, text]; a place is the name of a field, as in a request. */
function showNotes(notes) {
  const faults = $$("#settings :invalid[name]").map((field) => [field, "error", asSentence(field.validationMessage)]);
  for (const slot of $$("#settings .note:not(#fault)")) slot.replaceChildren();
  for (const [place, kind, text] of [...notes, ...faults]) addNote(place, kind, text);
}

export function addNote(place, kind, text) {
  findNoteSlot(place).append(make("span", { className: kind, textContent: text }));
}

function findNoteSlot(place) {
  const index = /^references\[(\d+)/.exec(place)?.[1];
  const field = place.name ? place : $(`[name="${CSS.escape(CONTROLS[place] ?? place)}"]`);
  if (place === "references") return $("#references-note");
  if (index || place.closest?.(".card")) return index ? $$(".card .note")[index] : $(".note", place.closest(".card"));
  const label = field?.closest("label");
  if (!label || label.offsetParent === null && label.closest(".chosen[hidden]")) return $("#fault");
  if (!label.nextElementSibling?.matches(".note")) {
    label.after(make("p", { className: "note wide", id: `note-${field.name}` }));
    field.setAttribute("aria-describedby", `note-${field.name}`);
  }
  return label.nextElementSibling;
}

/** Go to the first fault of the form; returns whether there is one. */
export function findFault() {
  const slot = $("#settings :not(#fault) > .error");
  for (let part = slot?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  slot?.scrollIntoView({ block: "center" });
  return Boolean(slot);
}
