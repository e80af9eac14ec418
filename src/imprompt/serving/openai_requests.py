"""Requests of the OpenAI Images API, translated into requests of our own.

The fields are those of openai-python 3.57 (types/image_generate_params.py and image_edit_params.py); the
additional ones have the names that vLLM-Omni 0.30 and SGLang-diffusion 0.5.23 share.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from imprompt.errors import ConfigError
from imprompt.serving.api_error import ApiError
from imprompt.serving.assets import AssetStore, store_mask
from imprompt.serving.forms import Form
from imprompt.serving.requests import GenerationRequest, ReferenceRequest, parse_request
from imprompt.serving.settings import ServedModel

QUALITIES = {
    "low": 0.4,
    "medium": 1.0,
    "standard": 1.0,
    "auto": 1.0,
    "high": 1.6,
    "hd": 1.6,
    "xhigh": 2.0,
    "max": 2.0,
}
"""Quality → steps, as a factor on the model's own."""

FIDELITIES = {"low": 0.6, "high": 0.9}
"""input_fidelity → scale of the references; as in the API, low is the default of an edit."""

_FORMATS = ("png", "webp", "jpeg")
_IGNORED = (
    "moderation",
    "style",
    "user",
    "safety_identifier",
    "complexity",
    "frame_duration_ms",
    "svg",
    "markup",
)
"""Fields that have no meaning here, and change nothing that a client could miss."""

_PASSED = {
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "seed": "seed",
    "scheduler": "scheduler",
    "adapter": "adapter",
    "strength": "strength",
}
"""Additional fields → our own names."""

_REFERENCE_NAMES = {"image": "images", "mode": "layers", "weights_per_block": "layers"}
_TRUTH_VALUES = {"true": True, "1": True, "false": False, "0": False}
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class ImagesRequest:
    """A request of the OpenAI Images API.

    Args:
        request: the same as one of our own
        stream: whether events are wanted
        as_url: whether the pictures are to be links
        size: as the client wrote it
        quality: as the client wrote it
        warnings: about fields that were not used
    """

    request: GenerationRequest
    stream: bool
    as_url: bool
    size: str
    quality: str
    warnings: list[str]


def translate_request(form: Form, served: ServedModel, assets: AssetStore, *, is_edit: bool) -> ImagesRequest:
    """Translate a request; fields that this server does not know become warnings.

    Args:
        form: fields and pictures
        served: the model that it names
        assets: the pictures
        is_edit: whether it came to /v1/images/edits, which needs a picture

    Raises:
        ApiError, ConfigError: a value that is not allowed
    """
    fields = _Fields(form.values)
    prompt = fields.take("prompt", str)
    if prompt is None:
        raise ApiError(400, "prompt is missing", code="missing_required_parameter", param="prompt")
    if is_edit and not form.pictures:
        raise ApiError(400, "image is missing", code="missing_required_parameter", param="image")
    size, quality = fields.take("size", str) or "auto", fields.take("quality", str) or "auto"
    values: dict[str, Any] = {"prompt": prompt, "model": served.name, **_read_size(size)}
    values |= _read_output(fields)
    values["steps"] = _read_steps(quality, served)
    for name, own in _PASSED.items():
        kind = {"num_inference_steps": int, "seed": int, "guidance_scale": float, "strength": float}.get(
            name, str
        )
        if (value := fields.take(name, kind)) is not None:
            values[own] = value
    values["count"] = fields.take("n", int) or 1
    stream = fields.take("stream", bool) or False
    values["previews"] = (fields.take("partial_images", int) or 0) if stream else 0
    as_url = _choose(fields, "response_format", ("b64_json", "url")) == "url"
    _refuse_unsupported(fields)
    values |= _read_pictures(fields, form, assets)
    fields.drop(*_IGNORED, "model", "background", "frame_count")
    warnings = [f"{name[:60]} is not known here and was ignored" for name in fields.rest]
    values = {name: value for name, value in values.items() if value is not None}
    return ImagesRequest(
        request=parse_request(values),
        stream=stream,
        as_url=as_url,
        size=size,
        quality=quality,
        warnings=warnings,
    )


