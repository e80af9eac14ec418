"""What a file is: variant, base family, tokens, encoder and faults, read from tensor names and shapes.

Shapes of the published variants: tencent-ailab/IP-Adapter at 62e4af9, `ip_adapter/ip_adapter.py`,
`resampler.py` and `ip_adapter_faceid.py`. The two versions of FaceID-Plus cannot be told apart: their tensors
have the same shapes.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from imprompt.attention.layers import FAMILIES
from imprompt.attention.processor import Place
from imprompt.attention.weights import LoraShapes
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
from imprompt.projection import ImageProjection, Input

Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What `describe` found; a value that the file does not tell is None."""

    variant: str | None
    """ "base", "plus", "full-face", "faceid", "faceid-portrait", "faceid-plus"; or one that cannot be used:
    "flux", "sd3", "instantid", "kolors-faceid-plus"."""
    base_family: str | None
    """The base models that it fits, e.g. "SD1.5"; None for a base that we do not know."""
    tokens: int | None
    """Image tokens per image."""
    takes: dict[Input, int]
    """Width of each input: what the image encoder, the face embedder must give."""
    context_dim: int | None
    """Width of the image tokens, which is that of the base's text embeddings."""
    encoder: str | None
    """What gives the inputs, as a phrase."""
    lora_rank: int | None
    """Of the low-rank changes to the base's attention that belong to a FaceID adapter; None without them."""
    parameters: int
    """Values in all tensors of the adapter together."""
    layers: dict[int, tuple[int, int]]
    """Official number of each cross-attention layer → (context_dim, inner_dim)."""
    layout: str
    """The kind of file, as a phrase."""
    repairs: tuple[str, ...]
    """What `convert_adapter` does to make the layout official, a phrase each."""
    dtypes: tuple[str, ...]
    """Number formats of the tensors, sorted."""
    metadata: dict[str, str]
    """What a safetensors file says about itself."""
    problems: tuple[str, ...]
    """What is wrong with the file, a sentence each; empty for a sound one."""

    @property
    def limit(self) -> str | None:
        """Why `load_adapter` refuses this sound file, as a sentence; None if it does not."""
        return LIMITS.get(self.variant) if self.variant else None


LIMITS = {
    "flux": "flux adapters are recognised but cannot be used: only bases with a U-Net can",
    "sd3": "sd3 adapters are recognised but cannot be used: only bases with a U-Net can",
    "instantid": "instantid adapters are recognised but cannot be used: they need a ControlNet of their own",
    "kolors-faceid-plus": "kolors-faceid-plus adapters are recognised but cannot be used: their tokens go "
    "through the text projection of Kolors",
}
"""Variants that we recognise and do not load."""

_FOREIGN = (  # names of which one is enough
    ("flux", re.compile(r"ip_adapter\.[0-9]+\.to_k_ip\.bias|(ip_adapter_proj_model|double_blocks)\..+")),
    ("sd3", re.compile(r"image_proj\.time_embedding\..+|ip_adapter\.[0-9]+\.norm_ip\..+")),
)

_LAYER = re.compile(r"ip_adapter\.(0|[1-9][0-9]*)\.(to_k_ip|to_v_ip)\.weight")
_LORA = re.compile(r"ip_adapter\.(0|[1-9][0-9]*)\.to_(q|k|v|out)_lora\.(down|up)\.weight")


@dataclasses.dataclass(frozen=True)
class RecognizedFile:
    """A file in the official layout, its kind, its projection (on the meta device), and what it is."""

    tensors: Tensors
    kind: Kind | None
    projection: ImageProjection | None
    description: Description


def describe(path: str | Path) -> Description:
    """Say what an adapter file is and what is wrong with it.

    Raises:
        CheckpointError: the file cannot be read at all, or holds things that are no tensors.
    """
    return recognize(read_tensors(Path(path))).description


