// The jobs API of the server, which docs/serving.md describes.

const ENDS = ["done", "error", "canceled"];
const EVENTS = ["queued", "started", "step", "preview", "warning", "image", ...ENDS];

export const isOver = (job) => ["done", "failed", "canceled"].includes(job.status);
export const asSentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** status: 0 without an answer; place: the field at fault. */
export class ApiError extends Error {
	constructor(message, { status = 0, place = "" } = {}) {
		super(message);
		Object.assign(this, { status, place });
	}
}

export async function call(method, path, body) {
	const type = body instanceof Blob ? body.type : "application/json";
	const content = body instanceof Blob ? body : JSON.stringify(body);
	const options = { method, body: content, headers: { "content-type": type } };
	// An address that holds a key would be refused.
	const response = await fetch(location.origin + path, options).catch(() => {
		throw new ApiError("The server does not answer. Does it still run?");
	});
	if (response.ok) return response;
	const { status } = response;
	const { error } = await response.json().catch(() => ({}));
	const message = asSentence(error?.message ?? `The server answers ${status}`);
	throw new ApiError(message, { status, place: error?.param ?? "" });
}

const json = async (...request) => (await call(...request)).json();

export const readCapabilities = () => json("GET", "/api/capabilities");
export const listExamples = () => json("GET", "/api/examples");
export const drawExample = () => json("POST", "/api/examples/draw", {});
export const sendPicture = (blob) => json("POST", "/api/assets", blob);
export const submitJob = (request) => json("POST", "/api/jobs", request);
export const readJob = (id) => json("GET", `/api/jobs/${id}`);
export const cancelJob = (id) => json("DELETE", `/api/jobs/${id}`);

export const pictureUrl = (id) => (id ? `/api/assets/${id}` : "");
export const viewUrl = (id, options) => `${pictureUrl(id)}/view?${new URLSearchParams(options)}`;

/**
 * Call onEvent(name, data) for all events of a job, past ones first. After a loss, of which onLost(isFinal) hears, the
 * browser connects again with Last-Event-ID.
 */
export function followJob(id, onEvent, onLost) {
	const source = new EventSource(`/api/jobs/${id}/events`);
	for (const name of EVENTS) {
		source.addEventListener(name, ({ data }) => {
			// "error" is an event of the browser, and one of the server, which has data.
			if (!data) return onLost(source.readyState === EventSource.CLOSED);
			if (ENDS.includes(name)) source.close();
			onEvent(name, JSON.parse(data));
		});
	}
}
