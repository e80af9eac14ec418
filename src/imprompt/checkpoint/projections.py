"""The projection in a file: its kind and its sizes, read from the tensors of `image_proj`.

Two sizes cannot be read from tensors: the width of a perceiver's heads (`head_dim`) and the number of
features of Full-Face (`tokens`). The metadata of imprompt's files state them; all published files have 64 and
257.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from imprompt.attention.choices import Injection
from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    HiddenProjection,
    ImageProjection,
    LinearProjection,
    PatchProjection,
    PerceiverShape,
    ResamplerProjection,
    TimeResamplerProjection,
    TokenProjection,
)

Tensors = Mapping[str, Tensor]
Version = Literal[1, 2]

PREFIX = "image_proj."

MAX_DEPTH = 64
"""The largest number of layers of a perceiver; published ones have 4 or 8."""


class UnreadableSize(Exception):
    """A size of the projection cannot be read; the message names the tensor."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The tensors and metadata from which sizes are read."""

    tensors: Tensors
    metadata: Mapping[str, str]

    def axis(self, name: str, axis: int) -> int:
        """Return the length of one axis of a tensor of `image_proj`."""
        tensor = self.tensors.get(PREFIX + name)
        if tensor is None:
            raise UnreadableSize(f"{PREFIX}{name} is missing")
        if tensor.ndim <= axis or tensor.shape[axis] == 0:
            raise UnreadableSize(
                f"{PREFIX}{name} has shape {format_shape(tensor)}, from which no size can be read"
            )
        return tensor.shape[axis]

    def tokens(self, name: str) -> int:
        """Return the number of tokens in the rows of a tensor."""
        rows, width = self.axis(name, 0), self.axis("norm.weight", 0)
        if rows % width:
            shape = format_shape(self.tensors[PREFIX + name])
            raise UnreadableSize(
                f"{PREFIX}{name} ({shape}) does not divide into tokens {width} wide ({PREFIX}norm.weight)"
            )
        return rows // width

    def read_metadata(self, key: str, default: int) -> int:
        """Return a number of the metadata."""
        text = self.metadata.get(key, str(default))
        if not re.fullmatch("[1-9][0-9]{0,5}", text):
            raise UnreadableSize(f"its metadata state {key} {text!r}, which is no positive whole number")
        return int(text)

    def perceiver(self, prefix: str) -> PerceiverShape:
        """Return the sizes inside a perceiver."""
        pattern = re.compile(re.escape(PREFIX + prefix) + r"layers\.([0-9]+)\..+")
        depth = len({match[1] for match in map(pattern.fullmatch, self.tensors) if match})
        if depth > MAX_DEPTH:
            raise UnreadableSize(f"its perceiver has {depth:,} layers; the limit is {MAX_DEPTH}")
        width, head_dim = self.axis(f"{prefix}proj_in.weight", 0), self.read_metadata("head_dim", 64)
        if not depth:
            return PerceiverShape(width=width, depth=0, attention_width=head_dim, head_dim=head_dim)
        query = f"{prefix}layers.0.0.to_q.weight"
        attention, feed_forward = self.axis(query, 0), self.axis(f"{prefix}layers.0.1.1.weight", 0)
        if attention % head_dim:
            shape = format_shape(self.tensors[PREFIX + query])
            raise UnreadableSize(f"{PREFIX}{query} ({shape}) does not divide into heads {head_dim} wide")
        return PerceiverShape(
            width=width,
            depth=depth,
            attention_width=attention,
            feed_forward_width=feed_forward,
            head_dim=head_dim,
        )


def _build_linear(sizes: Sizes, version: Version) -> ImageProjection:
    context_dim, tokens = sizes.axis("norm.weight", 0), sizes.tokens("proj.weight")
    return LinearProjection(sizes.axis("proj.weight", 1), context_dim, tokens)


def _build_resampler(sizes: Sizes, version: Version) -> ImageProjection:
    return ResamplerProjection(
        sizes.axis("proj_in.weight", 1),
        sizes.axis("proj_out.weight", 0),
        sizes.axis("latents", 1),
        shape=sizes.perceiver(""),
    )


def _build_time_resampler(sizes: Sizes, version: Version) -> ImageProjection:
    return TimeResamplerProjection(
        sizes.axis("proj_in.weight", 1),
        sizes.axis("proj_out.weight", 0),
        sizes.axis("latents", 1),
        shape=sizes.perceiver(""),
        waves=sizes.axis("time_embedding.linear_1.weight", 1),
    )


def _build_hidden(sizes: Sizes, version: Version) -> ImageProjection:
    return HiddenProjection(
        sizes.axis("proj.0.weight", 1),
        sizes.axis("norm.weight", 0),
        sizes.tokens("proj.2.weight"),
        hidden=sizes.axis("proj.0.weight", 0),
    )


def _build_tokens(sizes: Sizes, version: Version) -> ImageProjection:
    return TokenProjection(
        sizes.axis("redux_up.weight", 1),
        sizes.axis("redux_down.weight", 0),
        sizes.read_metadata("tokens", 729),
    )


