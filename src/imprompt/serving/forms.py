"""Requests with pictures as clients of the OpenAI API send them: as a form or as JSON, under many names."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from imprompt.errors import ConfigError
from imprompt.inputs.image import is_url
from imprompt.serving.api_error import ApiError
from imprompt.serving.assets import AssetStore, decode_data, is_data
from imprompt.serving.settings import Limits

_PICTURES = re.compile(r"(images?|url|input_reference)(\[\d*\])?")
"""The official client sends `image` for one file, `image[]` for several; others send the other names."""

_FEW_FIELDS = 100
_BASE64_GROWTH = 1.4


@dataclass
class Form:
    """What a request says.

    Args:
        values: its fields; those of a form are texts
        pictures: the ids of its pictures, in their order
        mask: the id of its mask
    """

    values: dict[str, Any] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    mask: str | None = None


async def read_form(request: Request, assets: AssetStore, limits: Limits) -> Form:
    """Read a form or JSON, and store its pictures.

    Raises:
        ApiError: another kind of content, or no JSON object
        ImageError, ConfigError: a picture that is not allowed
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    reader = _Reader(assets, limits)
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        await reader.read_parts(request)
    else:
        await reader.read_json(parse_json(await request.body()))
    return reader.form


def parse_json(body: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ApiError: anything else
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return values


class _Reader:
    def __init__(self, assets: AssetStore, limits: Limits) -> None:
        self._assets, self._limits, self.form = assets, limits, Form()

    async def read_parts(self, request: Request) -> None:
        most = int(self._limits.picture_megabytes * 1e6 * _BASE64_GROWTH)
        files = self._limits.pictures + 1
        async with request.form(max_files=files, max_fields=_FEW_FIELDS, max_part_size=most) as parts:
            for name, value in parts.multi_items():
                if name == "mask":
                    self.form.mask = await self._store(value, name)
                elif _PICTURES.fullmatch(name):
                    await self._add(value, name)
                elif isinstance(value, str):
                    self.form.values[name.removesuffix("[]")] = value
                else:
                    raise ConfigError(f"{name[:60]} is a file, and this field takes none")

    async def read_json(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if value is None:
                continue
            if name == "mask":
                self.form.mask = await self._store(value, name)
            elif _PICTURES.fullmatch(name):
                for one in value if isinstance(value, list) else [value]:
                    await self._add(one, name)
            else:
                self.form.values[name] = value

    async def _add(self, value: object, name: str) -> None:
        if len(self.form.pictures) >= self._limits.pictures:
            raise ConfigError(f"{name} may be {self._limits.pictures} pictures on this server, not more")
        self.form.pictures.append(await self._store(value, name))

    async def _store(self, value: object, name: str) -> str:
        if isinstance(value, UploadFile):
            return (await self._assets.add(await value.read(), name)).id
        if isinstance(value, Mapping):
            value = (
                value.get("image_url") or value.get("url") or value.get("file_id") or value.get("b64_json")
            )
            value = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{name} must be a file, a data: URI, or the id of a picture")
        if is_data(value):
            return (await self._assets.add(decode_data(value, name, limits=self._limits), name)).id
        if is_url(value):
            raise ConfigError(f"{name} is a URL, and this server fetches none: send the picture itself")
        return self._assets.find(value).id