def recognize(file: TensorFile) -> RecognizedFile:
    """As `describe`, for a file that has been read already; gives the tensors their official names."""
    layout = convert_layout(file.tensors)
    tensors, kind = layout.tensors, find_kind(layout.tensors)
    projection = _projection(tensors, file.metadata, kind)
    layers = read_layer_shapes(tensors)
    variant = _variant(tensors, kind, projection)
    takes = dict(projection.takes) if projection else {}
    description = Description(
        variant=variant,
        base_family=_base_family(layers, projection),
        tokens=projection.tokens if projection else None,
        takes=takes,
        context_dim=projection.context_dim if projection else None,
        encoder=_encoder(takes, file.metadata),
        lora_rank=_lora_rank(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        layers=layers,
        layout=f"{layout.name} ({file.container})",
        repairs=layout.repairs,
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
        metadata=file.metadata,
        problems=tuple(_problems(layout, file.metadata, kind, variant)),
    )
    return RecognizedFile(tensors, kind, projection, description)


def read_layer_shapes(tensors: Tensors) -> dict[int, tuple[int, int]]:
    """Return (context_dim, inner_dim) of each cross-attention layer, by official number."""
    keys = ((_LAYER.fullmatch(name), tensor) for name, tensor in tensors.items())
    found = {
        int(match[1]): (tensor.shape[1], tensor.shape[0])
        for match, tensor in keys
        if match and match[2] == "to_k_ip" and tensor.ndim == 2
    }
    return dict(sorted(found.items()))


def read_lora_shapes(tensors: Tensors) -> dict[int, LoraShapes]:
    """Return (in, out, rank) of the low-rank change to "q", "k", "v", "out" of each attention layer."""
    found: dict[int, dict[Place, tuple[int, int, int]]] = {}
    for name, down in tensors.items():
        match = _LORA.fullmatch(name)
        if match and match[3] == "down" and down.ndim == 2:
            up = tensors.get(name.replace(".down.", ".up."))
            if up is not None and up.ndim == 2:
                sizes = down.shape[1], up.shape[0], down.shape[0]
                found.setdefault(int(match[1]), {})[cast(Place, match[2])] = sizes
    return dict[int, LoraShapes](sorted(found.items()))


def _projection(tensors: Tensors, metadata: Mapping[str, str], kind: Kind | None) -> ImageProjection | None:
    try:
        return build_projection(tensors, metadata, kind) if kind else None
    except UnreadableSize:  # said among the problems
        return None


def _variant(tensors: Tensors, kind: Kind | None, projection: ImageProjection | None) -> str | None:
    for variant, telltale in _FOREIGN:
        if any(telltale.fullmatch(name) for name in tensors):
            return variant
    if kind is None:
        return None
    if kind.name == "plus" and projection and projection.takes == {"image_features": 512}:
        return "instantid"  # its resampler reads the face embedding
    if kind.name == "faceid-plus" and projection and projection.context_dim == 4096:
        return "kolors-faceid-plus"
    has_lora = any(_LORA.fullmatch(name) for name in tensors)
    # Portrait has FaceID's shapes but for 16 tokens and no LoRA.
    portrait = kind.name == "faceid" and projection and projection.tokens == 16 and not has_lora
    return "faceid-portrait" if portrait else kind.name


def _base_family(layers: Mapping[int, tuple[int, int]], projection: ImageProjection | None) -> str | None:
    if projection is None:
        return None
    family = FAMILIES.get((len(layers), projection.context_dim))
    # Kolors has SDXL's layers; its adapter alone reads the features of ViT-L/14.
    return "Kolors" if family == "SDXL" and projection.takes.get("image_features") == 1024 else family


def _encoder(takes: Mapping[Input, int], metadata: Mapping[str, str]) -> str | None:
    said = metadata.get("encoder")
    phrases = [
        f"{said if said and name != 'face_embedding' else describe_encoder(name, width).name}, {width} wide"
        for name, width in takes.items()
    ]
    return ", and ".join(phrases) or None


def _lora_rank(tensors: Tensors) -> int | None:
    ranks = {rank for parts in read_lora_shapes(tensors).values() for _, _, rank in parts.values()}
    return max(ranks, default=None)


# Faults


def _problems(
    layout: Layout, metadata: Mapping[str, str], kind: Kind | None, variant: str | None
) -> Iterator[str]:
    yield from layout.problems
    if variant is None:
        if not layout.problems:
            yield _why_no_adapter(layout.tensors)
        return
    yield from _wrong_values(layout.tensors)
    if kind and variant not in LIMITS:
        yield from _wrong_projection(layout.tensors, metadata, kind, variant)
        yield from _wrong_layers(layout.tensors, metadata, kind, variant)


def _why_no_adapter(tensors: Tensors) -> str:
    if any(name.startswith(PREFIX) for name in tensors):
        return "its projection (image_proj) is of no kind that we know"
    if read_layer_shapes(tensors):
        return "it has attention layers but no projection (image_proj)"
    first = min(tensors, default=None)
    return f"it is no image-prompt adapter: it has no image_proj tensors (its first tensor is {first})"


def _wrong_values(tensors: Tensors) -> Iterator[str]:
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
"""Formats that hold scales, or two values in a byte: of these no float16 can be made."""


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized
    return is_dense and tensor.is_floating_point() and tensor.dtype not in _NO_FLOAT16


def _wrong_projection(
    tensors: Tensors, metadata: Mapping[str, str], kind: Kind, variant: str
) -> Iterator[str]:
    """Compare what is there with what the projection of these sizes has."""
    if missing := [PREFIX + name for name in kind.sized if PREFIX + name not in tensors]:
        yield from (f"{name} is missing" for name in missing)
        return
    try:
        wanted = build_projection(tensors, metadata, kind).state_dict(prefix=PREFIX)
    except UnreadableSize as error:
        yield str(error)
        return
    present = {name for name in tensors if name.startswith(PREFIX)}
    yield from (f"{name} is missing" for name in wanted if name not in present)
    yield from (f"{name} does not belong in a {variant} adapter" for name in sorted(present - set(wanted)))
    for name in (name for name in wanted if name in present):
        yield from _wrong_shape(name, tensors, tuple(wanted[name].shape))


def _wrong_layers(tensors: Tensors, metadata: Mapping[str, str], kind: Kind, variant: str) -> Iterator[str]:
    projection = _projection(tensors, metadata, kind)
    numbers, lora = set[str](), set[str]()
    for name in (name for name in tensors if not name.startswith(PREFIX)):
        if match := _LAYER.fullmatch(name):
            numbers.add(match[1])
        elif kind.name.startswith("faceid") and (match := _LORA.fullmatch(name)):
            lora.add(match[1])
        else:
            yield f"{name} does not belong in a {variant} adapter"
    if not numbers:
        yield "it has no attention layers (ip_adapter.N.to_k_ip.weight, ip_adapter.N.to_v_ip.weight)"
    for number in sorted(numbers, key=int):
        yield from _wrong_layer(
            f"ip_adapter.{number}", tensors, projection.context_dim if projection else None
        )
    for number in sorted(lora, key=int):
        yield from _wrong_lora(f"ip_adapter.{number}", tensors)


def _wrong_layer(layer: str, tensors: Tensors, context_dim: int | None) -> Iterator[str]:
    key, value = f"{layer}.to_k_ip.weight", f"{layer}.to_v_ip.weight"
    for name in (key, value):
        if name not in tensors:
            yield f"{name} is missing"
            return
    if context_dim and (tensors[key].ndim != 2 or tensors[key].shape[1] != context_dim):
        yield f"{key} has shape {format_shape(tensors[key])}, but the image tokens are {context_dim} wide"
    yield from _wrong_shape(value, tensors, tuple(tensors[key].shape))


def _wrong_lora(layer: str, tensors: Tensors) -> Iterator[str]:
    for part in ("q", "k", "v", "out"):
        down, up = (f"{layer}.to_{part}_lora.{side}.weight" for side in ("down", "up"))
        missing = [name for name in (down, up) if name not in tensors]
        yield from (f"{name} is missing" for name in missing)
        if missing:
            return
        if tensors[down].ndim != 2 or tensors[up].ndim != 2 or len(tensors[down]) != tensors[up].shape[1]:
            shapes = f"{format_shape(tensors[down])} and {format_shape(tensors[up])}"
            yield f"{down} and {up} have shapes {shapes}, which is no low-rank change"
            return
    yield from _unfitting_lora(
        layer, {name: tensors[name] for name in tensors if name.startswith(f"{layer}.")}
    )


def _unfitting_lora(layer: str, tensors: Tensors) -> Iterator[str]:
    (shapes,) = read_lora_shapes(tensors).values()
    widths = {part: shape[:2] for part, shape in shapes.items()}
    outer, inner = widths["q"]
    if widths["k"] != widths["v"] or widths["k"][1] != inner or widths["out"] != (inner, outer):
        words = ", ".join(f"{part} {x} → {y}" for part, (x, y) in widths.items())
        yield f"the LoRA of {layer} is of no attention layer ({words})"


def _wrong_shape(name: str, tensors: Tensors, shape: tuple[int, ...]) -> Iterator[str]:
    if tensors[name].shape != shape:
        yield f"{name} has shape {format_shape(tensors[name])}, not {' × '.join(map(str, shape))}"
