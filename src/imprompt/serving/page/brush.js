// The dialog in which an area is painted. The area becomes a picture: white inside, black outside.

import { $, make, setSource } from "./dom.js";
import { canvasBlob } from "./pictures.js";

const AREAS = {
	All: [0, 0, 1, 1], Left: [0, 0, 0.5, 1], Right: [0.5, 0, 0.5, 1], Top: [0, 0, 1, 0.5], Bottom: [0, 0.5, 1, 0.5],
	None: [0, 0, 0, 0],
};
const KEYS = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] };

const dialog = $("#brush");
const canvas = $("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
let place = { x: 0.5, y: 0.5 };
let isDown = false;
let finish = () => {};

/**
 * Let the user paint; width and height are those of the area, background and mask are addresses or "".
 * Returns a PNG; null if all or nothing is painted, which means everywhere; undefined if it is canceled.
 */
export async function paintArea({ title, hint, width, height, background, mask }) {
	$("h2", dialog).textContent = title;
	$("p", dialog).textContent = hint;
	Object.assign(canvas, { width, height });
	$(".board").style.setProperty("--ratio", width / height);
	setSource($("img", dialog), background);
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

function readMask() {
	const opacities = context.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, at) => at % 4 === 3);
	if (opacities.every((one) => one === opacities[0])) return null;
	context.globalCompositeOperation = "destination-over";
	fill(AREAS.All, "#000");
	return canvasBlob(canvas);
}

function fill([x, y, width, height], color) {
	context.fillStyle = color;
	context.fillRect(x * canvas.width, y * canvas.height, width * canvas.width, height * canvas.height);
}

const brushSize = (width, height) => ($("#size").value / 100) * Math.min(width, height);

/** Move the brush, which paints or erases on its way if it is down. */
function moveTo(x, y, paints = isDown) {
	const next = { x: Math.min(1, Math.max(0, x)), y: Math.min(1, Math.max(0, y)) };
	if (paints) drawLine(place, next);
	place = next;
	const size = `${brushSize(canvas.clientWidth, canvas.clientHeight)}px`;
	Object.assign($(".board i").style, { left: `${place.x * 100}%`, top: `${place.y * 100}%`, width: size, height: size });
}

function drawLine(from, to) {
	context.globalCompositeOperation = $("#erase").checked ? "destination-out" : "source-over";
	Object.assign(context, { strokeStyle: "#fff", lineCap: "round", lineWidth: brushSize(canvas.width, canvas.height) });
	context.beginPath();
	context.moveTo(from.x * canvas.width, from.y * canvas.height);
	context.lineTo(to.x * canvas.width + 0.01, to.y * canvas.height);
	context.stroke();
	context.globalCompositeOperation = "source-over";
}

for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
	canvas.addEventListener(name, ({ offsetX, offsetY, pointerId }) => {
		const { clientWidth, clientHeight } = canvas;
		if (name === "pointerdown") moveTo(offsetX / clientWidth, offsetY / clientHeight);
		if (name === "pointerdown") canvas.setPointerCapture(pointerId);
		if (name !== "pointermove") isDown = name === "pointerdown";
		moveTo(offsetX / clientWidth, offsetY / clientHeight);
	});
}
canvas.addEventListener("keydown", (event) => {
	const [x, y] = KEYS[event.key] ?? [0, 0];
	if (event.key !== " " && !x && !y) return;
	event.preventDefault();
	moveTo(place.x + x, place.y + y, event.key === " ");
});

for (const [name, area] of Object.entries(AREAS)) {
	const onclick = () => {
		context.clearRect(0, 0, canvas.width, canvas.height);
		fill(area, "#fff");
	};
	$("#areas").append(make("button", { className: "plain", textContent: name, onclick }));
}
$("#done").onclick = async () => {
	finish(await readMask());
	dialog.close();
};
$("#cancel").onclick = () => dialog.close();
dialog.onclose = () => finish();
