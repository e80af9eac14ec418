"""Recognition of a file by tensor names and shapes: its variant, base family, tokens, encoder and problems.

Shapes of the published variants: tencent-ailab/IP-Adapter at 62e4af9, `ip_adapter/ip_adapter.py`,
`resampler.py` and `ip_adapter_faceid.py`. The tensors of the two versions of FaceID-Plus have
the same shapes, so the version cannot be recognized.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from imprompt.attention.choices import FAMILIES, Injection, LoraShapes, Place
from imprompt.checkpoint.files import TensorFile, read_tensors
from imprompt.checkpoint.layouts import Layout, convert_layout
from imprompt.checkpoint.projections import (
    PREFIX,
    Kind,
    UnreadableSize,
    build_projection,
    find_kind,
    format_shape,
)
from imprompt.checkpoint.published import describe_encoder
from imprompt.inputs.choices import Input
from imprompt.projection import ImageProjection, TimeResamplerProjection, TokenProjection

Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """Facts about an adapter file; None stands for a fact that the file does not reveal."""

    variant: str | None
    """ "base", "plus", "full-face", "faceid", "faceid-portrait", "faceid-plus", for a U-Net; "flux-xlabs",
    "flux-instantx", "flux-redux", "sd35"; or an unsupported one: "instantid", "kolors-faceid-plus"."""
    base_family: str | None
    """The base models that it fits, e.g. "SD1.5"; None for an unknown base."""
    tokens: int | None
    """Number of image tokens per image."""
    takes: dict[Input, int]
    """Width of each input, which the image encoder or the face embedder makes."""
    context_dim: int | None
    """Width of the image tokens, which is the width of the base's text embeddings."""
    encoder: str | None
    """The models that make the inputs, as a phrase."""
    lora_rank: int | None
    """Rank of the LoRA that a FaceID adapter adds to the base's attention; None without LoRA."""
    parameters: int
    """Number of values in all tensors of the adapter."""
    layers: dict[int, tuple[int, int]]
    """Official number of each layer in which image prompts act → (context_dim, inner_dim)."""
    injection: Injection
    """How the image prompts enter a denoiser."""
    layout: str
    """The layout of the file, as a phrase."""
    repairs: tuple[str, ...]
    """The changes by which `convert_adapter` makes the layout official, a phrase each."""
    dtypes: tuple[str, ...]
    """Number formats of the tensors, sorted."""
    metadata: dict[str, str]
    """Metadata of a safetensors file."""
    problems: tuple[str, ...]
    """What is wrong with the file, a sentence each; empty for a valid file."""

    @property
    def limit(self) -> str | None:
        """Why `load_adapter` refuses this valid file, as a sentence; None if it accepts the file."""
        return UNSUPPORTED.get(self.variant) if self.variant else None


UNSUPPORTED = {
    "instantid": "instantid adapters are recognized but cannot be used: they need a ControlNet of their own",
    "kolors-faceid-plus": "kolors-faceid-plus adapters are recognized but cannot be used: their tokens go "
    "through the text projection of Kolors",
}
"""Variants that are recognized and not supported."""

_KEY_VALUE = ("to_k_ip.weight", "to_v_ip.weight")
_HEAD_NORMS = ("norm_q.weight", "norm_k.weight", "norm_ip_k.weight")
_NORMS = ("norm_ip.linear.weight", "norm_ip.linear.bias", *_HEAD_NORMS)
LAYER_PARTS: dict[Injection, tuple[str, ...]] = {
    "unet": _KEY_VALUE,
    "flux-xlabs": (*_KEY_VALUE, "to_k_ip.bias", "to_v_ip.bias"),
    "flux-instantx": _KEY_VALUE,
    "flux-redux": (),
    "sd35": (*_KEY_VALUE, *_NORMS),
}
"""Injection → the tensors of each layer."""

_LAYER_PART = re.compile(r"ip_adapter\.(0|[1-9][0-9]*)\.((?:to_[kv]_ip|norm_).+)")
_LAYER = re.compile(r"ip_adapter\.(0|[1-9][0-9]*)\.(to_k_ip|to_v_ip)\.weight")
_LORA = re.compile(r"ip_adapter\.(0|[1-9][0-9]*)\.to_(q|k|v|out)_lora\.(down|up)\.weight")


