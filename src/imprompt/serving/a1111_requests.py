"""Requests of A1111's web UI with ControlNet's IP-Adapter units, translated into requests of our own.

The fields are those of stable-diffusion-webui (modules/api/models.py) and of sd-webui-controlnet's
ControlNetUnit. What would change the picture and cannot be done here is refused; what only tunes it becomes a
warning.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import ImageOps

from imprompt.checkpoint.published import PUBLISHED
from imprompt.generation.job.samplers import SAMPLERS
from imprompt.inputs.image import load_image
from imprompt.serving.api_error import ApiError
from imprompt.serving.assets import AssetStore, decode_data, store_mask
from imprompt.serving.requests import GenerationRequest, parse_request
from imprompt.serving.settings import Limits, ServedModel

DEFAULT_STEPS, DEFAULT_SIDE, DEFAULT_STRENGTH = 50, 512, 0.75
"""What a request has that does not say it, as in the web UI."""

SCHEDULERS = {"automatic": "Automatic", "karras": "Karras"}
"""The names and labels of noise schedules."""

_PREVIEWS = 3
_REFUSED = (
    "enable_hr",
    "restore_faces",
    "tiling",
    "script_name",
    "subseed_strength",
    "styles",
    "refiner_checkpoint",
)
"""Fields that would change the picture; any value but an empty one is refused."""

_NEUTRAL = {
    "inpaint_full_res": (False, 0),
    "mask_blur": (0,),
    "eta": (1.0, 0, None),
    "s_noise": (1.0, None),
}
"""Fields that tune the picture, with the values that change nothing."""

_UNIT_ALIASES = {
    "guidance": "guidance_end",
    "input_image": "image",
    "mask_image": "mask",
    "lowvram": "low_vram",
}
_HASH = re.compile(r" \[[0-9a-f]+\]$")


@dataclass(frozen=True)
class WebuiRequest:
    """A request of the web UI.

    Args:
        request: the same as one of our own
        served: its model
        parameters: the fields as they were sent, without pictures
        sampler: the web UI's name of the sampler
        warnings: about fields that were not used
    """

    request: GenerationRequest
    served: ServedModel
    parameters: dict[str, Any]
    sampler: str
    warnings: list[str]


class Translator:
    """Translates one request.

    Args:
        values: its fields
        served: its model
        assets: where its pictures are stored
        limits: the server's
    """

    def __init__(
        self, values: Mapping[str, Any], served: ServedModel, assets: AssetStore, limits: Limits
    ) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._served, self._assets, self._limits = served, assets, limits
        self._warnings: list[str] = []

    def translate(self, *, has_picture: bool) -> WebuiRequest:
        """Return the request.

        Args:
            has_picture: whether it came to img2img, which begins with a picture

        Raises:
            ApiError: 404 for an unknown sampler, 422 for what cannot be done
            ImageError, ConfigError: a picture or a value that is not allowed
        """
        values = self._values
        self._refuse_unsupported()
        name, sampler = find_sampler(
            str(values.get("sampler_name") or values.get("sampler_index") or "Euler"),
            str(values.get("scheduler") or "automatic"),
        )
        own = {
            "model": self._served.name,
            "prompt": values.get("prompt", ""),
            "negative_prompt": values.get("negative_prompt", ""),
            "seed": values.get("seed", -1),
            "steps": values.get("steps", DEFAULT_STEPS),
            "guidance_scale": _to_float(values.get("cfg_scale", 7.0)),
            "width": values.get("width", DEFAULT_SIDE),
            "height": values.get("height", DEFAULT_SIDE),
            "count": self._count(),
            "scheduler": name,
            "previews": _PREVIEWS,
            **self._read_overrides(),
            **(self._read_start() if has_picture else {}),
            **self._read_units(),
        }
        self._warn_of_others(has_picture=has_picture)
        shown = {
            key: value
            for key, value in values.items()
            if key not in ("init_images", "mask", "alwayson_scripts")
        }
        return WebuiRequest(parse_request(own), self._served, shown, sampler, self._warnings)

    def _count(self) -> int:
        counts = [self._values.get(name, 1) for name in ("batch_size", "n_iter")]
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ApiError(422, "batch_size and n_iter must be whole numbers from 1 on")
        return counts[0] * counts[1]

    def _refuse_unsupported(self) -> None:
        for name in _REFUSED:
            if self._values.get(name):
                raise ApiError(422, f"{name} is not supported by this server: leave it out", param=name)
        scripts = self._values.get("alwayson_scripts") or {}
        if not isinstance(scripts, dict):
            raise ApiError(422, "alwayson_scripts must be an object")
        for name, script in scripts.items():
            if name.lower() != "controlnet" and _is_used(script):
                raise ApiError(
                    422, f"always on script {name[:60]} not found: this server has ControlNet only"
                )

    def _read_overrides(self) -> dict[str, Any]:
        overrides = self._values.get("override_settings") or {}
        if not isinstance(overrides, dict):
            raise ApiError(422, "override_settings must be an object")
        skip = overrides.get("CLIP_stop_at_last_layers")
        known = ("CLIP_stop_at_last_layers", "sd_model_checkpoint", "sd_vae")
        self._warnings += [
            f"override_settings.{name[:60]} was ignored" for name in overrides if name not in known
        ]
        return {"clip_skip": skip} if isinstance(skip, int) and skip > 1 else {}

    def _read_start(self) -> dict[str, Any]:
        pictures = self._values.get("init_images")
        if not isinstance(pictures, list) or not pictures:
            raise ApiError(404, "Init image not found")
        own: dict[str, Any] = {"init_image": self._store(pictures[0], "init_images[0]")}
        own["strength"] = _to_float(self._values.get("denoising_strength", DEFAULT_STRENGTH))
        if len(pictures) > 1:
            self._warnings.append("only the first of init_images was used")
        if self._values.get("mask"):
            own["inpaint"] = self._store(self._values["mask"], "mask")
            if self._values.get("inpainting_mask_invert"):
                own["inpaint"] = self._invert(own["inpaint"])
        return own

    def _invert(self, mask: str) -> str:
        gray = load_image(self._assets.find(mask).path, background=(0, 0, 0)).convert("L")
        return store_mask(ImageOps.invert(gray), self._assets)

    def _store(self, value: object, name: str) -> str:
        if not isinstance(value, str) or not value:
            raise ApiError(422, f"{name} must be a picture in base64")
        return self._assets.add_now(decode_data(value, name, limits=self._limits), name).id

    def _warn_of_others(self, *, has_picture: bool) -> None:
        """Name the fields that tune the picture and were not used."""
        self._warnings += [
            f"{name} was ignored"
            for name, neutral in _NEUTRAL.items()
            if has_picture and name in self._values and self._values[name] not in neutral
        ]

    # ControlNet

    def _read_units(self) -> dict[str, Any]:
        scripts = self._values.get("alwayson_scripts") or {}
        units = [
            unit
            for name, script in scripts.items()
            if name.lower() == "controlnet"
            for unit in (script or {}).get("args") or []
        ]
        references: list[dict[str, Any]] = []
        controls: list[dict[str, Any]] = []
        for place, given in enumerate(units):
            if not isinstance(given, dict):
                raise ApiError(422, f"ControlNet unit {place} must be an object")
            unit: dict[str, Any] = {
                _UNIT_ALIASES.get(str(name), str(name)): value for name, value in given.items()
            }
            if unit.get("enabled", True):
                name = f"ControlNet unit {place}"
                is_reference = "ip-adapter" in f"{unit.get('module')} {unit.get('model')}".lower().replace(
                    "_", "-"
                )
                (references if is_reference else controls).append(
                    self._read_reference(unit, name) if is_reference else self._read_control(unit, name)
                )
        return {"references": references, "controls": controls}

    def _read_reference(self, unit: Mapping[str, Any], name: str) -> dict[str, Any]:
        if unit.get("ipadapter_input"):
            raise ApiError(
                422, f"{name}: ipadapter_input is a pickled file, which is refused; send the image"
            )
        own: dict[str, Any] = {
            "images": self._read_images(unit.get("image"), name),
            "scale": _to_float(unit.get("weight", 1.0)),
            "start": _to_float(unit.get("guidance_start", 0.0)),
            "end": _to_float(unit.get("guidance_end", 1.0)),
        }
        if (adapter := self._find_adapter(unit.get("model"), name)) is not None:
            own["adapter"] = adapter
        if mask := unit.get("effective_region_mask"):
            own["mask"] = self._store(mask, f"{name}: effective_region_mask")
        if weights := unit.get("advanced_weighting"):
            own["layers"] = {str(number): _to_float(weight) for number, weight in enumerate(weights)}
        if unit.get("mask"):
            self._warnings.append(
                f"{name}: mask was ignored; a region of the picture is effective_region_mask"
            )
        return own

    def _read_images(self, given: object, name: str) -> list[str]:
        """Return the ids of a unit's pictures: one, {"image", "mask"}, or a list of these."""
        several = given if isinstance(given, list) else [given]
        pictures = [one.get("image") if isinstance(one, dict) else one for one in several]
        if not pictures or not all(pictures):
            raise ApiError(422, f"{name} has no image")
        return [self._store(picture, f"{name}: image") for picture in pictures]

    def _find_adapter(self, model: object, name: str) -> str | None:
        """Return the adapter that a name of ControlNet's list means; None: the default one."""
        plain = _HASH.sub("", str(model or "None"))
        stem = plain.removesuffix(".safetensors").removesuffix(".bin").removesuffix(".pth")
        if stem.lower() in ("none", "auto", "ip-adapter-auto"):
            return None
        for adapter in self._served.adapters:
            if stem in (adapter, name_adapter(adapter), _file_stem(adapter)):
                return adapter
        known = ", ".join(map(name_adapter, self._served.adapters)) or "none"
        raise ApiError(422, f"{name}: there is no model {plain[:80]!r}; the IP-Adapter models are {known}")

    def _read_control(self, unit: Mapping[str, Any], name: str) -> dict[str, Any]:
        if not self._served.controls:
            raise ApiError(
                422, f"{name}: this model has no ControlNet, only IP-Adapters: choose an ip-adapter module"
            )
        model = _HASH.sub("", str(unit.get("model") or "None"))
        if model not in (*self._served.controls, "None"):
            known = ", ".join(self._served.controls)
            raise ApiError(422, f"{name}: there is no model {model[:80]!r}; the ControlNets are {known}")
        own: dict[str, Any] = {
            "image": self._read_images(unit.get("image"), name)[0],
            "scale": _to_float(unit.get("weight", 1.0)),
        }
        if (unit.get("guidance_start", 0.0), unit.get("guidance_end", 1.0)) != (0.0, 1.0):
            self._warnings.append(f"{name}: guidance_start and guidance_end were ignored")
        return own if model == "None" else {**own, "model": model}


