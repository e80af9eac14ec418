"""IP-Adapter as a method: any base and any adapter that `imprompt generate` takes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionModelWithProjection

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import load_adapter
from imprompt.errors import AdapterMismatch
from imprompt.evaluation.methods.method import Method
from imprompt.evaluation.settings import DrawingSettings, MethodSettings
from imprompt.generation.models import load_pipeline
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.reference import Reference


class AdapterMethod(Method):
    """A base with an adapter that stays attached."""

    def __init__(self, method: MethodSettings, drawing: DrawingSettings, device: torch.device) -> None:
        super().__init__(method, drawing, device)
        # K' and V' are made once a call, so full precision costs nothing.
        self.adapter = load_picture_adapter(method.adapter, **_encoder(method)).to(device).float()
        self._attached = self.adapter.attach(self.pipe)

    def load_pipeline(self) -> Any:
        """Load the base."""
        return load_pipeline(self.model, device=self.device, dtype=self.dtype)

    def draw(
        self, reference: Image.Image, text: str, scale: float | int, seeds: Sequence[int]
    ) -> list[Image.Image]:
        """Implement `Method.draw` for every variant that takes a picture."""
        with self.adapter.use(Reference(reference, scale=scale)):
            return call_pipeline(self.pipe, self.build_pipeline_arguments(text, seeds), seeds=seeds)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Implement `Method.modules`."""
        yield from super().modules()
        yield "adapter", self.adapter
        if self.adapter.image_encoder is not None:
            yield "image prompt encoder", self.adapter.image_encoder.model


def load_picture_adapter(name: str, **encoder: Any) -> ImagePromptAdapter:
    """Load an adapter whose image prompt is a whole picture.

    Raises:
        AdapterMismatch: it reads a face, and most references of a benchmark do not show one
    """
    adapter = load_adapter(name, **encoder)
    if "face_embedding" in adapter.projection.takes:
        raise AdapterMismatch(
            f"{name} is of a FaceID variant: it reads the embedding of a face, and a benchmark's references "
            "show anything; measure an adapter that reads whole pictures"
        )
    return adapter


def load_adapter_encoder(method: MethodSettings) -> CLIPVisionModelWithProjection:
    """Load the image encoder of an adapter.

    Raises:
        AdapterMismatch: the encoder is not known
    """
    encoder = load_picture_adapter(method.adapter, **_encoder(method)).image_encoder
    if encoder is None:
        raise AdapterMismatch(f"{method.adapter} has no image encoder that we know; set method.image_encoder")
    return encoder.model


def _encoder(method: MethodSettings) -> dict[str, Any]:
    known = method.image_encoder == "known"
    return {} if known else {"image_encoder": _path_or_id(method.image_encoder)}


def _path_or_id(name: str) -> str | Path:
    return Path(name) if Path(name).exists() else name
