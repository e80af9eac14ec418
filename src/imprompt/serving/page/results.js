// The stage: the picture that is looked at, the other pictures of its run, and earlier runs.

import { isOver, viewUrl } from "./api.js";
import { $, make, patchList, setSource } from "./dom.js";
import { findRun, pictureOf, runs, scaleOf } from "./runs.js";

/** Pictures of the embedded model have 128 pixels; they are shown larger. */
const LEAST_WIDTH = 448;

let selected = null;

/** Look at a picture of a run. */
export function select(run, index = bestIndex(run)) {
  selected = { id: run.id, index };
  $("#code").hidden = true;
  showStage();
}

/** The picture that is looked at: {run, index}; run is undefined on a first visit. */
export function findSelection() {
  const run = findRun(selected?.id);
  return run ? { run, index: selected.index } : { run: runs[0], index: runs[0] && bestIndex(runs[0]) };
}

/** Of a strip the middle is looked at first. */
const bestIndex = (run) => (run.kind === "strip" ? Math.floor(run.count / 2) : 0);

export function showStage() {
  const { run, index } = findSelection();
  $("#welcome").hidden = run;
  $("#viewer").hidden = !run;
  if (run) {
    showPicture(run, index);
    showFacts(run, index);
  }
  showTiles($("#row"), run && (run.count > 1 || run.source) ? listRow(run) : [], run, index);
  const all = runs.map((one) => ({ key: one.id, run: one, index: bestIndex(one), title: one.request.prompt || "Without text" }));
  showTiles($("#past ul"), all.length > 1 ? all : [], run);
  $("#past").hidden = all.length < 2;
}

function showPicture(run, index) {
  const { url, kind, width, height } = look(run, index);
  const frame = $(".frame");
  frame.className = `frame ${kind}`;
  frame.style.aspectRatio = width / height;
  frame.style.setProperty("--ratio", width / height);
  frame.style.setProperty("--width", `${Math.max(width, LEAST_WIDTH)}px`);
  setSource($("img", frame), url);
  $("img", frame).alt = run.request.prompt || "Picture of the image prompt";
}

/** What there is of a picture: its address, kind ("made", "preview", "waiting" or "missing") and size. */
function look(run, index) {
  const made = pictureOf(run, index);
  if (made) return { ...made, kind: "made" };
  const similar = runs.find((one) => one.pictures.length && one.model === run.model)?.pictures[0];
  const { width = similar?.width ?? 512, height = similar?.height ?? 512 } = run.request;
  const url = isOver(run) ? "" : run.previews[index];
  return { url, kind: url ? "preview" : isOver(run) ? "missing" : "waiting", width, height };
}

function showFacts(run, index) {
  const { request } = run;
  const made = pictureOf(run, index);
  const hasReferences = Boolean(request.references);
  $("#viewer h2").textContent = request.prompt || "Without text";
  $("#viewer dl").replaceChildren(...listFacts(run, made).flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", {}, value)]));
  $("#viewer ul").replaceChildren(...run.warnings.map((textContent) => make("li", { textContent })));
  $("#viewer .actions").hidden = !made;
  for (const name of ["strip", "without"]) $(`[data-act=${name}]`).hidden = !hasReferences || run.kind !== "pictures";
  for (const name of ["Toml", "Python"]) $(`[data-copy=${name}]`).hidden = !hasReferences;
  if (made) Object.assign($("a.button"), { href: made.url, download: `imprompt-${made.seed}${made.scale ? `-${made.scale}` : ""}.png` });
}

function listFacts(run, made) {
  const { references, model, adapter, steps, guidance_scale: guidance } = run.request;
  const view = ({ images, crop = "center" }) =>
    make("img", { src: viewUrl(images, { model, adapter, crop }), alt: run.names[images] });
  const scales = references?.map((one) => scaleOf(made) ?? one.scale);
  return [
    references && ["From", make("span", { className: "sources" }, ...references.map(view))],
    references && ["Strength", [...new Set(scales)].join(", ")],
    made && ["Seed", made.seed],
    made && ["Size", `${made.width} × ${made.height}`],
    ["Steps", `${steps}, guidance ${guidance}`],
    run.status === "done" && ["Time", `${run.timings.run_s.toFixed(1)} s${run.count > 1 ? ` for ${run.count}` : ""}`],
    run.status === "canceled" && ["State", "Stopped"],
    run.error && ["State", run.error.message],
  ].filter(Boolean);
}

/** The pictures of a run; one that is made for comparison stands beside the one that it is compared with. */
function listRow(run) {
  const { strip } = run.request;
  const source = run.kind === "without" && findRun(run.source.id);
  const title = (index) => (run.kind === "pictures" ? String(index + 1) : strip[index] === null ? "Without" : String(strip[index]));
  const own = Array.from({ length: run.count }, (_, index) => ({ key: `${run.id}/${index}`, run, index, title: title(index) }));
  return source ? [{ key: source.id, run: source, index: run.source.index, title: "With" }, ...own] : own;
}

function showTiles(list, items, run, index) {
  list.hidden = !items.length;
  const create = () => make("li", {}, make("button", { type: "button", className: "tile" }, make("img", { alt: "" }), make("span")));
  patchList(list, items, create, (tile, item) => {
    const { url, kind } = look(item.run, item.index);
    const button = tile.firstChild;
    tile.className = kind;
    setSource(button.firstChild, url);
    button.lastChild.textContent = item.title;
    button.ariaCurrent = item.run === run && item.index === (index ?? item.index);
    button.onclick = () => select(item.run, item.index);
  });
}
