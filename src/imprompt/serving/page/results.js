// The stage: the picture that is looked at, the other pictures of its run, and earlier runs.

import { isOver, viewUrl } from "./api.js";
import { $, make, patchList, setSource } from "./dom.js";
import { findRun, pictureOf, runs } from "./runs.js";

/** Pictures of the embedded model have 128 pixels; they are shown larger. */
const LEAST_WIDTH = 448;

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

export function showStage() {
	const { run, index } = findSelection();
	$("#welcome").hidden = run;
	$("#viewer").hidden = !run;
	if (run) {
		showPicture(run, index);
		showFacts(run, index);
	}
	showTiles($("#row"), run && (run.count > 1 || run.source) ? listRow(run) : [], (item) => item.run === run && item.index === index);
	const covers = runs.map((one) => ({ key: one.id, run: one, index: one.count - 1, title: one.request.prompt ?? "Without text" }));
	showTiles($("#past ul"), covers, (item) => item.run === run);
	$("#past").hidden = runs.length < 2;
}

function showPicture(run, index) {
	const { url, kind, width, height } = look(run, index);
	const frame = $(".frame");
	frame.className = `frame ${kind}`;
	frame.style.setProperty("--ratio", width / height);
	frame.style.setProperty("--width", `${Math.max(width, LEAST_WIDTH)}px`);
	setSource(frame.firstElementChild, url);
	frame.firstElementChild.alt = run.request.prompt ?? "Picture of the image prompt";
}

/** What there is of a picture: its address, kind ("made", "preview", "waiting" or "missing") and size. */
function look(run, index) {
	const made = pictureOf(run, index);
	if (made) return { ...made, kind: "made" };
	const { width, height } = run.request;
	const size = width ? { width, height } : runs.find((one) => one.pictures.length)?.pictures[0] ?? { width: 1, height: 1 };
	const url = run.previews[index];
	if (isOver(run)) return { ...size, kind: "missing", url: "" };
	return { ...size, kind: url ? "preview" : "waiting", url };
}

function showFacts(run, index) {
	const { prompt = "Without text", references } = run.request;
	const made = pictureOf(run, index);
	$("#viewer h2").textContent = prompt;
	$("dl").replaceChildren(...listFacts(run, made).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
	$("#viewer ul").replaceChildren(...run.warnings.map((text) => make("li", {}, text)));
	$("#viewer .actions").hidden = !made;
	for (const name of ["strip", "without"]) $(`[data-act=${name}]`).hidden = !references || run.kind !== "pictures";
	for (const name of ["Toml", "Python"]) $(`[data-copy=${name}]`).hidden = !references;
	if (made) Object.assign($("a.button"), { href: made.url, download: `imprompt-${made.seed}-${index}.png` });
}

function listFacts({ request, status, timings, error, count, names }, made) {
	const { references, model, adapter, steps, guidance_scale: guidance } = request;
	const view = ({ images, crop = "center" }) => make("img", { src: viewUrl(images, { model, adapter, crop }), alt: names[images] });
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
	const titles = strip ? strip.map((scale) => String(scale ?? "Without")) : Array.from({ length: run.count }, (_, index) => `${index + 1}`);
	const own = titles.map((title, index) => ({ key: `${run.id}/${index}`, run, index, title }));
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