class _Fields:
    """The fields of a request, taken one after another; those of a form are texts."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.rest = dict(values)

    def take(self, name: str, kind: Callable[[Any], Any]) -> Any:
        """Remove a field and return its value; None without it.

        Raises:
            ApiError: a value of another type
        """
        value = self.rest.pop(name, None)
        if value is None or (value == "" and kind is not str):
            return None
        try:
            return _convert(value, kind)
        except (ValueError, TypeError, KeyError, OverflowError):
            word = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(
                kind, "JSON"
            )
            message = f"{name} must be {word}, not {str(value)[:60]!r}"
            raise ApiError(400, message, code="invalid_type", param=name) from None

    def drop(self, *names: str) -> None:
        """Remove fields."""
        for name in names:
            self.rest.pop(name, None)


def _convert(value: Any, kind: Callable[[Any], Any]) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else _TRUTH_VALUES[str(value).lower()]
    if kind is str and not isinstance(value, str):
        raise TypeError
    if kind in (int, float) and isinstance(value, bool):
        raise TypeError
    if kind is int and isinstance(value, float) and value != int(value):
        raise ValueError
    return kind(value)


def _choose(fields: _Fields, name: str, choices: tuple[str, ...]) -> str | None:
    value = fields.take(name, str)
    if value is not None and value not in choices:
        message = f"{name} must be {', '.join(choices)}, not {value[:40]!r}"
        raise ApiError(400, message, code="unsupported_value", param=name)
    return value


def _read_size(size: str) -> dict[str, int]:
    if size == "auto":
        return {}
    match = _SIZE.fullmatch(size)
    if match is None:
        message = f'size must be "auto" or like "512x768", not {size[:40]!r}'
        raise ApiError(400, message, code="invalid_value", param="size")
    return {"width": int(match[1]), "height": int(match[2])}


def _read_output(fields: _Fields) -> dict[str, Any]:
    kind = _choose(fields, "output_format", _FORMATS) or "png"
    compression = fields.take("output_compression", int)
    if compression is not None and not 0 <= compression <= 100:
        raise ApiError(
            400, "output_compression must be 0 to 100", code="invalid_value", param="output_compression"
        )
    quality = None if compression is None or kind == "png" else max(1, compression)
    return {"format": kind, "quality": quality}


def _read_steps(quality: str, served: ServedModel) -> int:
    if quality not in QUALITIES:
        message = f"quality must be {', '.join(QUALITIES)}, not {quality[:40]!r}"
        raise ApiError(400, message, code="unsupported_value", param="quality")
    return max(1, round(QUALITIES[quality] * served.steps))


def _refuse_unsupported(fields: _Fields) -> None:
    if _choose(fields, "background", ("transparent", "opaque", "auto")) == "transparent":
        message = "background: this server makes opaque pictures only"
        raise ApiError(400, message, code="unsupported_value", param="background")
    if (fields.take("frame_count", int) or 1) > 1:
        message = "frame_count: this server makes single pictures only"
        raise ApiError(400, message, code="unsupported_value", param="frame_count")


def _read_pictures(fields: _Fields, form: Form, assets: AssetStore) -> dict[str, Any]:
    """Say what each picture is for: reference, start, or what a mask lies on."""
    fidelity = _choose(fields, "input_fidelity", tuple(FIDELITIES)) or "low"
    scales = fields.take("ip_adapter_scale", _parse_json)
    role = _choose(fields, "image_role", ("reference", "init"))
    given = fields.take("references", _parse_json)
    pictures, values = list(form.pictures), dict[str, Any]()
    if form.mask is not None or role == "init":
        if not pictures:
            raise ApiError(
                400, "a mask needs a picture (image)", code="missing_required_parameter", param="image"
            )
        values["init_image"] = pictures.pop(0)
    if form.mask is not None:
        values["inpaint"] = convert_mask(form.mask, values["init_image"], assets)
    if given is None:
        references = [{"images": picture, "scale": FIDELITIES[fidelity]} for picture in pictures]
    else:
        references = [_translate_reference(one, pictures) for one in given if isinstance(given, list)]
    if scales is not None:
        _spread_scales(references, scales)
    return values | {"references": references}


def _parse_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _spread_scales(references: list[dict[str, Any]], scales: Any) -> None:
    """Set the scale of each reference; one number is for all."""
    numbers = scales if isinstance(scales, list) else [scales] * len(references)
    if len(numbers) != len(references):
        message = f"ip_adapter_scale has {len(numbers)} numbers for {len(references)} references"
        raise ApiError(400, message, code="invalid_value", param="ip_adapter_scale")
    for reference, number in zip(references, numbers, strict=True):
        reference["scale"] = number


def _translate_reference(given: Any, pictures: list[str]) -> dict[str, Any]:
    """Translate one of `references`; a picture is an index into those sent, an id, or a data: URI."""
    if not isinstance(given, dict):
        raise ApiError(400, "references must be a list of objects", code="invalid_type", param="references")
    values: dict[str, Any] = {
        _REFERENCE_NAMES.get(str(name), str(name)): value for name, value in given.items()
    }

    def find(picture: Any) -> Any:
        if isinstance(picture, bool) or not isinstance(picture, int):
            return picture
        if not 0 <= picture < len(pictures):
            raise ConfigError(
                f"references: there is no picture {picture} among the {len(pictures)} that were sent"
            )
        return pictures[picture]

    for name in ("images", "negative", "mask"):
        if name in values:
            several = isinstance(values[name], list)
            values[name] = [find(one) for one in values[name]] if several else find(values[name])
    if isinstance(values.get("layers"), list):
        values["layers"] = {str(number): weight for number, weight in enumerate(values["layers"])}
    unknown = [name for name in values if name not in ReferenceRequest.model_fields]
    if unknown:
        raise ConfigError(f"references: {unknown[0][:60]!r} is no setting of a reference")
    return values


def convert_mask(mask: str, picture: str, assets: AssetStore) -> str:
    """Translate a mask: transparent is edited in the OpenAI API, white is repainted here.

    Args:
        mask: the id of a picture with transparency
        picture: the id of the picture that it lies on, of the same size
        assets: where both are

    Raises:
        ApiError: another size, or no transparency
    """
    asset, below = assets.find(mask), assets.find(picture)
    if (asset.width, asset.height) != (below.width, below.height):
        message = (
            f"mask has {asset.width}x{asset.height} pixels, and the picture {below.width}x{below.height}"
        )
        raise ApiError(400, message, code="invalid_value", param="mask")
    with Image.open(asset.path) as opened:
        if not opened.has_transparency_data:
            message = "mask: it must have transparent pixels, which are edited; this one has no transparency"
            raise ApiError(400, message, code="invalid_value", param="mask")
        alpha = opened.convert("RGBA").getchannel("A")
    return store_mask(alpha.point(lambda value: 255 - value), assets)
