// Pictures that are sent: read and shrunk in the browser, kept for a server that was started again.

import { ApiError, pictureUrl, readBlob, sendPicture } from "./api.js";
import { make } from "./dom.js";

const ACCEPTED = /^image\/(png|jpeg|webp)$/;
/** Encoders see a few hundred pixels; a photo of a phone has thousands. */
const REFERENCE_SIDE = 1024;

/** Send a picture from a file; returns {id, name, width, height}. */
export async function addPicture(file, { side = REFERENCE_SIDE, name = file.name ?? "" } = {}) {
  const blob = await shrink(file, side);
  const asset = await sendPicture(blob);
  await keep(asset.id, blob);
  return { id: asset.id, name: name.replace(/\.\w+$/, "") || "picture", width: asset.width, height: asset.height };
}

async function shrink(file, side) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new ApiError(400, `This browser cannot read ${file.name ?? "the picture"}. Save it as PNG or JPEG.`, { place: "" });
  }
  const factor = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  if (factor === 1 && ACCEPTED.test(file.type)) return file;
  const canvas = make("canvas", { width: Math.round(bitmap.width * factor), height: Math.round(bitmap.height * factor) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvasBlob(canvas, file.type === "image/jpeg" ? file.type : "image/png");
}

export const canvasBlob = (canvas, type = "image/png") => new Promise((done) => canvas.toBlob(done, type, 0.95));

/** Send again those pictures that the server no longer has; returns whether it has all now. */
export async function sendMissing(ids) {
  const states = await Promise.all(ids.map((id) => readBlob(pictureUrl(id)).then(() => true, (error) => error.status !== 404)));
  const missing = ids.filter((_, place) => !states[place]);
  const blobs = await Promise.all(missing.map(recall));
  if (!missing.length || blobs.some((blob) => !blob)) return false;
  await Promise.all(blobs.map(sendPicture));
  return true;
}

// A store of the browser. Where it has none (a private window), pictures are not kept.

function open() {
  return new Promise((done, fail) => {
    const request = indexedDB.open("imprompt", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures");
    request.onsuccess = () => done(request.result);
    request.onerror = () => fail(request.error);
  });
}

async function withStore(mode, act) {
  try {
    const store = (await open()).transaction("pictures", mode).objectStore("pictures");
    const request = act(store);
    return await new Promise((done, fail) => {
      request.onsuccess = () => done(request.result);
      request.onerror = () => fail(request.error);
    });
  } catch {
    return undefined;
  }
}

export const keep = (id, blob) => withStore("readwrite", (store) => store.put(blob, id));
export const recall = (id) => withStore("readonly", (store) => store.get(id));

/** Forget all pictures but those of these ids. */
export async function keepOnly(ids) {
  const known = (await withStore("readonly", (store) => store.getAllKeys())) ?? [];
  await Promise.all(known.filter((id) => !ids.has(id)).map((id) => withStore("readwrite", (store) => store.delete(id))));
}
