"""The part of A1111's API that its clients use: /sdapi/v1/*, and /controlnet/* for IP-Adapter units."""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import Request

from imprompt.generation.job.samplers import SAMPLERS
from imprompt.runtime.picture_files import read_parameters
from imprompt.serving.a1111_requests import SCHEDULERS, Translator, WebuiRequest, name_adapter
from imprompt.serving.answers import WEBUI_FAULTS, WebuiAnswer, describe_answers
from imprompt.serving.api_error import ApiError
from imprompt.serving.encoding import convert_data_uri, encode_file
from imprompt.serving.forms import parse_json
from imprompt.serving.jobs import OVER, ServedJob
from imprompt.serving.routes.waiting import JobCanceled, client_of, wait_for_job
from imprompt.serving.service import Service
from imprompt.serving.settings import ServedModel

_MAX_CLIENTS = 1000
_EMPTY_LISTS = (
    *(
        "sd-vae",
        "upscalers",
        "latent-upscale-modes",
        "loras",
        "hypernetworks",
        "face-restorers",
        "prompt-styles",
    ),
    "realesrgan-models",
)
_EMPTY_OBJECTS: Mapping[str, dict[str, Any]] = {
    "cmd-flags": {},
    "embeddings": {"loaded": {}, "skipped": {}},
    "memory": {"ram": {}, "cuda": {}},
    "scripts": {"txt2img": ["controlnet"], "img2img": ["controlnet"]},
}


def add_routes(router: APIRouter, service: Service) -> None:
    """Add the routes."""
    webui = WebuiApi(service)
    body = {"content": {"application/json": {"schema": {"type": "object"}}}, "required": True}
    for path, make in (("txt2img", webui.make_from_text), ("img2img", webui.make_from_picture)):
        router.add_api_route(
            f"/sdapi/v1/{path}",
            make,
            methods=["POST"],
            response_class=JSONResponse,
            responses=describe_answers(200, WebuiAnswer) | WEBUI_FAULTS,
            openapi_extra={"requestBody": body},
        )
    router.add_api_route(
        "/sdapi/v1/progress", webui.measure_progress, methods=["GET"], responses=WEBUI_FAULTS
    )
    router.add_api_route("/sdapi/v1/interrupt", webui.interrupt, methods=["POST"], responses=WEBUI_FAULTS)
    router.add_api_route("/sdapi/v1/skip", webui.interrupt, methods=["POST"], responses=WEBUI_FAULTS)
    router.add_api_route("/sdapi/v1/options", webui.read_options, methods=["GET"], responses=WEBUI_FAULTS)
    router.add_api_route(
        "/sdapi/v1/options",
        webui.set_options,
        methods=["POST"],
        responses=WEBUI_FAULTS,
        openapi_extra={"requestBody": body},
    )
    _add_lists(router, service)
    _add_controlnet(router, service)


def _add_lists(router: APIRouter, service: Service) -> None:
    def answer(path: str, value: Any) -> None:
        router.add_api_route(
            f"/sdapi/v1/{path}", _constant(value), methods=["GET"], responses=WEBUI_FAULTS, name=path
        )

    for path in _EMPTY_LISTS:
        answer(path, [])
    for path, value in _EMPTY_OBJECTS.items():
        answer(path, value)
    answer("sd-models", [_describe_model(model) for model in service.settings.models])
    titles = dict.fromkeys(sampler.title for sampler in SAMPLERS.values())
    answer("samplers", [{"name": title, "aliases": [], "options": {}} for title in titles])
    answer(
        "schedulers", [{"name": name, "label": label, "aliases": None} for name, label in SCHEDULERS.items()]
    )


def _describe_model(model: ServedModel) -> dict[str, Any]:
    return {
        "title": model.name,
        "model_name": model.name,
        "hash": None,
        "sha256": None,
        "filename": model.name,
        "config": None,
    }


def _add_controlnet(router: APIRouter, service: Service) -> None:
    models = service.settings.models
    adapters = [name_adapter(adapter) for model in models for adapter in model.adapters]
    controls = [control for model in models for control in model.controls]
    names = [*dict.fromkeys((*adapters, *controls))]
    modules = ["none", "ip-adapter-auto", "ip-adapter_clip_h", "ip-adapter_clip_g"]
    types = {
        kind: {
            "module_list": modules,
            "model_list": ["None", *some],
            "default_option": "none",
            "default_model": "None",
        }
        for kind, some in (("All", names), ("IP-Adapter", adapters))
    }
    answers: dict[str, Any] = {
        "version": {"version": 3},
        "model_list": {"model_list": names},
        "module_list": {"module_list": modules, "module_detail": {}},
        "control_types": {"control_types": types},
        "settings": {"control_net_unit_count": service.settings.limits.pictures},
    }
    for path, value in answers.items():
        router.add_api_route(
            f"/controlnet/{path}",
            _constant(value),
            methods=["GET"],
            responses=WEBUI_FAULTS,
            name=f"controlnet {path}",
        )


def _constant(value: Any) -> Any:
    """Return a route that always has the same answer."""

    async def read() -> Any:
        return value

    return read


