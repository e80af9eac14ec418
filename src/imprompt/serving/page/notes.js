// What settings mean together, in words for the place beside the control.

import { chooseAdapter, usableReferences } from "./settings.js";

/** Return notes [place, kind, text]; a place is a field of the request, and an "error" prevents the run. */
export function listNotes(settings, model, limits) {
	const references = usableReferences(settings, model);
	const active = references.filter((one) => one.on);
	const cards = references.flatMap((one, index) => noteReference(one, `references[${index}]`, settings.prompt));
	const notes = [...cards, ...noteTogether(settings, active, model), ...noteLimits(settings, model, limits)];
	const { takes } = chooseAdapter(settings, model) ?? { takes: [] };
	const needsFace = active.length && takes.includes("face_embedding");
	notes.push([needsFace, "references", "hint", "Each picture must show a face."]);
	return notes.filter(([isTrue]) => isTrue).map(([, ...note]) => note);
}

function noteReference({ on, isLost, scale, start, end, layers, crop, image: { width, height } }, place, prompt) {
	const isLong = Math.max(width, height) > 1.4 * Math.min(width, height);
	const isMiddle = ["center", "native"].includes(crop);
	return [
		[isLost, place, "error", "The server has lost this picture. Remove it, and add it again."],
		[start >= end, place, "error", "It ends before it begins."],
		[scale === 0, place, "hint", "At strength 0 this picture has no effect."],
		[scale >= 1 && layers === "full" && prompt, place, "hint", "The text counts for little now. Try 0.5 to 0.8."],
		[isLong && isMiddle, place, "hint", "Only the middle square is seen. Choose another crop below."],
	].filter(() => on);
}

function noteTogether({ start, prompt, negative_prompt: negative, steps, guidance_scale }, active, model) {
	const guidance = guidance_scale ?? model.guidance_scale;
	const full = active.filter((one) => one.layers === "full" && !one.mask && one.scale > 0);
	const sum = full.reduce((total, one) => total + one.scale, 0);
	const { image, strength } = start;
	return [
		[full.length > 1 && sum > 1.6, "references", "hint",
			`The strengths add up to ${sum.toFixed(2)}. Lower them, or give each picture its own area.`],
		[!prompt && !active.length && !image, "prompt", "hint", "Without both, the model invents something."],
		[negative && guidance <= 1, "negative_prompt", "hint", "A negative text acts only with guidance above 1."],
		[image && (steps ?? model.steps) * strength < 1, "strength", "error", "That is less than one step. Repaint more."],
	];
}

const noteLimits = ({ steps, count, width, height }, model, limits) => [
	[(steps ?? model.steps) > limits.steps, "steps", "error", `At most ${limits.steps} steps here.`],
	[count > limits.count, "count", "error", `At most ${limits.count} pictures at once here.`],
	[Math.max(width, height) > limits.side, "width", "error", `At most ${limits.side} pixels a side here.`],
];