def _build_patches(sizes: Sizes, version: Version) -> ImageProjection:
    return PatchProjection(
        sizes.axis("proj.0.weight", 1),
        sizes.axis("proj.3.weight", 0),
        sizes.read_metadata("tokens", 257),
        hidden_dim=sizes.axis("proj.0.weight", 0),
    )


def _build_face(sizes: Sizes, version: Version) -> ImageProjection:
    return FaceProjection(
        sizes.axis("norm.weight", 0),
        sizes.tokens("proj.2.weight"),
        embedding_dim=sizes.axis("proj.0.weight", 1),
        hidden_dim=sizes.axis("proj.0.weight", 0),
    )


def _build_face_plus(sizes: Sizes, version: Version) -> ImageProjection:
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
        name: the name of the variant
        pattern: matches a tensor name that no later kind has
        required: tensors from which sizes are read
        build: builds the projection
        injection: how the adapters with this kind enter a denoiser
    """

    name: str
    pattern: str
    required: tuple[str, ...]
    build: Callable[[Sizes, Version], ImageProjection]
    injection: Injection = "unet"


_FACE_REQUIRED = ("norm.weight", "proj.0.weight", "proj.2.weight")
_FACE_PLUS_REQUIRED = ("perceiver_resampler.proj_in.weight", "perceiver_resampler.proj_out.weight")

_RESAMPLER_REQUIRED = ("latents", "proj_in.weight", "proj_out.weight")

KINDS = (  # a file is of the first kind whose pattern matches a name
    Kind(
        "flux-redux",
        r"redux_.+",
        ("redux_up.weight", "redux_down.weight"),
        _build_tokens,
        "flux-redux",
    ),
    Kind(
        "sd35",
        r"time_embedding\..+|layers\.[0-9]+\.2\..+",
        (*_RESAMPLER_REQUIRED, "time_embedding.linear_1.weight"),
        _build_time_resampler,
        "sd35",
    ),
    Kind(
        "faceid-plus", r"perceiver_resampler\..+", (*_FACE_REQUIRED, *_FACE_PLUS_REQUIRED), _build_face_plus
    ),
    Kind(
        "plus",
        r"latents|(proj_in|proj_out|norm_out|layers)\..+",
        _RESAMPLER_REQUIRED,
        _build_resampler,
    ),
    Kind("full-face", r"proj\.3\..+", ("proj.0.weight", "proj.3.weight"), _build_patches),
    Kind("faceid", r"proj\.[02]\..+", _FACE_REQUIRED, _build_face),
    Kind("base", r"(proj|norm)\.(weight|bias)", ("norm.weight", "proj.weight"), _build_linear),
)


FLUX_KINDS = {
    "base": dataclasses.replace(KINDS[-1], name="flux-xlabs", injection="flux-xlabs"),
    "faceid": dataclasses.replace(
        KINDS[-2], name="flux-instantx", build=_build_hidden, injection="flux-instantx"
    ),
}
"""Kind of a projection → its kind in a file with layers of FLUX.1, whose projection has the same names."""

_FLUX_LAYERS = {
    "base": re.compile(r"ip_adapter\.[0-9]+\.to_[kv]_ip\.bias"),
    "faceid": re.compile(r"ip_adapter\.[0-9]*[02468]\.to_[kv]_ip\.weight"),
}
"""Kind of a projection → a tensor by which its layers are FLUX.1's: cross-attention of U-Nets has odd numbers
and no bias."""


def find_kind(tensors: Tensors) -> Kind | None:
    """Return the kind of the projection; None if it is unknown."""
    kind = _find_kind_of_names(tensors)
    if kind is None or kind.name not in _FLUX_LAYERS:
        return kind
    is_flux = any(_FLUX_LAYERS[kind.name].fullmatch(name) for name in tensors)
    return FLUX_KINDS[kind.name] if is_flux else kind


def _find_kind_of_names(tensors: Tensors) -> Kind | None:
    names = [name.removeprefix(PREFIX) for name in tensors if name.startswith(PREFIX)]
    for kind in KINDS:
        if any(re.fullmatch(kind.pattern, name) for name in names):
            return kind
    return None


def build_projection(
    tensors: Tensors, metadata: Mapping[str, str], kind: Kind, version: Version = 1
) -> ImageProjection:
    """Build the projection of a file on the meta device.

    Raises:
        UnreadableSize: a tensor from which a size is read is missing or has an impossible shape
    """
    try:
        with torch.device("meta"):
            return kind.build(Sizes(tensors, metadata), version)
    except RuntimeError as error:  # the sizes overflow
        raise UnreadableSize(f"the sizes of its projection are impossible: {error}") from error


def format_shape(tensor: Tensor) -> str:
    """Format a shape: "3072 × 1024"."""
    return " × ".join(map(str, tensor.shape)) or "()"
