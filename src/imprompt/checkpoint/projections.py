"""The projection that a file holds: its kind and its sizes, read from the tensors of `image_proj`.

What tensors cannot tell stands in the metadata of our own files, or is as in all published ones: the width of
a perceiver's heads (`head_dim`, 64) and the number of features that Full-Face takes (`tokens`, 257).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    ImageProjection,
    LinearProjection,
    PatchProjection,
    PerceiverShape,
    ResamplerProjection,
)

Tensors = Mapping[str, Tensor]
Version = Literal[1, 2]

PREFIX = "image_proj."

MAX_DEPTH = 64
"""Layers of a perceiver; published ones have 4 or 8."""


class UnreadableSize(Exception):
    """A size of the projection cannot be read; the message is a sentence that names the tensor."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Where sizes are read from."""

    tensors: Tensors
    metadata: Mapping[str, str]

    def axis(self, name: str, axis: int) -> int:
        """Return one axis of a tensor of `image_proj`."""
        tensor = self.tensors.get(PREFIX + name)
        if tensor is None:
            raise UnreadableSize(f"{PREFIX}{name} is missing")
        if tensor.ndim <= axis or tensor.shape[axis] == 0:
            raise UnreadableSize(f"{PREFIX}{name} has shape {format_shape(tensor)}, which gives no size")
        return tensor.shape[axis]

    def tokens(self, name: str) -> int:
        """Return how many tokens the rows of a tensor make."""
        rows, width = self.axis(name, 0), self.axis("norm.weight", 0)
        if rows % width:
            shape = format_shape(self.tensors[PREFIX + name])
            raise UnreadableSize(
                f"{PREFIX}{name} ({shape}) gives no whole tokens {width} wide ({PREFIX}norm.weight)"
            )
        return rows // width

    def said(self, key: str, otherwise: int) -> int:
        """Return a number of the metadata."""
        text = self.metadata.get(key, str(otherwise))
        if not re.fullmatch("[1-9][0-9]{0,5}", text):
            raise UnreadableSize(f"its metadata says {key} {text!r}, which is no whole number from 1")
        return int(text)

    def perceiver(self, prefix: str) -> PerceiverShape:
        """Return the inside of a perceiver."""
        pattern = re.compile(re.escape(PREFIX + prefix) + r"layers\.([0-9]+)\..+")
        depth = len({match[1] for match in map(pattern.fullmatch, self.tensors) if match})
        if depth > MAX_DEPTH:
            raise UnreadableSize(f"its perceiver has {depth:,} layers; it may have {MAX_DEPTH}")
        width, head_dim = self.axis(f"{prefix}proj_in.weight", 0), self.said("head_dim", 64)
        if not depth:
            return PerceiverShape(width=width, depth=0, attention_width=head_dim, head_dim=head_dim)
        query = f"{prefix}layers.0.0.to_q.weight"
        attention, feed_forward = self.axis(query, 0), self.axis(f"{prefix}layers.0.1.1.weight", 0)
        if attention % head_dim:
            shape = format_shape(self.tensors[PREFIX + query])
            raise UnreadableSize(f"{PREFIX}{query} ({shape}) gives no whole heads {head_dim} wide")
        return PerceiverShape(
            width=width,
            depth=depth,
            attention_width=attention,
            feed_forward_width=feed_forward,
            head_dim=head_dim,
        )


def _linear(sizes: Sizes, version: Version) -> ImageProjection:
    context_dim, tokens = sizes.axis("norm.weight", 0), sizes.tokens("proj.weight")
    return LinearProjection(sizes.axis("proj.weight", 1), context_dim, tokens)


def _resampler(sizes: Sizes, version: Version) -> ImageProjection:
    return ResamplerProjection(
        sizes.axis("proj_in.weight", 1),
        sizes.axis("proj_out.weight", 0),
        sizes.axis("latents", 1),
        shape=sizes.perceiver(""),
    )


def _patches(sizes: Sizes, version: Version) -> ImageProjection:
    return PatchProjection(
        sizes.axis("proj.0.weight", 1),
        sizes.axis("proj.3.weight", 0),
        sizes.said("tokens", 257),
        hidden_dim=sizes.axis("proj.0.weight", 0),
    )


def _face(sizes: Sizes, version: Version) -> ImageProjection:
    return FaceProjection(
        sizes.axis("norm.weight", 0),
        sizes.tokens("proj.2.weight"),
        embedding_dim=sizes.axis("proj.0.weight", 1),
        hidden_dim=sizes.axis("proj.0.weight", 0),
    )


def _face_plus(sizes: Sizes, version: Version) -> ImageProjection:
    return FacePlusProjection(
        sizes.axis("perceiver_resampler.proj_in.weight", 1),
        sizes.axis("perceiver_resampler.proj_out.weight", 0),
        sizes.tokens("proj.2.weight"),
        version=version,
        embedding_dim=sizes.axis("proj.0.weight", 1),
        hidden_dim=sizes.axis("proj.0.weight", 0),
        shape=sizes.perceiver("perceiver_resampler."),
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of projection.

    Attributes:
        name: of the variant
        telltale: matches the names of which some are in no kind further down
        sized: tensors without which sizes cannot be read
        make: builds it
    """

    name: str
    telltale: str
    sized: tuple[str, ...]
    make: Callable[[Sizes, Version], ImageProjection]


_FACE_SIZED = ("norm.weight", "proj.0.weight", "proj.2.weight")
_FACE_PLUS_SIZED = ("perceiver_resampler.proj_in.weight", "perceiver_resampler.proj_out.weight")

KINDS = (  # the first of which a telltale is there
    Kind("faceid-plus", r"perceiver_resampler\..+", (*_FACE_SIZED, *_FACE_PLUS_SIZED), _face_plus),
    Kind(
        "plus",
        r"latents|(proj_in|proj_out|norm_out|layers)\..+",
        ("latents", "proj_in.weight", "proj_out.weight"),
        _resampler,
    ),
    Kind("full-face", r"proj\.3\..+", ("proj.0.weight", "proj.3.weight"), _patches),
    Kind("faceid", r"proj\.[02]\..+", _FACE_SIZED, _face),
    Kind("base", r"(proj|norm)\.(weight|bias)", ("norm.weight", "proj.weight"), _linear),
)


def find_kind(tensors: Tensors) -> Kind | None:
    """Recognise the kind of projection; None if there is none that we know."""
    names = [name.removeprefix(PREFIX) for name in tensors if name.startswith(PREFIX)]
    for kind in KINDS:
        if any(re.fullmatch(kind.telltale, name) for name in names):
            return kind
    return None


def build_projection(
    tensors: Tensors, metadata: Mapping[str, str], kind: Kind, version: Version = 1
) -> ImageProjection:
    """Build the projection of a file, on the meta device.

    Raises:
        UnreadableSize: a tensor from which a size is read is missing, or has an impossible shape
    """
    try:
        with torch.device("meta"):
            return kind.make(Sizes(tensors, metadata), version)
    except RuntimeError as error:  # sizes that overflow together
        raise UnreadableSize(f"the sizes of its projection are impossible: {error}") from error


def format_shape(tensor: Tensor) -> str:
    """Write a shape: "3072 × 1024"."""
    return " × ".join(map(str, tensor.shape)) or "()"
