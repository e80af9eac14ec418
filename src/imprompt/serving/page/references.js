// The cards of the image prompts.

import { viewUrl } from "./api.js";
import { bind, cloneTemplate, fillSelect, find, findAll, percent } from "./dom.js";

const USES = {
  full: "Everything", style: "Style only", composition: "Layout only", "strong style": "Style, strong",
  "precise style": "Style, without layout", "precise composition": "Layout, without style",
};
const CROPS = {
  center: "Middle", top: "Top", bottom: "Bottom", left: "Left", right: "Right",
  pad: "All, with a margin", stretch: "All, stretched", tiles: "All, in tiles",
};

const capitalize = (text) => text[0].toUpperCase() + text.slice(1);
const named = (names, titles) => names.map((name) => [name, titles[name] ?? capitalize(name)]);

/**
 * Show the references of `page.settings`, a card for each. A card stays when others come and go, so that the focus and
 * what is open stay too.
 */
export function createCards(page, { onChange, onPaint }) {
  const list = find("#references");
  const cards = new Map();

  function render() {
    const { references } = page.settings;
    for (const [reference, card] of cards) {
      if (references.includes(reference)) continue;
      card.element.remove();
      cards.delete(reference);
    }
    references.forEach((reference, index) => {
      if (!cards.has(reference)) cards.set(reference, createCard(page, reference, { remove, onChange, onPaint }));
      const card = cards.get(reference);
      if (list.children[index] !== card.element) list.insertBefore(card.element, list.children[index] ?? null);
      card.refresh(index);
    });
  }

  function remove(reference) {
    const { references } = page.settings;
    const index = references.indexOf(reference);
    references.splice(index, 1);
    onChange();
    const next = list.children[Math.min(index, list.children.length - 1)];
    (next ? find(".remove", next) : find("#add")).focus();
  }

  return render;
}

function createCard(page, reference, { remove, onChange, onPaint }) {
  const element = cloneTemplate("card");
  const { name } = reference.image;
  find(".name", element).textContent = name;
  find(".remove .unseen", element).textContent = `Remove ${name}`;
  find(".remove", element).addEventListener("click", () => remove(reference));
  find(".region", element).addEventListener("click", () => onPaint(reference));
  const picture = find(".seen", element);
  picture.addEventListener("error", () => picture.classList.add("lost"));
  fillChoices(element, page);
  const show = bind(element, reference, { onChange, fallback: (field) => (field === "adapter" ? "" : null) });

  function refresh(index) {
    find("legend", element).textContent = `Image prompt ${index + 1}: ${name}`;
    const note = find(".note", element);
    note.dataset.note = `references[${index}]`;
    note.id = `reference-${index}-note`;
    for (const field of findAll("[data-setting=scale]", element)) field.setAttribute("aria-describedby", note.id);
    element.classList.toggle("off", !reference.on);
    find("summary .value", element).textContent = summarize(reference);
    find(".region", element).textContent = reference.mask ? "Change the area" : "Paint the area";
    const adapter = page.findAdapter(reference.adapter);
    for (const field of findAll(".face", element)) field.hidden = !adapter?.takes?.includes("face_embedding");
    showView(picture, reference, page, adapter);
    show();
  }

  return { element, refresh };
}

function fillChoices(element, { capabilities, model }) {
  const { modes = ["full"], crops = ["center"] } = capabilities;
  fillSelect(find("[data-setting=layers]", element), named(model.modes ?? modes, USES));
  fillSelect(find("[data-setting=crop]", element), named(crops, CROPS));
  const adapters = model.adapters.map(({ name }) => [name, name]);
  fillSelect(find("[data-setting=adapter]", element), [["", "As set below"], ...adapters]);
  find("[data-many=adapters]", element).hidden = adapters.length < 2;
}

/** Show the very pixels that the image encoder receives. */
function showView(picture, reference, { model }, adapter) {
  const url = adapter ? viewUrl(reference.image.id, { model: model.name, adapter: adapter.name, crop: reference.crop }) : "";
  if (picture.getAttribute("src") === url) return;
  picture.classList.remove("lost");
  picture.src = url;
  picture.alt = `What the image encoder sees of ${reference.image.name}`;
}

function summarize({ start, end, crop, mask }) {
  const parts = [];
  if (start > 0 || end < 1) parts.push(`${percent(start)}–${percent(end)}`);
  if (crop !== "center") parts.push((CROPS[crop] ?? crop).toLowerCase());
  if (mask) parts.push("painted area");
  return parts.join(" · ");
}
