"""What a file is: every published variant by its shapes alone, and every way in which one can be wrong."""

import re

import pytest
import torch
from torch import Tensor
from variants import meta_adapter

import adapter_files
import tiny
from imprompt.checkpoint import PUBLISHED, Description, to_official
from imprompt.checkpoint.files import TensorFile
from imprompt.checkpoint.recognize import recognize

UNKNOWN = "an unknown image encoder"
VIT_H = "CLIP ViT-H/14 penultimate features, 1280 wide"
ARCFACE = "ArcFace identity embedding, 512 wide"
ENCODERS = {
    "base": "CLIP ViT-H/14 projected embedding, 1024 wide",
    "plus": VIT_H,
    "full-face": VIT_H,
    "faceid": ARCFACE,
    "faceid-portrait": ARCFACE,
    "faceid-plus": f"{ARCFACE}, and {VIT_H}",
    "flux-xlabs": "CLIP ViT-L/14 projected embedding, 768 wide",
    "flux-instantx": "SigLIP so400m pooled embedding, 1152 wide",
    "flux-redux": "SigLIP so400m last features, 1152 wide",
    "sd35": "SigLIP so400m penultimate features, 1152 wide",
}
OTHER_ENCODERS = {
    "sd15-vit-G": "CLIP ViT-bigG/14 projected embedding, 1280 wide",
    "sdxl": "CLIP ViT-bigG/14 projected embedding, 1280 wide",
    "kolors-plus": "CLIP ViT-L/14-336 penultimate features, 1024 wide",
}


def describe_tensors(tensors: dict[str, Tensor], **metadata: str) -> Description:
    return recognize(TensorFile(tensors, metadata, "safetensors")).description


def of_shapes(shapes: dict[str, tuple[int, ...]]) -> Description:
    return describe_tensors({name: torch.zeros(shape) for name, shape in shapes.items()})


def layers(context_dim: int, inner: list[int]) -> dict[str, tuple[int, ...]]:
    return {
        f"ip_adapter.{2 * i + 1}.to_{x}_ip.weight": (width, context_dim)
        for i, width in enumerate(inner)
        for x in "kv"
    }


def linear(context_dim: int, embedding_dim: int, tokens: int = 4) -> dict[str, tuple[int, ...]]:
    rows = tokens * context_dim
    return {
        "image_proj.proj.weight": (rows, embedding_dim),
        "image_proj.proj.bias": (rows,),
        "image_proj.norm.weight": (context_dim,),
        "image_proj.norm.bias": (context_dim,),
    }


# The published variants, on their true architectures


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_recognised_by_its_shapes(name: str) -> None:
    adapter, published = meta_adapter(name), PUBLISHED[name]
    found = describe_tensors({k: v.to(torch.float16) for k, v in to_official(adapter.state_dict()).items()})
    assert found.problems == ()
    assert found.limit is None
    assert (found.variant, found.base_family) == (published.variant, published.base_family)
    assert found.encoder == OTHER_ENCODERS.get(name, ENCODERS[published.variant])
    assert (found.tokens, found.takes) == (adapter.projection.tokens, dict(adapter.projection.takes))
    assert found.layers == adapter.shapes
    assert found.parameters == sum(parameter.numel() for parameter in adapter.parameters())
    assert found.lora_rank == (128 if len(adapter.lora) else None)
    assert (found.layout, found.repairs, found.dtypes) == ("official layout (safetensors)", (), ("float16",))


@pytest.mark.parametrize(
    ("family", "context_dim", "inner"),
    [("SD1.5", 768, [1] * 16), ("SD2.x", 1024, [1] * 16), ("SDXL", 2048, [1] * 70), (None, 768, [1] * 5)],
)
def test_base_families_are_recognised(family: str | None, context_dim: int, inner: list[int]) -> None:
    assert of_shapes(linear(context_dim, 8) | layers(context_dim, inner)).base_family == family


@pytest.mark.parametrize(
    ("width", "tokens", "encoder"), [(1024, 7, ENCODERS["base"]), (77, 9, f"{UNKNOWN}, 77 wide")]
)
def test_any_number_of_tokens_and_any_encoder(width: int, tokens: int, encoder: str) -> None:
    found = of_shapes(linear(12, width, tokens) | layers(12, [8]))
    assert (found.variant, found.tokens, found.encoder, found.problems) == ("base", tokens, encoder, ())


# What cannot be used, and why


