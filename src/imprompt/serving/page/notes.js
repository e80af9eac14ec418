// What settings mean together, in words for the place beside the control.

const GARISH = 12;

/** Return notes [place, kind, text]. A place is a field of the request; with an "error" nothing can be generated. */
export function listNotes(settings, model, limits) {
	const active = settings.references.filter((one) => one.on);
	const adapter = model.adapters.find(({ name }) => name === settings.adapter) ?? model.adapters[0];
	const cards = settings.references.flatMap((one, index) => noteReference(one, `references[${index}]`, settings, adapter));
	const notes = [...cards, ...noteTogether(settings, active, model), ...noteLimits(settings, model, limits)];
	return notes.filter(([isTrue]) => isTrue).map(([, ...note]) => note);
}

function noteReference({ on, isLost, scale, start, end, layers, crop, image: { width, height } }, place, { prompt }, adapter) {
	const isLong = Math.max(width, height) > 1.4 * Math.min(width, height);
	return [
		[isLost, place, "error", "The server does not have this picture any more. Remove it, and add it again."],
		[start >= end, place, "error", "It ends before it begins."],
		[scale === 0, place, "hint", "At strength 0 this picture has no effect."],
		[scale >= 1 && layers === "full" && prompt.trim(), place, "hint", "At this strength the text counts for little. Try 0.5 to 0.8."],
		[isLong && crop === "center", place, "hint", "Only the middle square is seen. Choose another crop below."],
		[adapter.takes.includes("face_embedding"), place, "hint", "This adapter reads the face. The picture must show one."],
	].filter(() => on);
}

function noteTogether({ start, prompt, negative_prompt: negative, steps, guidance_scale: own }, active, model) {
	const guidance = own ?? model.guidance_scale;
	const full = active.filter((one) => one.layers === "full" && !one.mask && one.scale > 0);
	const sum = full.reduce((total, one) => total + one.scale, 0);
	const { image, strength } = start;
	return [
		[full.length > 1 && sum > 1.6, "references", "hint",
			`The strengths add up to ${sum.toFixed(2)}. Lower them, or give each picture its own area.`],
		[!prompt.trim() && !active.length && !image, "prompt", "hint", "Without a text and a picture, the model invents something."],
		[negative.trim() && guidance <= 1, "negative_prompt", "hint", "A negative text acts only with guidance above 1."],
		[guidance > GARISH, "guidance_scale", "hint", "Guidance this high makes colors garish."],
		[image && Math.floor((steps ?? model.steps) * strength) < 1, "strength", "error", "That is less than one step. Repaint more."],
	];
}

const noteLimits = ({ steps, count, width, height }, model, limits) => [
	[(steps ?? model.steps) > limits.steps, "steps", "error", `This server makes at most ${limits.steps} steps.`],
	[count > limits.count, "count", "error", `This server makes at most ${limits.count} pictures at once.`],
	[Math.max(width, height) > limits.side, "width", "error", `A side has at most ${limits.side} pixels here.`],
];
