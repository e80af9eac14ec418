"""Write docs/variants.md: the published adapters on their true architectures, their sizes and tensor names.

    python scripts/variants.py > docs/variants.md

The script builds everything on the meta device, without memory: the bases from their configurations, the
adapters by imprompt's own classes. tests/test_variants.py compares the counts with the published ones.

Sizes: tencent-ailab/IP-Adapter at 62e4af9 (`ip_adapter.py`, `resampler.py`, `ip_adapter_faceid.py`); Kolors
as readers of its file expect it. Bases: the `unet/config.json` of stable-diffusion-v1-5,
stable-diffusion-xl-base-1.0 and Kolors-diffusers, where they differ from diffusers' defaults. For
transformers the code and the cards of XLabs-AI, InstantX and black-forest-labs.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.flux_layers import list_flux_shapes
from imprompt.attention.joint_layers import list_joint_shapes
from imprompt.attention.layers import find_cross_attention_layers, read_layer_shapes
from imprompt.attention.weights import list_lora_shapes
from imprompt.checkpoint.names import to_official
from imprompt.checkpoint.published import ENCODERS, PUBLISHED
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

_SDXL: dict[str, Any] = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

UNETS: dict[str, dict[str, Any]] = {
    "SD1.5": {"cross_attention_dim": 768},
    "SDXL": _SDXL,
    "Kolors": _SDXL
    | {
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "projection_class_embeddings_input_dim": 5632,
    },
}
"""Configurations of the bases' U-Nets."""

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "FLUX.1": {},
    "SD3.5 Large": {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
}
"""Configurations of the bases' transformers, where they differ from diffusers' defaults."""

_WIDTH_768, _WIDTH_1280 = PerceiverShape(width=768), PerceiverShape(width=1280)
_KOLORS_SHAPE = PerceiverShape(width=2048, attention_width=12 * 64)
_LORA_RANK = 128


class Architecture(NamedTuple):
    """The projection of a published adapter, and the rank of its LoRA if it has one."""

    projection: Callable[[], ImageProjection]
    lora_rank: int | None = None


ARCHITECTURES = {
    "sd15": Architecture(lambda: LinearProjection(1024, 768)),
    "sd15-light": Architecture(lambda: LinearProjection(1024, 768)),
    "sd15-vit-G": Architecture(lambda: LinearProjection(1280, 768)),
    "sd15-plus": Architecture(lambda: ResamplerProjection(1280, 768, shape=_WIDTH_768)),
    "sd15-plus-face": Architecture(lambda: ResamplerProjection(1280, 768, shape=_WIDTH_768)),
    "sd15-full-face": Architecture(lambda: PatchProjection(1280, 768)),
    "sd15-composition": Architecture(lambda: ResamplerProjection(1280, 768, shape=_WIDTH_768)),
    "sdxl": Architecture(lambda: LinearProjection(1280, 2048)),
    "sdxl-vit-h": Architecture(lambda: LinearProjection(1024, 2048)),
    "sdxl-plus": Architecture(lambda: ResamplerProjection(1280, 2048, shape=_WIDTH_1280)),
    "sdxl-plus-face": Architecture(lambda: ResamplerProjection(1280, 2048, shape=_WIDTH_1280)),
    "sdxl-composition": Architecture(lambda: ResamplerProjection(1280, 2048, shape=_WIDTH_1280)),
    "sd15-faceid": Architecture(lambda: FaceProjection(768), _LORA_RANK),
    "sd15-faceid-plus": Architecture(lambda: FacePlusProjection(1280, 768, version=1), _LORA_RANK),
    "sd15-faceid-plusv2": Architecture(lambda: FacePlusProjection(1280, 768, version=2), _LORA_RANK),
    "sd15-faceid-portrait": Architecture(lambda: FaceProjection(768, 16)),
    "sdxl-faceid": Architecture(lambda: FaceProjection(2048), _LORA_RANK),
    "sdxl-faceid-plusv2": Architecture(lambda: FacePlusProjection(1280, 2048, version=2), _LORA_RANK),
    "sdxl-faceid-portrait": Architecture(lambda: FaceProjection(2048, 16)),
    "kolors-plus": Architecture(lambda: ResamplerProjection(1024, 2048, shape=_KOLORS_SHAPE)),
    "flux-xlabs": Architecture(lambda: LinearProjection(768, 4096)),
    "flux-xlabs-v2": Architecture(lambda: LinearProjection(768, 4096, 16)),
    "flux-instantx": Architecture(lambda: HiddenProjection(1152, 4096, 128, hidden=2304)),
    "flux-redux": Architecture(lambda: TokenProjection(1152, 4096)),
    "sd35": Architecture(lambda: TimeResamplerProjection(1152, 2432, shape=_WIDTH_1280)),
}
"""Short name → architecture, for every published adapter."""


class Variant(NamedTuple):
    """A published adapter with its parameter counts."""

    name: str
    variant: str
    base: str
    encoders: str
    """The models that make its inputs, as a phrase."""
    tokens: int
    key_value: int
    """Parameters of all W'_k and W'_v, and of the norms of their layers."""
    projection: int
    """Parameters of the projection."""
    lora: int
    """Parameters of the low-rank changes to the base's attention."""
    keys: dict[str, tuple[int, ...]]
    """Official names and shapes."""

    @property
    def total(self) -> int:
        """The number of all parameters."""
        return self.key_value + self.projection + self.lora


