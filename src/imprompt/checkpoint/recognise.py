"""What a file is: variant, base family, tokens, encoder and faults, read from tensor names and shapes alone.

Shapes of the published variants: tencent-ailab/IP-Adapter at 62e4af9, `ip_adapter/ip_adapter.py`,
`resampler.py` and `ip_adapter_faceid.py`. FaceID-Plus and its version 2 cannot be told apart: their tensors
have the same shapes.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from imprompt.checkpoint.files import TensorFile, read_tensors
from imprompt.layers import FAMILIES

Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What `describe` found; a value that the file does not tell is None."""

    variant: str | None
    """ "base", "plus", "full-face", "faceid", "faceid-portrait", "faceid-plus" or "flux"."""
    base_family: str | None
    """The base models that it fits, e.g. "SD1.5"; None for a base that we do not know."""
    tokens: int | None
    """Image tokens per image."""
    embedding_dim: int | None
    """Width of what the image encoder must give."""
    context_dim: int | None
    """Width of the image tokens, which is that of the base's text embeddings."""
    encoder: str | None
    """The image encoder that belongs to it, as a phrase."""
    parameters: int
    """Values in all tensors together."""
    layers: dict[int, tuple[int, int]]
    """Official number of each cross-attention layer → (context_dim, inner_dim)."""
    layout: str
    """The kind of file, as a phrase."""
    dtypes: tuple[str, ...]
    """Number formats of the tensors, sorted."""
    metadata: dict[str, str]
    """What a safetensors file says about itself; informative only, nothing is decided by it."""
    problems: tuple[str, ...]
    """What is wrong with the file, a sentence each; empty for a sound one."""

    @property
    def limit(self) -> str | None:
        """Why `load_adapter` refuses this sound file today, as a sentence; None if it does not."""
        if self.variant in (None, "base"):
            return None
        return f"{self.variant} adapters are recognised but cannot be used yet"


@dataclasses.dataclass(frozen=True)
class _Variant:
    """How to recognise a projection, and where its sizes stand: (tensor of `image_proj`, axis)."""

    name: str
    telltale: str
    embedding_dim: tuple[str, int]
    context_dim: tuple[str, int]
    token_rows: tuple[str, int] | int
    """Where the tokens stand in rows, `context_dim` for each or (Plus) one for each; or their number."""
    encoders: Mapping[int, str]


_POOLED = {
    512: "CLIP ViT-B projected embedding",
    768: "CLIP ViT-L/14 projected embedding",
    1024: "CLIP ViT-H/14 projected embedding",
    1280: "CLIP ViT-bigG/14 projected embedding",
}
_GRID = {
    1024: "CLIP ViT-L/14 penultimate features",
    1280: "CLIP ViT-H/14 penultimate features",
    1664: "CLIP ViT-bigG/14 penultimate features",
}
_FACE = {512: "ArcFace identity embedding"}
_FACE_AND_GRID = {512: "ArcFace identity embedding and CLIP ViT-H/14 penultimate features"}

_FLAT = (("proj.weight", 1), ("norm.weight", 0), ("proj.weight", 0))
_MLP = (("proj.0.weight", 1), ("norm.weight", 0), ("proj.2.weight", 0))
_RESAMPLER = (("proj_in.weight", 1), ("proj_out.weight", 0), ("latents", 1))

_VARIANTS = (  # the first whose telltale is there
    _Variant("flux", "ip_adapter.0.to_k_ip.bias", *_FLAT, _POOLED),
    _Variant("faceid-plus", "image_proj.perceiver_resampler.proj_in.weight", *_MLP, _FACE_AND_GRID),
    _Variant("plus", "image_proj.latents", *_RESAMPLER, _GRID),
    _Variant("full-face", "image_proj.proj.3.weight", _MLP[0], ("proj.3.weight", 0), 257, _GRID),
    _Variant("faceid", "image_proj.proj.2.weight", *_MLP, _FACE),
    _Variant("base", "image_proj.proj.weight", *_FLAT, _POOLED),
)
_BASE = _VARIANTS[-1]
_BASE_PROJECTION = ("proj.weight", "proj.bias", "norm.weight", "norm.bias")

