// What settings mean together, in words beside the control that it is about.

import { activeReferences } from "./settings.js";

const HIGH_GUIDANCE = 12;

/** Return notes {place, text, kind}: kind is "hint", "warning", or "error", which keeps Generate from working. */
export function listNotes(settings, model, limits) {
  return [
    ...noteReferences(settings, model),
    ...noteText(settings, model),
    ...noteSampling(settings, model, limits),
    ...noteStart(settings, model),
  ];
}

const hint = (place, text) => ({ place, text, kind: "hint" });
const warning = (place, text) => ({ place, text, kind: "warning" });
const error = (place, text) => ({ place, text, kind: "error" });

function noteReferences(settings, model) {
  const notes = settings.references.flatMap((one, index) => noteReference(one, `references[${index}]`, settings, model));
  const active = activeReferences(settings);
  const total = active.reduce((sum, one) => sum + Math.max(0, one.scale), 0);
  if (active.length > 1 && total > 1.6 && active.filter((one) => !one.mask && one.layers === "full").length > 1) {
    notes.push(hint("references", `The strengths add up to ${total.toFixed(2)}. Lower them, or give each its own area.`));
  }
  return notes;
}

function noteReference(one, place, settings, model) {
  if (!one.image || !one.on) return [];
  const notes = [];
  const adapter = one.adapter || settings.adapter || model.adapters[0]?.name;
  const takes = model.adapters.find((known) => known.name === adapter)?.takes ?? [];
  if (one.scale === 0) notes.push(hint(place, "At strength 0 this picture has no effect."));
  if (one.scale < 0) notes.push(hint(place, "Below 0 the result moves away from this picture."));
  if (one.scale >= 1 && settings.prompt.trim() && one.layers === "full") {
    notes.push(hint(place, "At this strength the text counts for little. Try 0.5 to 0.8."));
  }
  if (one.start >= one.end) notes.push(error(place, "It ends before it begins. Move “From step” or “To step”."));
  if (takes.includes("face_embedding")) notes.push(hint(place, "This adapter reads the face. The picture must show one."));
  if (one.crop === "center" && isLong(one.image)) {
    notes.push(hint(place, "Only the middle square is seen. Another crop is under “When, where, crop”."));
  }
  return notes;
}

const isLong = ({ width, height }) => Math.max(width, height) > 1.4 * Math.min(width, height);

function noteText(settings, model) {
  const guidance = settings.guidance_scale ?? model.guidance_scale;
  const notes = [];
  if (settings.negative_prompt.trim() && guidance <= 1) {
    notes.push(warning("negative_prompt", "A negative text acts only with guidance above 1."));
  }
  if (!settings.prompt.trim() && !activeReferences(settings).length && !settings.start.image) {
    notes.push(hint("prompt", "Without a text and a picture, the model invents something."));
  }
  return notes;
}

function noteSampling(settings, model, limits) {
  const notes = [];
  const guidance = settings.guidance_scale ?? model.guidance_scale;
  if (guidance > HIGH_GUIDANCE) notes.push(warning("guidance_scale", "Guidance this high makes colors garish."));
  if ((settings.steps ?? model.steps) > limits.steps) notes.push(error("steps", `This server makes at most ${limits.steps} steps.`));
  if ((settings.count ?? 1) > limits.count) notes.push(error("count", `This server makes at most ${limits.count} pictures at once.`));
  if (Math.max(settings.width ?? 0, settings.height ?? 0) > limits.side) {
    notes.push(error("width", `A side has at most ${limits.side} pixels here.`));
  }
  return notes;
}

function noteStart({ start, steps }, model) {
  if (!start.image) return [];
  const made = Math.floor((steps ?? model.steps) * start.strength);
  const notes = made < 1 ? [error("strength", "That is less than one step. Repaint more, or take more steps.")] : [];
  if (start.mask && start.strength < 0.5) {
    notes.push(hint("strength", "The painted area keeps much of what is there. Repaint more to replace it."));
  }
  return notes;
}
