// The dialog in which an area is painted. The area becomes a picture: white inside, black outside.

import { find, findAll, make } from "./dom.js";
import { canvasBlob } from "./pictures.js";

const AREAS = { all: [0, 0, 1, 1], left: [0, 0, 0.5, 1], right: [0.5, 0, 0.5, 1], top: [0, 0, 1, 0.5], bottom: [0, 0.5, 1, 0.5], none: null };
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const dialog = find("#brush");
const canvas = find("canvas", dialog);
const context = canvas.getContext("2d", { willReadFrequently: true });
const cursor = find(".cursor", dialog);
const place = { x: 0.5, y: 0.5 };
let last = null;
let finish = null;

/**
 * Let the user paint. Returns a PNG, null for "everywhere" (nothing or all is painted), or undefined if it is canceled.
 * @param {{title: string, hint: string, width: number, height: number, background: string, mask: string}} options
 *   width, height: of the area in pixels; background, mask: addresses of pictures, "" for none
 */
export async function paintArea({ title, hint, width, height, background, mask }) {
  find("#brush-title").textContent = title;
  find("#brush-hint").textContent = hint;
  Object.assign(canvas, { width, height });
  const backdrop = find(".board img");
  backdrop.hidden = !background;
  if (background) backdrop.src = background;
  find(".board").style.aspectRatio = `${width} / ${height}`;
  find(".board").style.setProperty("--ratio", width / height);
  if (mask) await drawMask(mask);
  dialog.showModal();
  return new Promise((done) => (finish = done));
}

async function drawMask(url) {
  const picture = make("img", { src: url });
  await picture.decode().catch(() => {});
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at];
  context.putImageData(pixels, 0, 0);
}

async function readMask() {
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0;
  for (let at = 3; at < data.length; at += 4) sum += data[at];
  if (sum === 0 || sum === data.length / 4 * 255) return null;
  context.globalCompositeOperation = "source-in";
  fill(0, 0, 1, 1, "#fff");
  context.globalCompositeOperation = "destination-over";
  fill(0, 0, 1, 1, "#000");
  context.globalCompositeOperation = "source-over";
  return canvasBlob(canvas);
}

function fill(x, y, width, height, color) {
  context.fillStyle = color;
  context.fillRect(x * canvas.width, y * canvas.height, width * canvas.width, height * canvas.height);
}

const brushSize = () => find("[type=range]", dialog).value / 100;

function paintTo({ x, y }, from) {
  const erases = find("[value=erase]", dialog).checked;
  context.globalCompositeOperation = erases ? "destination-out" : "source-over";
  context.strokeStyle = "#fff";
  context.lineCap = "round";
  context.lineWidth = brushSize() * Math.min(canvas.width, canvas.height);
  context.beginPath();
  context.moveTo((from ?? { x }).x * canvas.width, (from ?? { y }).y * canvas.height);
  context.lineTo(x * canvas.width + 0.01, y * canvas.height);
  context.stroke();
  context.globalCompositeOperation = "source-over";
}

function moveCursor({ x, y }) {
  Object.assign(place, { x: Math.min(1, Math.max(0, x)), y: Math.min(1, Math.max(0, y)) });
  const { width, height } = canvas.getBoundingClientRect();
  const size = brushSize() * Math.min(width, height);
  Object.assign(cursor.style, { left: `${place.x * 100}%`, top: `${place.y * 100}%`, width: `${size}px`, height: `${size}px` });
}

function locate(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = locate(event);
  moveCursor(last);
  paintTo(last);
});
canvas.addEventListener("pointermove", (event) => {
  const now = locate(event);
  moveCursor(now);
  if (!last) return;
  paintTo(now, last);
  last = now;
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (last = null));

canvas.addEventListener("focus", () => moveCursor(place));
canvas.addEventListener("keydown", (event) => {
  if (event.key === " ") paintTo(place);
  else if (event.key in KEYS) {
    const [x, y] = KEYS[event.key];
    moveCursor({ x: place.x + x * 0.05, y: place.y + y * 0.05 });
  } else return;
  event.preventDefault();
});

for (const button of findAll("[data-area]", dialog)) {
  button.addEventListener("click", () => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    const area = AREAS[button.dataset.area];
    if (area) fill(...area, "#fff");
  });
}
for (const button of findAll("[data-end]", dialog)) {
  button.addEventListener("click", async () => end(button.dataset.end === "done" ? await readMask() : undefined));
}
dialog.addEventListener("cancel", () => end(undefined));

function end(result) {
  finish?.(result);
  finish = null;
  if (dialog.open) dialog.close();
}
