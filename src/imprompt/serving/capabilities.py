"""What a server can do, for pages and programs that build their controls from it."""

import functools
from pathlib import Path
from typing import Any, get_args

from imprompt.checkpoint import EMBEDDED, EMBEDDED_WEIGHTS, PUBLISHED, describe
from imprompt.errors import CheckpointError
from imprompt.generation.job.samplers import SAMPLERS
from imprompt.inputs.choices import Combine, CropName, Noise
from imprompt.serving.requests import MAX_PREVIEWS, MAX_REFERENCES, GenerationRequest
from imprompt.serving.service import Service
from imprompt.serving.settings import ServedModel


def describe_capabilities(service: Service) -> dict[str, Any]:
    """Return models, adapters, samplers, choices and limits, and the state of the queue."""
    limits = service.settings.limits
    return {
        "models": [_describe_model(service, model) for model in service.settings.models],
        "schedulers": list(SAMPLERS),
        "crops": list(get_args(CropName)),
        "combine": list(get_args(Combine)),
        "noise": list(get_args(Noise)),
        "limits": {
            **limits.model_dump(exclude={"assets_megabytes", "finished_jobs", "decode_seconds"}),
            "references": MAX_REFERENCES,
            "previews": MAX_PREVIEWS,
        },
        "queue": {
            "waiting": service.engine.waiting,
            "running": service.engine.running,
            "estimated_seconds": round(service.engine.estimate_seconds(), 1),
        },
        "can_draw": service.options.draw is not None,
        "request": GenerationRequest.model_json_schema(),
    }


def _describe_model(service: Service, model: ServedModel) -> dict[str, Any]:
    store = service.engine.store
    return {
        "name": model.name,
        "loaded": model.name in store.names,
        "adapters": [describe_adapter(name) for name in model.adapters],
        "modes": store.find_modes(model.name),
        "controls": list(model.controls),
        "steps": model.steps,
        "guidance_scale": model.guidance_scale,
        "scheduler": model.scheduler,
        "width": model.width,
        "height": model.height,
    }


@functools.cache
def describe_adapter(name: str) -> dict[str, Any]:
    """Return an adapter's variant, the number of its tokens for a picture, and what its projection takes.

    Of an adapter that is not on this machine yet only the variant may be known.
    """
    known: dict[str, Any] = {"name": name, "variant": None, "tokens": None, "takes": []}
    if name in PUBLISHED:
        return known | {"variant": PUBLISHED[name].variant}
    path = EMBEDDED_WEIGHTS / "adapter" / EMBEDDED[name].file if name in EMBEDDED else Path(name)
    if not path.is_file():
        return known
    try:
        description = describe(path)
    except CheckpointError:
        return known
    facts = {"variant": description.variant, "tokens": description.tokens, "takes": list(description.takes)}
    return known | facts