class WebuiApi:
    """Pictures as clients of A1111's web UI ask for them.

    Args:
        service: makes them
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._models: dict[str, str] = {}
        self._jobs: dict[str, ServedJob] = {}

    async def make_from_text(self, request: Request) -> JSONResponse:
        """Make pictures from a text and IP-Adapter units."""
        return await self._make(request, has_picture=False)

    async def make_from_picture(self, request: Request) -> JSONResponse:
        """Make pictures that begin with a picture; a mask is white where it is repainted."""
        return await self._make(request, has_picture=True)

    async def _make(self, request: Request, *, has_picture: bool) -> JSONResponse:
        service, client = self._service, client_of(request)
        service.engine.check_room()
        values = parse_json(await request.body())
        served = self._choose_model(client, values)
        translator = Translator(values, served, service.assets, service.settings.limits)
        webui = await asyncio.to_thread(translator.translate, has_picture=has_picture)
        job = await service.submit(webui.request, client)
        self._remember(client, job)
        # A request that another one interrupts is answered with the pictures that there are.
        with contextlib.suppress(JobCanceled):
            await wait_for_job(request, service, job)
        return JSONResponse(await asyncio.to_thread(_describe_result, webui, job))

    def _choose_model(self, client: str, values: Mapping[str, Any]) -> ServedModel:
        overrides = values.get("override_settings")
        name = overrides.get("sd_model_checkpoint") if isinstance(overrides, dict) else None
        served = self._service.settings.find_model(name or self._models.get(client))
        if served is None:
            raise ApiError(404, f"Checkpoint not found: {str(name)[:80]!r}", param="sd_model_checkpoint")
        return served

    def _remember(self, client: str, job: ServedJob) -> None:
        self._jobs[client] = job
        while len(self._jobs) > _MAX_CLIENTS:
            del self._jobs[next(iter(self._jobs))]

    async def measure_progress(self, request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """Return the progress of this client's latest job."""
        job = self._jobs.get(client_of(request))
        if job is None or job.status in OVER:
            return _describe_progress(0.0, 0.0, 0, (0, 0), None)
        steps = [
            job.progress.get(index, (0, picture.job.steps)) for index, picture in enumerate(job.plan.pictures)
        ]
        done, whole = (sum(column) for column in zip(*steps, strict=True))
        preview = None if skip_current_image else job.find_preview()
        image = preview and convert_data_uri(preview, "PNG")
        eta = self._service.jobs.estimate(job)
        return _describe_progress(done / whole, eta, len(steps), steps[0], image)

    async def interrupt(self, request: Request) -> dict[str, Any]:
        """Stop this client's latest job before its next step."""
        job = self._jobs.get(client_of(request))
        if job is not None and job.status not in OVER:
            self._service.jobs.cancel(job)
        return {}

    async def read_options(self, request: Request) -> dict[str, Any]:
        """Return the options that clients read."""
        served = self._service.settings.find_model(self._models.get(client_of(request)))
        name = served.name if served else self._service.settings.models[0].name
        return {
            "sd_model_checkpoint": name,
            "sd_checkpoint_hash": "",
            "sd_vae": "Automatic",
            "samples_format": "png",
        }

    async def set_options(self, request: Request) -> dict[str, Any]:
        """Choose a model for this client; other options have no effect."""
        name = parse_json(await request.body()).get("sd_model_checkpoint")
        if name is None:
            return {}
        served = self._service.settings.find_model(str(name))
        if served is None:
            raise ApiError(404, f"Checkpoint not found: {str(name)[:80]!r}", param="sd_model_checkpoint")
        self._models[client_of(request)] = served.name
        while len(self._models) > _MAX_CLIENTS:
            del self._models[next(iter(self._models))]
        return {}


def _describe_progress(
    progress: float, eta: float, jobs: int, steps: tuple[int, int], image: str | None
) -> dict[str, Any]:
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "imprompt" if jobs else "",
        "job_count": jobs,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S") if jobs else "0",
        "job_no": 0,
        "sampling_step": steps[0],
        "sampling_steps": steps[1],
    }
    return {
        "progress": round(progress, 4),
        "eta_relative": eta,
        "state": state,
        "current_image": image,
        "textinfo": None,
    }


def _describe_result(webui: WebuiRequest, job: ServedJob) -> dict[str, Any]:
    """Return pictures, parameters and info; info is a text that holds JSON."""
    request, seeds = webui.request, [picture.seed for picture in job.pictures]
    texts = [_read_text(picture.path) for picture in job.pictures]
    first = job.plan.pictures[0].job
    info = {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(seeds),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(seeds),
        "seed": first.seed,
        "all_seeds": seeds,
        "subseed": first.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": webui.sampler,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": len(seeds),
        "sd_model_name": webui.served.name,
        "clip_skip": request.clip_skip or 1,
        "infotexts": texts,
        "interrupted": job.status == "canceled",
        "warnings": [*webui.warnings, *job.warnings],
    }
    images = [encode_file(picture.path) for picture in job.pictures]
    return {"images": images, "parameters": webui.parameters, "info": json.dumps(info)}


def _read_text(path: Any) -> str:
    with Image.open(path) as picture:
        return read_parameters(picture)
