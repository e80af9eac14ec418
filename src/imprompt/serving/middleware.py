"""What happens around every request: its id, access, limits, headers, log and count.

It is plain ASGI: a middleware of Starlette's BaseHTTPMiddleware would hide from a route that its client has
left.
"""

import logging
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imprompt.serving.access import Access
from imprompt.serving.api_error import ApiError
from imprompt.serving.failures import convert_error, render_error
from imprompt.serving.metrics import Metrics

_log = logging.getLogger("imprompt.serving.requests")

_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_QUIET = ("/healthz", "/readyz", "/metrics", "/api/jobs/{name}", "/api/capabilities")


class Gate:
    """Checks, names, counts and logs every request; no prompt and no key is logged.

    Args:
        app: what is behind it
        access: who may come in
        max_bytes: the most bytes of a body
        metrics: counts the answers
        is_draining: whether new work is refused because the server is about to stop
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        max_bytes: int,
        metrics: Metrics,
        is_draining: Callable[[], bool],
    ) -> None:
        self._app, self._access, self._max_bytes = app, access, max_bytes
        self._metrics, self._is_draining = metrics, is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, name, status = time.perf_counter(), f"req_{secrets.token_hex(8)}", 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {**_HEADERS, "x-request-id": name}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in own.items()),
                ]
            await send(message)

        try:
            await self._handle(scope, receive, answer)
        finally:
            self._report(scope, name, status, time.perf_counter() - start)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        address = (scope.get("client") or ("unknown", 0))[0]
        try:
            scope.setdefault("state", {})["client"] = self._access.check(method, path, headers, address)
            self._check_work(method, headers)
        except ApiError as error:
            self._metrics.rejected.labels(error.code or str(error.status_code)).inc()
            await render_error(error, path)(scope, receive, send)
            return
        await self._app(scope, self._limit(receive), send)

    def _check_work(self, method: str, headers: dict[str, str]) -> None:
        if method == "POST" and self._is_draining():
            wait = {"Retry-After": "10", "x-should-retry": "false"}
            raise ApiError(
                503, "the server is about to stop", kind="server_error", code="draining", headers=wait
            )
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self._max_bytes:
            raise self._too_large()

    def _limit(self, receive: Receive) -> Receive:
        """Count the bytes of a body that comes in parts and does not say how long it is."""
        seen = 0

        async def receive_limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise self._too_large()
            return message

        return receive_limited

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a request may have {self._max_bytes:,} bytes", code="body_too_large")

    def _report(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        code = str(status or 499)  # 499: the client left before the answer
        self._metrics.requests.labels(route, code).inc()
        if route not in _QUIET or status >= 400:
            _log.info("%s %s %s %s %.3f s", name, scope["method"], route, code, seconds)


async def answer_error(request: object, error: Exception) -> object:
    """Answer with an error; FastAPI calls it for everything that a route raises."""
    path = getattr(request, "url").path  # noqa: B009
    converted = convert_error(error)
    if converted.status_code == 500 and not isinstance(error, ApiError):
        _log.error("a request failed", exc_info=error)
    return render_error(converted, path)
