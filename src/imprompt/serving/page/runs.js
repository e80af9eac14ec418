// Runs: the jobs that this page has submitted, and what became of them, also after a reload.

import { cancelJob, followJob, isOver, readJob, submitJob } from "./api.js";
import { readStores, writeStores } from "./settings.js";

const KEY = "imprompt.runs";
const MOST = 24;

/**
 * Newest first. A run has what the server says of a job, its request, the page's settings, names of pictures by id, a
 * kind ("pictures", "strip", "without"), and by index previews and steps that are taken. One that was made to compare
 * has its source: {id, index}.
 */
export const runs = readStores(KEY) ?? [];

const save = () => writeStores(KEY, runs.map((run) => ({ ...run, previews: {} })));
export const findRun = (id) => runs.find((run) => run.id === id);
export const activeRun = () => runs.find((run) => !isOver(run));

/** Submit a request; returns the run. Calls onEvent(run, name) for each event. */
export async function startRun(request, details, onEvent) {
	const run = { ...details, ...(await submitJob(request)), request, previews: {}, taken: {} };
	runs.unshift(run);
	runs.splice(MOST);
	save();
	follow(run, onEvent);
	return run;
}

function follow(run, onEvent) {
	followJob(run.id, (name, data) => {
		UPDATES[name](run, data);
		if (name === "image" || isOver(run)) save();
		onEvent(run, name);
	}, async (isFinal) => {
		onEvent(run, "lost");
		if (!isFinal) return;
		Object.assign(run, await readJob(run.id).catch(({ message }) => ({ status: "failed", error: { message } })));
		onEvent(run, "done");
	});
}

const UPDATES = {
	queued: (run, { position, eta_s }) => Object.assign(run, { position, eta_s }),
	started: (run) => (run.status = "running"),
	step: (run, { picture, step, s_per_step }) => {
		run.taken[picture] = step;
		run.pace = s_per_step;
	},
	preview: (run, { picture, image }) => (run.previews[picture] = image),
	warning: (run, { message }) => (run.warnings = [...new Set([...run.warnings, message])]),
	image: (run, data) => (run.pictures = [...run.pictures.filter((one) => one.picture !== data.picture), data]),
	done: (run, { timings }) => Object.assign(run, { status: "done", timings }),
	canceled: (run) => (run.status = "canceled"),
	error: (run, error) => Object.assign(run, { status: "failed", error }),
};

export const stopRun = async () => activeRun() && cancelJob(activeRun().id);

/** Join the runs of before: those that go on are followed, and those that the server does not know are dropped. */
export async function rejoinRuns(onEvent) {
	await Promise.all([...runs].map(async (run) => {
		const known = await readJob(run.id).catch(() => null);
		if (!known) runs.splice(runs.indexOf(run), 1);
		else if (!isOver(Object.assign(run, known))) follow(run, onEvent);
	}));
	save();
}

export function forgetRuns() {
	runs.splice(0, runs.length, ...runs.filter((run) => !isOver(run)));
	save();
}

/** The part of all steps that is done, 0 to 1. */
export const measureRun = ({ taken, count, steps }) =>
	Object.values(taken).reduce((sum, one) => sum + one, 0) / (count * steps);

export const pictureOf = (run, index) => run.pictures.find((one) => one.picture === index);

/** References with the strength of a picture, if its run varies it. None at all is strength 0, bit for bit. */
const scaleAll = (references, picture) =>
	"scale" in picture ? references.map((one) => ({ ...one, scale: picture.scale ?? 0 })) : references;

/** The request that makes one picture of a run again. */
export function requestOf(run, index) {
	const { strip, count, previews, references, ...request } = run.request;
	const picture = pictureOf(run, index);
	return { ...request, ...(references && { references: scaleAll(references, picture) }), seed: picture.seed };
}

/** The page's settings for one picture of a run. */
export function settingsOf(run, index) {
	const picture = pictureOf(run, index);
	return { ...run.settings, references: scaleAll(run.settings.references, picture), seed: picture.seed, count: null };
}
