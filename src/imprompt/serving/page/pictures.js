// Pictures that are sent: shrunk in the browser, and kept there for a server that was started again.

import { ApiError, call, pictureUrl, sendPicture } from "./api.js";
import { make } from "./dom.js";

/** Image encoders see a few hundred pixels; a photo of a phone has thousands. */
const REFERENCE_SIDE = 1024;

/** Send a picture; returns {id, name, width, height}. */
export async function addPicture(file, { side = REFERENCE_SIDE, name = file.name ?? "" } = {}) {
  const blob = await shrink(file, side);
  const { id, width, height } = await sendPicture(blob);
  await keep(id, blob);
  return { id, name: name.replace(/\.\w+$/, "") || "picture", width, height };
}

async function shrink(file, side) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
    throw new ApiError(`This browser cannot read ${file.name ?? "the picture"}. Save it as PNG or JPEG.`);
  });
  const factor = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  if (factor === 1 && /^image\/(png|jpeg|webp)$/.test(file.type)) return file;
  const canvas = make("canvas", { width: Math.round(bitmap.width * factor), height: Math.round(bitmap.height * factor) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvasBlob(canvas, file.type === "image/jpeg" ? file.type : "image/png");
}

export const canvasBlob = (canvas, type = "image/png") => new Promise((done) => canvas.toBlob(done, type, 0.95));

/** Send those pictures again that the server does not have any more; returns whether it has all of them now. */
export async function sendMissing(ids) {
  for (const id of ids) {
    const isMissing = await call("GET", pictureUrl(id)).then(() => false, (error) => error.status === 404);
    if (!isMissing) continue;
    const blob = await recall(id);
    if (!blob) return false;
    await sendPicture(blob);
  }
  return ids.length > 0;
}

// Browsers have this store only on this machine's own address or behind HTTPS; elsewhere nothing is kept.

const openStore = async () => globalThis.caches?.open("imprompt").catch(() => undefined);
const keep = async (id, blob) => (await openStore())?.put(`/kept/${id}`, new Response(blob));
const recall = async (id) => (await (await openStore())?.match(`/kept/${id}`))?.blob();

/** Forget all pictures but those of these ids. */
export async function keepOnly(ids) {
  const store = await openStore();
  for (const request of (await store?.keys()) ?? []) {
    if (!ids.has(request.url.split("/").pop())) await store.delete(request);
  }
}
