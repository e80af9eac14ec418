// Runs: the jobs that this page has submitted, and what became of them, also after a reload.

import { ApiError, cancelJob, followJob, isOver, readJob, submitJob } from "./api.js";
import { sendMissing } from "./pictures.js";
import { listPictures, readStores, writeStores } from "./settings.js";

const KEY = "imprompt.runs";
const MOST = 24;
const ATTEMPTS = 20;

/**
 * Newest first. A run has `request`, `settings` (those of the page), `names` (of pictures, by id), `kind` ("pictures",
 * "strip", "without") and `source` ({id, index} of the picture that it is compared with), what the server says of a job,
 * and by picture `previews` and `steps_done`.
 */
export const runs = readStores(KEY) ?? [];

const save = () => writeStores(KEY, runs.map((run) => ({ ...run, previews: {} })));
let isStopped = false;

export const findRun = (id) => runs.find((run) => run.id === id);
export const activeRun = () => runs.find((run) => !isOver(run));

/**
 * Submit a request, and wait if the server has no room. Returns the run, or null if it was stopped while it waited.
 * listen.onEvent(run, name) is called for each event, listen.onWait(seconds) while it waits.
 */
export async function startRun(request, details, listen) {
  isStopped = false;
  const answer = await submit(request, listen.onWait);
  if (!answer) return null;
  const run = { ...details, ...answer, key: answer.id, request, previews: {}, steps_done: {} };
  runs.unshift(run);
  runs.splice(MOST);
  save();
  follow(run, listen);
  return run;
}

async function submit(request, onWait) {
  let isResent = false;
  for (let attempt = 0; attempt < ATTEMPTS && !isStopped; attempt++) {
    try {
      return await submitJob(request);
    } catch (error) {
      if (error.status === 429) await pause(error.wait || 2, onWait);
      // A server that was started again, or that made room, has lost pictures.
      else if (error.status !== 400 || isResent || !(isResent = await sendMissing(listPictures(request)))) throw error;
    }
  }
  if (isStopped) return null;
  throw new ApiError("The server is busy. Try again later.");
}

async function pause(seconds, onWait) {
  for (let left = seconds; left > 0 && !isStopped; left -= 0.2) {
    onWait(Math.ceil(left));
    await new Promise((done) => setTimeout(done, 200));
  }
}

function follow(run, listen) {
  followJob(run.id, (name, data) => {
    update(run, name, data);
    if (name === "image" || isOver(run)) save();
    listen.onEvent(run, name);
  }, async (isFinal) => {
    listen.onEvent(run, "lost");
    if (!isFinal) return;
    const lost = { status: "failed", error: { message: "The server was started again and does not know this run." } };
    Object.assign(run, await readJob(run.id).catch(() => lost));
    listen.onEvent(run, "done");
  });
}

const UPDATES = {
  queued: (run, { position, eta_s }) => Object.assign(run, { position, eta_s }),
  started: (run) => (run.status = "running"),
  step: (run, { picture, step, s_per_step }) => Object.assign(run, { pace: s_per_step, steps_done: { ...run.steps_done, [picture]: step } }),
  preview: (run, { picture, image }) => (run.previews[picture] = image),
  warning: (run, { message }) => (run.warnings = [...new Set([...run.warnings, message])]),
  image: (run, data) => (run.pictures = [...run.pictures.filter((one) => one.picture !== data.picture), data]),
  done: (run, { timings }) => Object.assign(run, { status: "done", timings }),
  canceled: (run) => (run.status = "canceled"),
  error: (run, error) => Object.assign(run, { status: "failed", error }),
};
const update = (run, name, data) => UPDATES[name](run, data);

export async function stopRun() {
  isStopped = true;
  const run = activeRun();
  if (run) await cancelJob(run.id);
}

/** Join the runs of before: those that go on are followed, and those that the server does not know are dropped. */
export async function rejoinRuns(listen) {
  await Promise.all([...runs].map(async (run) => {
    try {
      Object.assign(run, await readJob(run.id));
      if (!isOver(run)) follow(run, listen);
    } catch (error) {
      if (error.status === 404) runs.splice(runs.indexOf(run), 1);
    }
  }));
  save();
}

export function forgetRuns() {
  runs.splice(0, runs.length, ...runs.filter((run) => !isOver(run)));
  save();
}

/** The part of all steps that is done, 0 to 1. */
export function measureRun(run) {
  const done = Object.values(run.steps_done).reduce((sum, steps) => sum + steps, 0);
  return isOver(run) ? 0 : Math.min(1, done / (run.count * run.steps));
}

export const pictureOf = (run, index) => run.pictures.find((one) => one.picture === index);

/** The strength of a picture, if its run varies it. Without references is strength 0, bit for bit. */
export const scaleOf = (picture) => (picture && "scale" in picture ? picture.scale ?? 0 : null);

/** The request that makes one picture of a run again. */
export function requestOf(run, index) {
  const { strip, count, previews, ...request } = run.request;
  const picture = pictureOf(run, index);
  const scale = scaleOf(picture);
  if (scale !== null) request.references = request.references.map((one) => ({ ...one, scale }));
  return { ...request, seed: picture.seed };
}

/** The page's settings for one picture of a run. */
export function settingsOf(run, index) {
  const picture = pictureOf(run, index);
  const scale = scaleOf(picture);
  const references = run.settings.references.map((one) => (scale === null ? one : { ...one, scale }));
  return { ...run.settings, references, seed: picture.seed, count: null };
}