def variants_table() -> list[Variant]:
    """Build every published adapter without memory and count its parameters."""
    return [_count_parameters(name) for name in ARCHITECTURES]


@functools.cache
def meta_unet(family: str) -> UNet2DConditionModel:
    """Return the U-Net of a base, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[family])


@functools.cache
def meta_transformer(family: str) -> Any:
    """Return the transformer of a base, on the meta device."""
    kind = FluxTransformer2DModel if family == "FLUX.1" else SD3Transformer2DModel
    with torch.device("meta"):
        return kind(**TRANSFORMERS[family])


def list_transformer_layers(name: str) -> dict[int, tuple[int, int]]:
    """Return the layers of a published adapter for a transformer."""
    published = PUBLISHED[name]
    transformer = meta_transformer(published.base_family)
    if published.variant == "flux-redux":
        return {0: (4096, 4096)}
    if published.variant == "sd35":
        return list_joint_shapes(transformer)
    return list_flux_shapes(transformer, single=published.variant == "flux-instantx")


def meta_adapter(name: str) -> ImagePromptAdapter:
    """Build a published adapter on the meta device."""
    architecture, family = ARCHITECTURES[name], PUBLISHED[name].base_family
    if family in TRANSFORMERS:
        layers = list_transformer_layers(name)
        with torch.device("meta"):
            injection: Any = PUBLISHED[name].variant
            return ImagePromptAdapter(architecture.projection(), layers, injection=injection)
    unet = meta_unet(family)
    layers = read_layer_shapes(find_cross_attention_layers(unet))
    lora = list_lora_shapes(unet, architecture.lora_rank) if architecture.lora_rank else None
    with torch.device("meta"):
        return ImagePromptAdapter(architecture.projection(), layers, lora)


@functools.cache
def _count_parameters(name: str) -> Variant:
    adapter, published = meta_adapter(name), PUBLISHED[name]
    tensors = to_official(adapter.state_dict())
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}

    def count(pattern: str) -> int:
        return sum(tensor.numel() for key, tensor in tensors.items() if re.search(pattern, key))

    encoders = [ENCODERS[taken].name for taken in adapter.projection.takes.items()]
    return Variant(
        name,
        published.variant,
        published.base_family,
        " and ".join(encoders),
        adapter.projection.tokens,
        key_value=count(r"^ip_adapter\.\d+\.(to_[kv]_ip|norm_)"),
        projection=count(r"^image_proj\."),
        lora=count(r"_lora\."),
        keys=shapes,
    )


def variants_markdown() -> str:
    """Return docs/variants.md: the table, then the names and shapes of each kind of file."""
    rows = variants_table()
    return "\n".join([*_head(), *_counts(rows), *_sources(rows), *_key_lists(rows)])


def _head() -> Iterator[str]:
    yield from (
        "# The published adapters",
        "",
        "`python scripts/variants.py` writes this page. It builds every adapter without memory on the true",
        "architecture of its base and counts its parameters. A test compares the counts with the published",
        "ones.",
        "",
    )


def _counts(rows: list[Variant]) -> Iterator[str]:
    yield "| short name | variant | base | takes | tokens | K', V' | projection | LoRA | all |"
    yield "|---|---|---|---|--:|--:|--:|--:|--:|"
    for row in rows:
        counts = row.tokens, row.key_value, row.projection, row.lora, row.total
        numbers = " | ".join(f"{count:,}" if count else "–" for count in counts)
        yield f"| `{row.name}` | {row.variant} | {row.base} | {row.encoders} | {numbers} |"
    yield ""


def _sources(rows: list[Variant]) -> Iterator[str]:
    yield from (
        "## Where they are",
        "",
        "| short name | file | image encoder | license | |",
        "|---|---|---|---|---|",
    )
    for row in rows:
        one = PUBLISHED[row.name]
        encoder = f"`{one.encoder}`" if one.encoder else "–"
        yield f"| `{row.name}` | `{one.repository}:{one.file}` | {encoder} | {one.license} | {one.note} |"
    yield ""


def _key_lists(rows: list[Variant]) -> Iterator[str]:
    yield from (
        "## What is in the files",
        "",
        "N is the number of an attention layer, i that of a layer of the perceiver.",
    )
    same: dict[str, list[str]] = {}
    for row in rows:
        same.setdefault("\n".join(_key_lines(row.keys)), []).append(f"`{row.name}`")
    for lines, names in same.items():
        yield from ("", f"### {', '.join(names)}", "", "| name | shape | tensors |", "|---|---|--:|", lines)


def _key_lines(keys: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield one line for all names that differ only in a number."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for key, shape in keys.items():
        pattern = re.sub(r"^ip_adapter\.\d+\.", "ip_adapter.N.", re.sub(r"\blayers\.\d+\.", "layers.i.", key))
        groups.setdefault(pattern, []).append(shape)
    for pattern, shapes in groups.items():
        different = sorted(set(shapes))
        words = ", ".join(" × ".join(map(str, shape)) for shape in different)
        yield f"| `{pattern}` | {words} | {len(shapes)} |"


if __name__ == "__main__":
    print(variants_markdown())