_LAYER = re.compile(r"ip_adapter\.(0|[1-9][0-9]*)\.(to_k_ip|to_v_ip)\.weight")
_FACE_LORA = re.compile(r"ip_adapter\.[0-9]+\.to_(q|k|v|out)_lora\.(down|up)\.weight")


def describe(path: str | Path) -> Description:
    """Say what an adapter file is and what is wrong with it.

    Raises:
        CheckpointError: the file cannot be read at all, or holds things that are no tensors.
    """
    return describe_tensors(read_tensors(Path(path)))


def describe_tensors(file: TensorFile) -> Description:
    """As `describe`, for a file that has been read already."""
    tensors, variant = file.tensors, _recognised(file.tensors)
    embedding_dim, context_dim, tokens = _sizes(tensors, variant) if variant else (None, None, None)
    layers = _layers(tensors)
    return Description(
        variant=_variant_name(tensors, variant, tokens),
        base_family=FAMILIES.get((len(layers), context_dim)) if context_dim else None,
        tokens=tokens,
        embedding_dim=embedding_dim,
        context_dim=context_dim,
        encoder=_encoder(variant, embedding_dim, file.metadata),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        layers=layers,
        layout=_layout(file),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
        metadata=file.metadata,
        problems=tuple(_problems(tensors, variant)),
    )


def _recognised(tensors: Tensors) -> _Variant | None:
    for variant in _VARIANTS:
        if variant.telltale in tensors:
            return variant
    projection = {name.removeprefix("image_proj.") for name in tensors if name.startswith("image_proj.")}
    return _BASE if projection and projection <= set(_BASE_PROJECTION) else None


def _sizes(tensors: Tensors, variant: _Variant) -> tuple[int | None, int | None, int | None]:
    embedding_dim, context_dim = (_axis(tensors, x) for x in (variant.embedding_dim, variant.context_dim))
    if isinstance(variant.token_rows, int):
        return embedding_dim, context_dim, variant.token_rows
    rows = _axis(tensors, variant.token_rows)
    if variant.name == "plus":
        return embedding_dim, context_dim, rows
    tokens = rows // context_dim if rows and context_dim and rows % context_dim == 0 else None
    return embedding_dim, context_dim, tokens


def _axis(tensors: Tensors, place: tuple[str, int]) -> int | None:
    name, axis = place
    tensor = tensors.get(f"image_proj.{name}")
    return tensor.shape[axis] or None if tensor is not None and tensor.ndim > axis else None


def _layers(tensors: Tensors) -> dict[int, tuple[int, int]]:
    keys = ((_LAYER.fullmatch(name), tensor) for name, tensor in tensors.items())
    found = {
        int(match[1]): (tensor.shape[1], tensor.shape[0])
        for match, tensor in keys
        if match and match[2] == "to_k_ip" and tensor.ndim == 2
    }
    return dict(sorted(found.items()))


def _variant_name(tensors: Tensors, variant: _Variant | None, tokens: int | None) -> str | None:
    if variant is None:
        return None
    has_lora = any(_FACE_LORA.fullmatch(name) for name in tensors)
    # Portrait has FaceID's shapes but for 16 tokens and no LoRA.
    return "faceid-portrait" if variant.name == "faceid" and tokens == 16 and not has_lora else variant.name


def _encoder(variant: _Variant | None, embedding_dim: int | None, metadata: Mapping[str, str]) -> str | None:
    if variant is None or embedding_dim is None:
        return None
    known = metadata.get("encoder") or variant.encoders.get(
        embedding_dim, "an image encoder that we do not know"
    )
    return f"{known}, {embedding_dim} wide"


def _layout(file: TensorFile) -> str:
    if any(name.startswith(("image_proj_model.", "adapter_modules.")) for name in file.tensors):
        return f"training checkpoint of the official scripts ({file.container})"
    return f"official layout ({file.container})"


