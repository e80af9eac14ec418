// The settings of a picture as text: for the API, for `imprompt generate --job`, and for Python.

import { listPictures } from "./settings.js";

/** The name of a picture's file, which the user saves beside the job. */
function fileOf(id, names) {
	const name = (names[id] ?? "").replace(/[^\w-]+/g, "-").replace(/^-+|-+$/g, "");
	return `${name || id.slice(0, 12)}.png`;
}

/** The values of a job: files in place of ids. */
function asJob({ model, references = [], controls = [], ...rest }, names) {
	const withFiles = (values) => Object.fromEntries(Object.entries(values).map(([name, value]) =>
		[name, ["images", "image", "mask", "init_image", "inpaint"].includes(name) ? fileOf(value, names) : value]));
	return { base: model, ...withFiles(rest), references: references.map(withFiles), controls: controls.map(withFiles) };
}

function explain(request, names) {
	const files = listPictures(request).map((id) => fileOf(id, names));
	const lines = files.length ? [`# Save the pictures here: ${files.join(", ")}`] : [];
	return request.model === "mini" ? lines : [...lines, `# base: what this server calls ${request.model}`];
}

export const Json = (request) => JSON.stringify(request, null, 2);

export function Toml(request, names) {
	const { references, controls, ...scalars } = asJob(request, names);
	// Strings, numbers and lists of JSON are those of TOML.
	const lines = (values) => Object.entries(values).map(([name, value]) => `${name} = ${JSON.stringify(value)}`);
	const tables = (title, list) => list.flatMap((one) => ["", `[[${title}]]`, ...lines(one)]);
	return [...explain(request, names), "# Then: imprompt generate --job job.toml", ...lines(scalars),
		...tables("references", references), ...tables("controls", controls), ""].join("\n");
}

export function Python(request, names) {
	// There are no true, false and null in a job, so its JSON is Python.
	const values = Object.entries(asJob(request, names)).filter(([, value]) => value.length !== 0);
	return [...explain(request, names), "import imprompt", "", "job = imprompt.Job(",
		...values.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`), ")",
		"for picture, made in imprompt.run_job(job):", "    imprompt.save_picture(picture, made.output)", ""].join("\n");
}