@dataclasses.dataclass(frozen=True)
class RecognizedFile:
    """A file in the official layout with its kind, its projection on the meta device, and its description."""

    tensors: Tensors
    kind: Kind | None
    projection: ImageProjection | None
    description: Description


def describe(path: str | Path) -> Description:
    """Return what an adapter file is and what is wrong with it.

    Raises:
        CheckpointError: the file cannot be read, or holds more than tensors
    """
    return recognize(read_tensors(Path(path))).description


def recognize(file: TensorFile) -> RecognizedFile:
    """Describe a file that has been read; give its tensors their official names."""
    layout = convert_layout(file.tensors)
    tensors, kind = layout.tensors, find_kind(layout.tensors)
    projection = _build_readable_projection(tensors, file.metadata, kind)
    layers = read_layer_shapes(tensors)
    if kind and kind.injection == "flux-redux" and projection:
        layers = {0: (projection.context_dim, projection.context_dim)}
    variant = _recognize_variant(tensors, kind, projection)
    takes = dict(projection.takes) if projection else {}
    description = Description(
        variant=variant,
        base_family=_recognize_base(layers, projection),
        tokens=projection.tokens if projection else None,
        takes=takes,
        context_dim=projection.context_dim if projection else None,
        encoder=_name_encoders(takes, file.metadata),
        lora_rank=_find_lora_rank(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        layers=layers,
        injection=kind.injection if kind else "unet",
        layout=f"{layout.name} ({file.container})",
        repairs=layout.repairs,
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
        metadata=file.metadata,
        problems=tuple(_find_problems(layout, file.metadata, kind, variant)),
    )
    return RecognizedFile(tensors, kind, projection, description)


def read_layer_shapes(tensors: Tensors) -> dict[int, tuple[int, int]]:
    """Return official number of each cross-attention layer → (context_dim, inner_dim)."""
    keys = ((_LAYER.fullmatch(name), tensor) for name, tensor in tensors.items())
    shapes = {
        int(match[1]): (tensor.shape[1], tensor.shape[0])
        for match, tensor in keys
        if match and match[2] == "to_k_ip" and tensor.ndim == 2
    }
    return dict(sorted(shapes.items()))


def read_head_dim(file: "RecognizedFile", metadata: Mapping[str, str]) -> int | None:
    """Return the width of a head of the base, where the file reveals it; None for the published base's."""
    if file.description.injection == "sd35":
        return len(file.tensors["ip_adapter.0.norm_q.weight"])
    stated = metadata.get("attention_head_dim", "")
    return int(stated) if re.fullmatch("[1-9][0-9]{0,3}", stated) else None


def read_lora_shapes(tensors: Tensors) -> dict[int, LoraShapes]:
    """Return official number of each attention layer → "q", "k", "v", "out" → (in, out, rank) of its LoRA."""
    shapes: dict[int, dict[Place, tuple[int, int, int]]] = {}
    for name, down in tensors.items():
        match = _LORA.fullmatch(name)
        if match and match[3] == "down" and down.ndim == 2:
            up = tensors.get(name.replace(".down.", ".up."))
            if up is not None and up.ndim == 2:
                sizes = down.shape[1], up.shape[0], down.shape[0]
                shapes.setdefault(int(match[1]), {})[cast(Place, match[2])] = sizes
    return dict[int, LoraShapes](sorted(shapes.items()))


def _build_readable_projection(
    tensors: Tensors, metadata: Mapping[str, str], kind: Kind | None
) -> ImageProjection | None:
    try:
        return build_projection(tensors, metadata, kind) if kind else None
    except UnreadableSize:  # reported among the problems
        return None


def _recognize_variant(tensors: Tensors, kind: Kind | None, projection: ImageProjection | None) -> str | None:
    if kind is None:
        return None
    if kind.name == "plus" and projection and projection.takes == {"image_features": 512}:
        return "instantid"  # its resampler reads the face embedding
    if kind.name == "faceid-plus" and projection and projection.context_dim == 4096:
        return "kolors-faceid-plus"
    has_lora = any(_LORA.fullmatch(name) for name in tensors)
    # Portrait differs from FaceID by 16 tokens and by having no LoRA.
    portrait = kind.name == "faceid" and projection and projection.tokens == 16 and not has_lora
    return "faceid-portrait" if portrait else kind.name


def _recognize_base(layers: Mapping[int, tuple[int, int]], projection: ImageProjection | None) -> str | None:
    if projection is None:
        return None
    family = FAMILIES.get((len(layers), projection.context_dim))
    # Kolors has SDXL's layers, and only its adapter takes the features of ViT-L/14.
    if isinstance(projection, TokenProjection) and projection.context_dim == 4096:
        return "FLUX.1"
    return "Kolors" if family == "SDXL" and projection.takes.get("image_features") == 1024 else family


def _name_encoders(takes: Mapping[Input, int], metadata: Mapping[str, str]) -> str | None:
    stated = metadata.get("encoder")
    phrases = []
    for name, width in takes.items():
        is_stated = stated and name != "face_embedding"
        phrases.append(f"{stated if is_stated else describe_encoder(name, width).name}, {width} wide")
    return ", and ".join(phrases) or None


def _find_lora_rank(tensors: Tensors) -> int | None:
    ranks = {rank for parts in read_lora_shapes(tensors).values() for _, _, rank in parts.values()}
    return max(ranks, default=None)


# Problems


def _find_problems(
    layout: Layout, metadata: Mapping[str, str], kind: Kind | None, variant: str | None
) -> Iterator[str]:
    yield from layout.problems
    if variant is None:
        if not layout.problems:
            yield _explain_unknown(layout.tensors)
        return
    yield from _find_wrong_values(layout.tensors)
    if kind and variant not in UNSUPPORTED:
        yield from _check_projection(layout.tensors, metadata, kind, variant)
        yield from _check_layers(layout.tensors, metadata, kind, variant)


def _explain_unknown(tensors: Tensors) -> str:
    if any(name.startswith(PREFIX) for name in tensors):
        return "its projection (image_proj) is of an unknown kind"
    if read_layer_shapes(tensors):
        return "it has attention layers but no projection (image_proj)"
    first = min(tensors, default=None)
    return f"it is no image-prompt adapter: it has no image_proj tensors (its first tensor is {first})"


def _find_wrong_values(tensors: Tensors) -> Iterator[str]:
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            yield f"{name} is {tensor.dtype} ({tensor.layout}), not plain floating-point numbers"
        elif tensor.device.type == "meta":
            continue
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            yield f"{name} claims {tensor.numel()} values but holds fewer"
        elif not tensor.float().isfinite().all():
            yield f"{name} holds NaN or infinity"


_NO_FLOAT16 = {getattr(torch, name, None) for name in ("float8_e8m0fnu", "float4_e2m1fn_x2")}
"""Formats of scales, or of two values in a byte, which cannot be converted to float16."""


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized
    return is_dense and tensor.is_floating_point() and tensor.dtype not in _NO_FLOAT16


def _check_projection(
    tensors: Tensors, metadata: Mapping[str, str], kind: Kind, variant: str
) -> Iterator[str]:
    """Compare the tensors with those of a projection of these sizes."""
    if missing := [PREFIX + name for name in kind.required if PREFIX + name not in tensors]:
        yield from (f"{name} is missing" for name in missing)
        return
    try:
        expected = build_projection(tensors, metadata, kind).state_dict(prefix=PREFIX)
    except UnreadableSize as error:
        yield str(error)
        return
    present = {name for name in tensors if name.startswith(PREFIX)}
    yield from (f"{name} is missing" for name in expected if name not in present)
    yield from (f"{name} does not belong in a {variant} adapter" for name in sorted(present - set(expected)))
    for name in (name for name in expected if name in present):
        yield from _check_shape(name, tensors, tuple(expected[name].shape))


def _check_layers(tensors: Tensors, metadata: Mapping[str, str], kind: Kind, variant: str) -> Iterator[str]:
    projection = _build_readable_projection(tensors, metadata, kind)
    numbers, lora = set[str](), set[str]()
    parts = LAYER_PARTS[kind.injection]
    for name in (name for name in tensors if not name.startswith(PREFIX)):
        if (match := _LAYER_PART.fullmatch(name)) and match[2] in parts:
            numbers.add(match[1])
        elif kind.name.startswith("faceid") and (match := _LORA.fullmatch(name)):
            lora.add(match[1])
        else:
            yield f"{name} does not belong in a {variant} adapter"
    if not numbers and parts:
        yield "it has no attention layers (ip_adapter.N.to_k_ip.weight, ip_adapter.N.to_v_ip.weight)"
    if kind.injection != "unet":
        count = max(map(int, numbers), default=-1) + 1
        yield from (f"ip_adapter.{n} is missing" for n in range(count) if str(n) not in numbers)
    for number in sorted(numbers, key=int):
        yield from _check_layer(f"ip_adapter.{number}", tensors, parts, projection)
    for number in sorted(lora, key=int):
        yield from _check_lora(f"ip_adapter.{number}", tensors)


def _check_layer(
    layer: str, tensors: Tensors, parts: Collection[str], projection: ImageProjection | None
) -> Iterator[str]:
    for part in parts:
        if f"{layer}.{part}" not in tensors:
            yield f"{layer}.{part} is missing"
            return
    key, value = f"{layer}.to_k_ip.weight", f"{layer}.to_v_ip.weight"
    context_dim = projection.context_dim if projection else None
    if context_dim and (tensors[key].ndim != 2 or tensors[key].shape[1] != context_dim):
        yield f"{key} has shape {format_shape(tensors[key])}, but the image tokens are {context_dim} wide"
        return
    yield from _check_shape(value, tensors, tuple(tensors[key].shape))
    yield from _check_other_parts(layer, tensors, parts, projection)


def _check_other_parts(
    layer: str, tensors: Tensors, parts: Collection[str], projection: ImageProjection | None
) -> Iterator[str]:
    """Compare biases and norms with the layer's own widths."""
    if "to_k_ip.bias" in parts:
        rows = tensors[f"{layer}.to_k_ip.weight"].shape[:1]
        for name in ("to_k_ip.bias", "to_v_ip.bias"):
            yield from _check_shape(f"{layer}.{name}", tensors, tuple(rows))
    if "norm_q.weight" in parts and isinstance(projection, TimeResamplerProjection):
        rows = 2 * projection.context_dim
        yield from _check_shape(f"{layer}.norm_ip.linear.weight", tensors, (rows, projection.time_dim))
        yield from _check_shape(f"{layer}.norm_ip.linear.bias", tensors, (rows,))
        first = tensors.get("ip_adapter.0.norm_q.weight", tensors[f"{layer}.norm_q.weight"])
        for name in _HEAD_NORMS:
            yield from _check_shape(f"{layer}.{name}", tensors, tuple(first.shape))


def _check_lora(layer: str, tensors: Tensors) -> Iterator[str]:
    for part in ("q", "k", "v", "out"):
        down, up = (f"{layer}.to_{part}_lora.{side}.weight" for side in ("down", "up"))
        missing = [name for name in (down, up) if name not in tensors]
        yield from (f"{name} is missing" for name in missing)
        if missing:
            return
        if tensors[down].ndim != 2 or tensors[up].ndim != 2 or len(tensors[down]) != tensors[up].shape[1]:
            shapes = f"{format_shape(tensors[down])} and {format_shape(tensors[up])}"
            yield f"{down} and {up} have shapes {shapes}, which form no LoRA"
            return
    yield from _check_lora_shapes(
        layer, {name: tensors[name] for name in tensors if name.startswith(f"{layer}.")}
    )


def _check_lora_shapes(layer: str, tensors: Tensors) -> Iterator[str]:
    (shapes,) = read_lora_shapes(tensors).values()
    widths = {part: shape[:2] for part, shape in shapes.items()}
    outer, inner = widths["q"]
    if widths["k"] != widths["v"] or widths["k"][1] != inner or widths["out"] != (inner, outer):
        words = ", ".join(f"{part} {x} → {y}" for part, (x, y) in widths.items())
        yield f"the LoRA shapes of {layer} match no attention layer ({words})"


def _check_shape(name: str, tensors: Tensors, shape: tuple[int, ...]) -> Iterator[str]:
    if tensors[name].shape != shape:
        yield f"{name} has shape {format_shape(tensors[name])}, not {' × '.join(map(str, shape))}"
