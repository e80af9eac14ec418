// Pictures that are sent, shrunk in the browser before.

import { ApiError, sendPicture } from "./api.js";
import { make } from "./dom.js";

/** Image encoders see a few hundred pixels; a photo of a phone has thousands. */
const REFERENCE_SIDE = 1024;

/** Send a picture; returns {id, name, width, height}. */
export async function addPicture(file, { side = REFERENCE_SIDE, name = file.name ?? "" } = {}) {
	const { id, width, height } = await sendPicture(await shrink(file, side));
	return { id, name: name.replace(/\.\w+$/, "") || "picture", width, height };
}

async function shrink(file, side) {
	const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
		throw new ApiError(`This browser cannot read ${file.name ?? "the picture"}. Save it as PNG or JPEG.`);
	});
	const { width, height } = bitmap;
	const factor = Math.min(1, side / Math.max(width, height));
	if (factor === 1 && /^image\/(png|jpeg|webp)$/.test(file.type)) return file;
	const canvas = make("canvas", { width: Math.round(width * factor), height: Math.round(height * factor) });
	const context = canvas.getContext("2d");
	context.imageSmoothingQuality = "high";
	context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
	return canvasBlob(canvas, file.type === "image/jpeg" ? file.type : "image/png");
}

export const canvasBlob = (canvas, type = "image/png") => new Promise((done) => canvas.toBlob(done, type, 0.95));
