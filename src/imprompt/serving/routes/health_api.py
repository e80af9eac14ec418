"""For those who watch the server: /healthz, /readyz, /metrics."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from imprompt.serving.answers import ReadyAnswer, describe_file
from imprompt.serving.service import Service


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes."""

    @router.get("/healthz")
    async def answer() -> dict[str, str]:
        """Return that the process lives."""
        return {"status": "ok"}

    @router.get("/readyz", responses={200: {"model": ReadyAnswer}, 503: {"model": ReadyAnswer}})
    async def report() -> JSONResponse:
        """Return whether the server takes work; 503 and the reason if not."""
        fault = service.find_fault()
        state: dict[str, Any] = {"ready": fault is None, "loaded": service.engine.store.names}
        return JSONResponse(state | ({"reason": fault} if fault else {}), 200 if fault is None else 503)

    @router.get("/metrics", response_class=Response, responses=describe_file("text/plain"))
    async def measure() -> Response:
        """Return all counters in Prometheus' text format."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)
