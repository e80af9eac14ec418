// Elements.

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

export function make(name, properties = {}, ...children) {
	const element = Object.assign(document.createElement(name), properties);
	element.append(...children);
	return element;
}

export function setSource(picture, url) {
	picture.hidden = !url;
	if (url && picture.getAttribute("src") !== url) picture.src = url;
}

export function fillSelect(select, values, titles = {}) {
	const titleOf = (value) => titles[value] ?? value.replaceAll("_", " ");
	select.replaceChildren(...values.map((value) => make("option", { value }, titleOf(value))));
}

/** Make the children of a list those of `items`. An item keeps its element by its key, and the element the focus. */
export function patchList(list, items, create, update) {
	const known = new Map([...list.children].map((element) => [element.dataset.key, element]));
	items.forEach((item, place) => {
		const element = known.get(item.key) ?? create();
		known.delete(item.key);
		element.dataset.key = item.key;
		if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
		update(element, item, place);
	});
	for (const element of known.values()) element.remove();
}