def find_sampler(name: str, schedule: str) -> tuple[str, str]:
    """Return our name and the web UI's name of a sampler.

    Args:
        name: "Euler a", "DPM++ 2M Karras", or one of our own names
        schedule: the web UI's noise schedule, which may also be part of the name

    Raises:
        ApiError: 404 Sampler not found, in the web UI's own words
    """
    if schedule.lower() not in SCHEDULERS:
        raise ApiError(
            422, f"Scheduler not found: {schedule[:40]!r}; the schedulers are {', '.join(SCHEDULERS)}"
        )
    title = name if schedule.lower() == "automatic" or name.endswith("Karras") else f"{name} Karras"
    by_title = {sampler.title.lower(): own for own, sampler in reversed([*SAMPLERS.items()])}
    own = by_title.get(title.lower()) or (name if name in SAMPLERS else None)
    if own is None:
        raise ApiError(404, "Sampler not found", param="sampler_name")
    return own, SAMPLERS[own].title


def name_adapter(adapter: str) -> str:
    """Return the name under which ControlNet's list shows an adapter."""
    stem = _file_stem(adapter)
    return stem if stem.startswith("ip-adapter") else f"ip-adapter_{stem}"


def _file_stem(adapter: str) -> str:
    """Return the name of an adapter's file, by which the web UI knows it."""
    published = PUBLISHED.get(adapter)
    file = published.file if published else adapter
    return file.rpartition("/")[2].rpartition(":")[2].removesuffix(".safetensors").removesuffix(".bin")


def _is_used(script: object) -> bool:
    """Whether a script's arguments switch it on; clients send {"args": [false]} for those that are off."""
    arguments = script.get("args") if isinstance(script, dict) else script
    if isinstance(arguments, list):
        return any(arguments)
    return bool(arguments)


def _to_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ApiError(422, f"{str(value)[:40]!r} is not a number")
    try:
        return float(value)
    except ValueError:
        raise ApiError(422, f"{str(value)[:40]!r} is not a number") from None