@pytest.mark.parametrize(
    ("variant", "shapes"),
    [
        (
            "instantid",
            {"image_proj.latents": (1, 2, 64), "image_proj.proj_in.weight": (64, 512)}
            | {"image_proj.proj_out.weight": (8, 64)},
        ),
    ],
)
def test_what_cannot_be_used_is_recognised_and_said(variant: str, shapes: dict[str, tuple[int, ...]]) -> None:
    found = of_shapes(shapes)
    assert found.variant == variant
    assert found.limit
    assert found.limit.startswith(f"{variant} adapters are recognized but cannot be used")


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({"image_proj.magic": (2,)}, "its projection (image_proj) is of an unknown kind"),
        (layers(4, [2]), "it has attention layers but no projection (image_proj)"),
        (
            {"lora.up": (2,)},
            "it is no image-prompt adapter: it has no image_proj tensors (its first tensor is lora.up)",
        ),
        ({}, "it is no image-prompt adapter: it has no image_proj tensors (its first tensor is None)"),
    ],
)
def test_what_is_no_adapter_is_said_to_be_none(shapes: dict[str, tuple[int, ...]], problem: str) -> None:
    assert of_shapes(shapes).problems == (problem,)


# Wrong files of every variant

VARIANTS = [name for name in adapter_files.PROJECTIONS if name != "faceid-plusv2"]


def file_of(variant: str) -> dict[str, Tensor]:
    return adapter_files.official(adapter_files.adapter(tiny.sd_unet(), variant))


def described_tiny(tensors: dict[str, Tensor]) -> Description:
    return describe_tensors(tensors, tokens=str(adapter_files.PATCHES))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_missing_tensor_is_named(variant: str) -> None:
    whole = file_of(variant)
    assert described_tiny(whole).problems == ()
    for name in whole:
        problems = described_tiny({k: v for k, v in whole.items() if k != name}).problems
        assert f"{name} is missing" in problems, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_with_a_row_too_many_is_found(variant: str) -> None:
    whole = file_of(variant)
    for name, tensor in whole.items():
        problems = described_tiny(whole | {name: torch.cat([tensor, tensor[-1:]])}).problems
        assert problems, name
        # Where a size is read from the very tensor, those that do not go with it are named instead.
        words = [
            word for problem in problems for word in re.findall(r"(?:image_proj|ip_adapter)[\w.]+", problem)
        ]
        reads_a_size = name.endswith("to_k_ip.weight") or re.fullmatch(
            r"image_proj\..*weight|.*latents", name
        )
        assert reads_a_size or any(name.startswith(word) for word in words), (name, problems)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "extra", ["image_proj.extra", "ip_adapter.1.to_q_ip.weight", "optimizer", "ip_adapter.01.to_k_ip.weight"]
)
def test_every_extra_tensor_is_named(variant: str, extra: str) -> None:
    problems = described_tiny(file_of(variant) | {extra: torch.zeros(2)}).problems
    assert f"{extra} does not belong in a {variant} adapter" in problems


def test_layers_of_a_resampler_that_do_not_follow_each_other_are_named() -> None:
    whole = file_of("plus")
    moved = {name.replace(".layers.3.", ".layers.7."): tensor for name, tensor in whole.items()}
    problems = described_tiny(moved).problems
    assert "image_proj.layers.3.0.to_q.weight is missing" in problems
    assert "image_proj.layers.7.0.to_q.weight does not belong in a plus adapter" in problems


def test_a_lora_belongs_to_faces_only() -> None:
    lora = {k: v for k, v in file_of("faceid").items() if "_lora." in k}
    assert (
        "ip_adapter.0.to_q_lora.down.weight does not belong in a base adapter"
        in describe_tensors(file_of("base") | lora).problems
    )


def test_a_lora_whose_halves_do_not_meet_is_named() -> None:
    whole = file_of("faceid")
    down = "ip_adapter.4.to_v_lora.down.weight"
    (problem,) = describe_tensors(whole | {down: whole[down][1:]}).problems
    up = "ip_adapter.4.to_v_lora.up.weight"
    assert problem == f"{down} and {up} have shapes 2 × 16 and 16 × 3, which form no LoRA"


def test_sizes_that_overflow_are_refused() -> None:
    shapes = {"image_proj.proj.0.weight": (2**40, 4), "image_proj.proj.3.weight": (2**40,)}
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    assert any(
        "sizes of its projection are impossible" in problem for problem in describe_tensors(tensors).problems
    )