def _problems(tensors: Tensors, variant: _Variant | None) -> Iterator[str]:
    if variant is None:
        yield _why_no_adapter(tensors)
        return
    yield from _wrong_values(tensors)
    if variant is _BASE:
        yield from _wrong_projection(tensors)
    if variant.name != "flux":
        yield from _wrong_layers(tensors, variant)


def _why_no_adapter(tensors: Tensors) -> str:
    if any(name.startswith(("image_proj_model.", "adapter_modules.")) for name in tensors):
        return "it is a training checkpoint of the official scripts, not an adapter made from one"
    if any(name.startswith("image_proj.") for name in tensors):
        return "its projection (image_proj) is of no kind that we know"
    first = min(tensors, default=None)
    return f"it is no image-prompt adapter: it has no image_proj tensors (its first tensor is {first})"


def _wrong_values(tensors: Tensors) -> Iterator[str]:
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or not tensor.is_floating_point():
            yield f"{name} is {tensor.dtype} ({tensor.layout}), not plain floating-point numbers"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            yield f"{name} claims {tensor.numel()} values but holds fewer"
        elif not tensor.float().isfinite().all():
            yield f"{name} holds NaN or infinity"


def _wrong_projection(tensors: Tensors) -> Iterator[str]:
    present = {name for name in tensors if name.startswith("image_proj.")}
    wanted = {f"image_proj.{name}" for name in _BASE_PROJECTION}
    yield from (f"{name} is missing" for name in sorted(wanted - present))
    yield from (f"{name} does not belong in a base adapter" for name in sorted(present - wanted))
    if not wanted <= present:
        return
    embedding_dim, context_dim, tokens = _sizes(tensors, _BASE)
    if embedding_dim is None or context_dim is None or tokens is None:
        weight, norm = (_shape(tensors[f"image_proj.{name}"]) for name in ("proj.weight", "norm.weight"))
        yield f"image_proj.proj.weight ({weight}) gives no whole tokens {norm} wide (image_proj.norm.weight)"
        return
    rows = tokens * context_dim
    shapes = ((rows, embedding_dim), (rows,), (context_dim,), (context_dim,))
    for name, shape in zip(_BASE_PROJECTION, shapes, strict=True):
        yield from _wrong_shape(f"image_proj.{name}", tensors, shape)


def _wrong_layers(tensors: Tensors, variant: _Variant) -> Iterator[str]:
    context_dim = _axis(tensors, variant.context_dim)
    numbers: set[str] = set()
    for name in (name for name in tensors if not name.startswith("image_proj.")):
        if match := _LAYER.fullmatch(name):
            numbers.add(match[1])
        elif not (variant.name.startswith("faceid") and _FACE_LORA.fullmatch(name)):
            yield f"{name} does not belong in a {variant.name} adapter"
    if not numbers:
        yield "it has no attention layers (ip_adapter.N.to_k_ip.weight, ip_adapter.N.to_v_ip.weight)"
    for number in sorted(numbers, key=int):
        yield from _wrong_layer(f"ip_adapter.{number}", tensors, context_dim)


def _wrong_layer(layer: str, tensors: Tensors, context_dim: int | None) -> Iterator[str]:
    key, value = f"{layer}.to_k_ip.weight", f"{layer}.to_v_ip.weight"
    for name in (key, value):
        if name not in tensors:
            yield f"{name} is missing"
            return
    if tensors[key].ndim != 2 or tensors[key].shape[1] != context_dim:
        yield f"{key} has shape {_shape(tensors[key])}, but the image tokens are {context_dim} wide"
    yield from _wrong_shape(value, tensors, tuple(tensors[key].shape))


def _wrong_shape(name: str, tensors: Tensors, shape: tuple[int, ...]) -> Iterator[str]:
    if tensors[name].shape != shape:
        wanted = " × ".join(map(str, shape))
        yield f"{name} has shape {_shape(tensors[name])}, not {wanted}"


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "()"
