// The stage: the picture that is looked at, the other pictures of its run, and earlier runs.

import { isOver, viewUrl } from "./api.js";
import { $, make, patchList, setSource } from "./dom.js";
import { findRun, pictureOf, runs } from "./runs.js";

let selected = null;

/** Look at a picture of a run. */
export function select({ id }, index) {
	selected = { id, index };
	$("#code").hidden = true;
	showStage();
}

/** The picture that is looked at: {run, index}, by default the newest. Of a strip the middle comes first. */
export function findSelection() {
	const run = findRun(selected?.id) ?? runs[0];
	const index = run?.id === selected?.id ? selected?.index : undefined;
	return { run, index: index ?? (run?.kind === "strip" ? Math.floor(run.count / 2) : 0) };
}

const titleOf = (run) => run.request.prompt ?? "Without text";

export function showStage() {
	const { run, index } = findSelection();
	$("#welcome").hidden = run;
	$("#viewer").hidden = !run;
	if (run) {
		showPicture(run, index);
		showFacts(run, index);
	}
	const row = run && (run.count > 1 || run.source) ? listRow(run) : [];
	showTiles($("#row"), row, (item) => item.run === run && item.index === index);
	const covers = runs.map((one) => ({ key: one.id, run: one, index: one.count - 1, title: titleOf(one) }));
	showTiles($("#past ul"), covers, (item) => item.run === run);
	$("#past").hidden = runs.length < 2;
}

function showPicture(run, index) {
	const { url, kind, width, height } = look(run, index);
	const frame = $(".frame");
	frame.className = `frame ${kind}`;
	frame.style.setProperty("--ratio", width / height);
	frame.style.setProperty("--width", `${width}px`);
	setSource(frame.firstElementChild, url);
	frame.firstElementChild.alt = titleOf(run);
}

/** What there is of a picture: its address, kind ("made", "preview", "waiting" or "missing") and size. */
function look(run, index) {
	const made = pictureOf(run, index);
	if (made) return { ...made, kind: "made" };
	const { width, height } = run.request;
	const last = runs.find((one) => one.pictures.length)?.pictures[0];
	const size = width ? { width, height } : last ?? { width: 1, height: 1 };
	const url = run.previews[index];
	if (isOver(run)) return { ...size, kind: "missing", url: "" };
	return { ...size, kind: url ? "preview" : "waiting", url };
}

function showFacts(run, index) {
	const { references } = run.request;
	const made = pictureOf(run, index);
	$("#viewer h2").textContent = titleOf(run);
	const pair = ([name, value]) => [make("dt", {}, name), make("dd", {}, value)];
	$("dl").replaceChildren(...listFacts(run, made).flatMap(pair));
	$("#viewer ul").replaceChildren(...run.warnings.map((text) => make("li", {}, text)));
	$("#viewer .actions").hidden = !made;
	for (const name of ["strip", "without"]) $(`[data-act=${name}]`).hidden = !references || run.kind !== "pictures";
	for (const name of ["Toml", "Python"]) $(`[data-copy=${name}]`).hidden = !references;
	if (made) Object.assign($("a.button"), { href: made.url, download: `imprompt-${made.seed}-${index}.png` });
}

function listFacts({ request, status, timings, error, count, names }, made) {
	const { references, model, adapter, steps, guidance_scale: guidance } = request;
	const view = ({ images, crop = "native" }) =>
		make("img", { src: viewUrl(images, { model, adapter, crop }), alt: names[images] });
	const scales = references?.map((one) => (made && "scale" in made ? made.scale ?? "none" : one.scale));
	const state = { canceled: "Stopped", failed: error?.message }[status];
	return [
		references && ["From", make("span", { className: "sources" }, ...references.map(view))],
		references && ["Strength", [...new Set(scales)].join(", ")],
		made && ["Seed", made.seed],
		made && ["Size", `${made.width} × ${made.height}`],
		["Steps", `${steps}, guidance ${guidance}`],
		status === "done" && ["Time", `${timings.run_s.toFixed(1)} s${count > 1 ? ` for ${count}` : ""}`],
		state && ["State", state],
	].filter(Boolean);
}

/** The pictures of a run; one that is made for comparison stands beside the one that it is compared with. */
function listRow(run) {
	const { strip } = run.request;
	const title = (index) => (strip ? strip[index] ?? "Without" : index + 1);
	const tile = (index) => ({ key: `${run.id}/${index}`, run, index, title: title(index) });
	const own = [...Array(run.count).keys()].map(tile);
	const source = run.kind === "without" && findRun(run.source.id);
	return source ? [{ key: source.id, run: source, index: run.source.index, title: "With" }, ...own] : own;
}

function showTiles(list, items, isCurrent) {
	list.hidden = !items.length;
	const create = () => make("li", {}, make("button", { className: "tile" }, make("img", { alt: "" }), make("span")));
	patchList(list, items, create, (tile, item) => {
		const { url, kind } = look(item.run, item.index);
		const button = tile.firstChild;
		tile.className = kind;
		setSource(button.firstChild, url);
		button.lastChild.textContent = item.title;
		button.ariaCurrent = isCurrent(item);
		button.onclick = () => select(item.run, item.index);
	});
}
