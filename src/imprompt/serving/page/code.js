// The settings of a picture as text: for this API, for `imprompt generate --job`, and for Python.

/** What a job file calls the picture of an id. */
function fileOf(id, names) {
  const name = (names[id] ?? id.slice(0, 12)).replace(/[^\w-]+/g, "-").replace(/^-+|-+$/g, "");
  return `${name || id.slice(0, 12)}.png`;
}

/** The values of a job: the request with files in place of ids, and without what only the server knows. */
function asJob(request, names) {
  const { model, count, references = [], controls = [], init_image: init, inpaint, ...rest } = request;
  const file = (id) => (id ? fileOf(id, names) : undefined);
  const job = { base: model, ...rest };
  if (init) job.init_image = file(init);
  if (inpaint) job.inpaint = file(inpaint);
  job.references = references.map((one) => ({ ...one, images: file(one.images), ...(one.mask && { mask: file(one.mask) }) }));
  job.controls = controls.map((one) => ({ ...one, image: file(one.image) }));
  return job;
}

function listFiles(request, names) {
  const ids = [...(request.references ?? []).flatMap((one) => [one.images, one.mask]), request.init_image, request.inpaint,
    ...(request.controls ?? []).map((one) => one.image)];
  return [...new Set(ids.filter(Boolean))].map((id) => fileOf(id, names));
}

function explain(request, names) {
  const files = listFiles(request, names);
  const lines = files.length ? [`# Save the pictures beside this file: ${files.join(", ")}`] : [];
  if (!request.model.startsWith("mini")) lines.push(`# base: the model that this server calls ${request.model}`);
  return lines;
}

/** JSON's strings, numbers and lists are TOML's too. */
const toml = (values) => Object.entries(values).map(([name, value]) => `${name} = ${JSON.stringify(value)}`);

export function asToml(request, names) {
  const { references, controls, ...values } = asJob(request, names);
  const lines = [...explain(request, names), "# imprompt generate --job job.toml", ...toml(values)];
  for (const one of references) lines.push("", "[[references]]", ...toml(one));
  for (const one of controls) lines.push("", "[[controls]]", ...toml(one));
  return `${lines.join("\n")}\n`;
}

function python(value, indent = "") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map((one) => python(one, indent)).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `"${key}": ${python(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

export function asPython(request, names) {
  const values = Object.entries(asJob(request, names)).filter(([name, value]) => name !== "controls" || value.length);
  return [
    ...explain(request, names),
    "import imprompt",
    "",
    "job = imprompt.Job(",
    ...values.map(([name, value]) => `    ${name}=${python(value)},`),
    ")",
    "for picture, settings in imprompt.run_job(job):",
    "    imprompt.save_picture(picture, settings.output)",
    "",
  ].join("\n");
}

export const asJson = (request) => `${JSON.stringify(request, null, 2)}\n`;
