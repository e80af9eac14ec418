// What settings mean together, in words for the place beside the control.

import { activeReferences } from "./settings.js";

const GARISH = 12;

/** Return notes [place, kind, text]; the kind is "hint", or "error", with which nothing can be generated. */
export function listNotes(settings, model, limits) {
  const references = settings.references.flatMap((one, index) =>
    one.on ? keepTrue(noteReference(one, settings, model)).map((note) => [`references[${index}]`, ...note]) : []);
  return [...references, ...keepTrue(noteScalars(settings, model, limits))];
}

/** Drop the first item of each note, which says whether the note is to the point. */
const keepTrue = (notes) => notes.filter(([isTrue]) => isTrue).map(([, ...note]) => note);

function noteReference(one, settings, model) {
  const adapter = model.adapters.find(({ name }) => name === settings.adapter) ?? model.adapters[0];
  const { width, height } = one.image;
  const isLong = Math.max(width, height) > 1.4 * Math.min(width, height);
  return [
    [one.start >= one.end, "error", "It ends before it begins."],
    [one.scale === 0, "hint", "At strength 0 this picture has no effect."],
    [one.scale < 0, "hint", "Below 0 the result moves away from this picture."],
    [one.scale >= 1 && one.layers === "full" && settings.prompt.trim(), "hint",
      "At this strength the text counts for little. Try 0.5 to 0.8."],
    [isLong && one.crop === "center", "hint", "Only the middle square is seen. Choose another crop below."],
    [adapter.takes.includes("face_embedding"), "hint", "This adapter reads the face. The picture must show one."],
  ];
}

function noteScalars(settings, model, limits) {
  const { start, prompt } = settings;
  const steps = settings.steps ?? model.steps;
  const guidance = settings.guidance_scale ?? model.guidance_scale;
  const full = activeReferences(settings).filter((one) => one.layers === "full" && !one.mask && one.scale > 0);
  const sum = full.reduce((total, one) => total + one.scale, 0);
  const isBlank = !prompt.trim() && !activeReferences(settings).length && !start.image;
  return [
    [full.length > 1 && sum > 1.6, "references", "hint",
      `The strengths add up to ${sum.toFixed(2)}. Lower them, or give each picture its own area.`],
    [isBlank, "prompt", "hint", "Without a text and a picture, the model invents something."],
    [settings.negative_prompt.trim() && guidance <= 1, "negative_prompt", "hint",
      "A negative text acts only with guidance above 1."],
    [guidance > GARISH, "guidance_scale", "hint", "Guidance this high makes colors garish."],
    [steps > limits.steps, "steps", "error", `This server makes at most ${limits.steps} steps.`],
    [settings.count > limits.count, "count", "error", `This server makes at most ${limits.count} pictures at once.`],
    [Math.max(settings.width, settings.height) > limits.side, "width", "error", `A side has at most ${limits.side} pixels here.`],
    [start.image && Math.floor(steps * start.strength) < 1, "strength", "error",
      "That is less than one step. Repaint more, or take more steps."],
    [start.image && start.mask && start.strength < 0.5, "strength", "hint",
      "The painted area keeps much of what is there. Repaint more to replace it."],
  ];
}
