// Elements, and fields that are bound to values.

export const find = (selector, root = document) => root.querySelector(selector);
export const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS(svg.namespaceURI, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const cloneTemplate = (id) => find(`#${id}`).content.firstElementChild.cloneNode(true);

export const percent = (value) => `${Math.round(value * 100)} %`;

/** "start.strength" → the object that has the last name, and that name. */
function resolve(values, path) {
  const names = path.split(".");
  const last = names.pop();
  return [names.reduce((inner, name) => inner[name], values), last];
}

function show(field, value) {
  if (field.type === "checkbox") field.checked = value;
  else field.value = value ?? "";
}

function read(field) {
  if (field.type === "checkbox") return field.checked;
  if (field.type !== "number" && field.type !== "range") return field.value;
  return field.value === "" ? null : Number(field.value);
}

/**
 * Bind all fields with data-setting inside `root`, and outputs with data-percent or data-number, to `values`.
 * `fallback(name)` is shown in place of null, and stored as null. Returns a function that shows the values again.
 */
export function bind(root, values, { onChange, fallback = () => null, skip = null }) {
  const fields = findAll("[data-setting]", root).filter((field) => !skip || !field.closest(skip));
  const outputs = findAll("[data-percent], [data-number]", root).filter((field) => !skip || !field.closest(skip));

  function refresh(except = null) {
    for (const field of fields) {
      const [owner, name] = resolve(values, field.dataset.setting);
      if (field !== except) show(field, owner[name] ?? fallback(name));
    }
    for (const output of outputs) {
      const [owner, name] = resolve(values, output.dataset.percent ?? output.dataset.number);
      output.textContent = output.dataset.percent ? percent(owner[name]) : owner[name].toFixed(2);
    }
  }

  function write(field) {
    const [owner, name] = resolve(values, field.dataset.setting);
    if (field.validity.valid) {
      const value = read(field);
      // A strength needs a number: an empty field keeps the last one until it is left.
      if (value === null && fallback(name) === null && field.required) return;
      owner[name] = value === fallback(name) ? null : value;
      refresh(field);
    }
    onChange(field.dataset.setting);
  }

  for (const field of fields) {
    field.addEventListener("input", () => write(field));
    field.addEventListener("change", () => field.validity.valid && refresh());
  }
  refresh();
  return refresh;
}

export function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
}

export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* not allowed here: the old way follows */ }
  }
  const area = make("textarea", { value: text, className: "unseen" });
  const before = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  return copied;
}
