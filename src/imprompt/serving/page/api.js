// The jobs API of the server; docs/serving.md describes it.

export const OVER = ["done", "failed", "canceled"];
const ENDS = ["done", "error", "canceled"];
const EVENTS = ["queued", "started", "step", "preview", "warning", "image", ...ENDS];

export class ApiError extends Error {
  /** status 0: no answer; place: the field at fault; wait: seconds after which the server may have room. */
  constructor(status, message, { place = "", wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, place, wait });
  }
}

async function call(method, path, body) {
  const isBlob = body instanceof Blob;
  const headers = body === undefined ? {} : { "content-type": isBlob ? body.type : "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, body: isBlob || body === undefined ? body : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "The server does not answer. Does it still run?");
  }
  if (response.ok) return response;
  const { message, param } = (await response.json().catch(() => ({}))).error ?? {};
  const wait = Number(response.headers.get("retry-after")) || 0;
  throw new ApiError(response.status, asSentence(message ?? `The server answers ${response.status}`), { place: param ?? "", wait });
}

export const asSentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

const json = async (...request) => (await call(...request)).json();

export const readCapabilities = () => json("GET", "/api/capabilities");
export const listExamples = () => json("GET", "/api/examples");
export const drawExample = () => json("POST", "/api/examples/draw", {});
export const sendPicture = (blob) => json("POST", "/api/assets", blob);
export const submitJob = (request) => json("POST", "/api/jobs", request);
export const readJob = (id) => json("GET", `/api/jobs/${id}`);
export const cancelJob = (id) => json("DELETE", `/api/jobs/${id}`);
export const readBlob = async (url) => (await call("GET", url)).blob();

export const pictureUrl = (id) => `/api/assets/${id}`;
export function viewUrl(id, { model, adapter, crop }) {
  return `${pictureUrl(id)}/view?${new URLSearchParams({ model, adapter, crop })}`;
}

/**
 * Call onEvent(name, data) for all events of a job, past ones first. The browser connects again by itself, with
 * Last-Event-ID; onLost(isFinal) is called at each loss. Returns a function that stops it.
 */
export function followJob(id, onEvent, onLost) {
  const source = new EventSource(`/api/jobs/${id}/events`);
  for (const name of EVENTS) {
    source.addEventListener(name, (event) => {
      // "error" is the name both of the browser's event and of the server's, which has data.
      if (event.data === undefined) return onLost(source.readyState === EventSource.CLOSED);
      if (ENDS.includes(name)) source.close();
      onEvent(name, JSON.parse(event.data));
    });
  }
  return () => source.close();
}
