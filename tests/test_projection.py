"""Image projections: laws, the official names, and the same tokens as diffusers makes of the same weights."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.errors import AdapterMismatch, InvalidReference
from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    ImageProjection,
    LinearProjection,
    PatchProjection,
    PerceiverShape,
    ResamplerProjection,
)

# Widths are distinct, so that a swapped one cannot hide. diffusers takes 4 layers and 64-wide heads only.
SHAPE = PerceiverShape(width=40, attention_width=128)


def resampler(depth: int = 4, tokens: int = 5) -> ResamplerProjection:
    shape = PerceiverShape(width=40, depth=depth, attention_width=24, feed_forward_width=50, head_dim=8)
    return ResamplerProjection(11, 20, tokens, shape=shape)


def face_plus(version: Literal[1, 2]) -> FacePlusProjection:
    shape = PerceiverShape(width=20, attention_width=64)
    return FacePlusProjection(11, 20, 4, version=version, embedding_dim=6, shape=shape)


def random(projection: ImageProjection) -> ImageProjection:
    """Random biases and norms too, so that none of them can be left out unnoticed."""
    for parameter in projection.parameters():
        nn.init.normal_(parameter, std=0.3)
    return projection.requires_grad_(False)


def inputs(projection: ImageProjection, batch: int = 3, patches: int = 7) -> list[Tensor]:
    return [
        torch.randn((batch, patches, width) if name == "image_features" else (batch, width))
        for name, width in projection.takes.items()
    ]


ALL: dict[str, Callable[[], ImageProjection]] = {
    "linear": lambda: LinearProjection(7, 5, 3),
    "plus": lambda: ResamplerProjection(11, 20, 5, shape=SHAPE),
    "plus, other sizes": resampler,
    "full-face": lambda: PatchProjection(11, 20, 7, hidden_dim=13),
    "faceid": lambda: FaceProjection(20, 4, embedding_dim=6),
    "portrait": lambda: FaceProjection(20, 16, embedding_dim=6),
    "faceid-plus": lambda: face_plus(1),
    "faceid-plusv2": lambda: face_plus(2),
}


# Laws


@pytest.mark.parametrize("name", ALL)
def test_a_projection_says_what_it_makes(name: str) -> None:
    projection = ALL[name]()
    assert projection(*inputs(projection)).shape == (3, projection.tokens, projection.context_dim)


@pytest.mark.parametrize("name", ALL)
def test_pictures_of_a_batch_do_not_touch_each_other(name: str) -> None:
    projection = random(ALL[name]())
    batch = inputs(projection)
    alone = torch.cat([projection(*(x[i : i + 1] for x in batch)) for i in range(3)])
    torch.testing.assert_close(projection(*batch), alone)


@pytest.mark.parametrize("name", ALL)
def test_every_weight_and_every_input_counts(name: str) -> None:
    projection = random(ALL[name]())
    batch = [x.requires_grad_() for x in inputs(projection)]
    projection.requires_grad_(True)(*batch).square().sum().backward()
    for parameter in (*batch, *projection.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


SEEDED: dict[str, Callable[..., ImageProjection]] = {
    "linear": functools.partial(LinearProjection, 7, 5),
    "plus": functools.partial(ResamplerProjection, 11, 64, 5),
    "full-face": functools.partial(PatchProjection, 11, 20, 7),
    "faceid": functools.partial(FaceProjection, 20),
    "faceid-plus": functools.partial(FacePlusProjection, 11, 64, version=1),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_makes_the_same_weights_again(name: str) -> None:
    one, same, other = (SEEDED[name](generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    linears = [module.weight for module in one.modules() if isinstance(module, nn.Linear)]
    others = [module.weight for module in other.modules() if isinstance(module, nn.Linear)]
    assert not any(torch.equal(a, b) for a, b in zip(linears, others, strict=True))
    limits = [1 / weight.shape[1] ** 0.5 for weight in linears]
    assert all(weight.abs().max() <= limit for weight, limit in zip(linears, limits, strict=True))


@settings(max_examples=10)
@given(st.permutations(range(7)))
def test_the_order_of_the_patches_does_not_matter_to_a_perceiver(order: list[int]) -> None:
    plus = random(resampler())
    (features,) = inputs(plus)
    torch.testing.assert_close(plus(features[:, order]), plus(features))
    face = random(face_plus(2))
    embedding, features = inputs(face)
    torch.testing.assert_close(face(embedding, features[:, order]), face(embedding, features))


def test_full_face_makes_each_token_of_its_own_patch_alone() -> None:
    projection = random(PatchProjection(11, 20, 7))
    (features,) = inputs(projection)
    torch.testing.assert_close(projection(features.flip(1)), projection(features).flip(1))


@pytest.mark.parametrize("depth", [0, 1, 2, 6])
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_resampler_may_have_any_depth_and_any_number_of_tokens(depth: int, tokens: int) -> None:
    projection = resampler(depth, tokens)
    assert projection(*inputs(projection)).shape == (3, tokens, 20)
    assert sum(name.endswith("to_q.weight") for name in projection.state_dict()) == depth


def test_a_resampler_layer_is_the_formula() -> None:
    projection = random(resampler(depth=1))
    (features,) = inputs(projection, batch=1)
    w = projection.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    x, z = features[0] @ w["proj_in.weight"].T + w["proj_in.bias"], w["latents"][0]
    seen = torch.cat([norm(x, "layers.0.0.norm1"), norm(z, "layers.0.0.norm2")])
    query = norm(z, "layers.0.0.norm2") @ w["layers.0.0.to_q.weight"].T
    key, value = (seen @ half.T for half in w["layers.0.0.to_kv.weight"].chunk(2))
    heads = [
        torch.softmax(query[:, i : i + 8] @ key[:, i : i + 8].T / 8**0.5, dim=-1) @ value[:, i : i + 8]
        for i in (0, 8, 16)
    ]
    z = z + torch.cat(heads, dim=1) @ w["layers.0.0.to_out.weight"].T
    hidden = F.gelu(norm(z, "layers.0.1.0") @ w["layers.0.1.1.weight"].T)
    z = z + hidden @ w["layers.0.1.3.weight"].T
    expected = norm(z @ w["proj_out.weight"].T + w["proj_out.bias"], "norm_out")
    torch.testing.assert_close(projection(features)[0], expected)


def test_version_2_adds_the_faces_own_tokens_to_the_look_of_the_picture() -> None:
    first, second = random(face_plus(1)), face_plus(2)
    second.load_state_dict(first.state_dict())
    face, features = inputs(first)
    identity = second(face, features, 0.0)
    for strength in (0.5, 1, 2.5):
        expected = identity + strength * first(face, features)
        torch.testing.assert_close(second(face, features, strength), expected)
    each = second(face, features, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(each[0], identity[0])
    torch.testing.assert_close(each[2], second(face, features, 2.0)[2])


def test_version_2_without_strength_does_not_see_the_picture() -> None:
    projection = random(face_plus(2))
    face, features = inputs(projection)
    assert torch.equal(projection(face, features, 0.0), projection(face, torch.randn_like(features), 0.0))


# Edges and failures


def test_version_1_has_no_strength() -> None:
    projection = face_plus(1)
    face, features = inputs(projection)
    assert torch.equal(projection(face, features, torch.ones(3)), projection(face, features))
    for strength in (0.5, torch.tensor([1.0, 1.0, 2.0])):
        with pytest.raises(InvalidReference, match="version 1 has no face scale; it must be 1"):
            projection(face, features, strength)


def test_version_2_cannot_add_tokens_of_different_widths() -> None:
    with pytest.raises(AdapterMismatch, match=r"64 wide\) to the picture's \(20 wide\)"):
        FacePlusProjection(11, 20, version=2, shape=PerceiverShape(width=64))


def test_full_face_refuses_another_number_of_patches() -> None:
    with pytest.raises(AdapterMismatch, match="takes 7 features of a picture; this image encoder returns 8"):
        PatchProjection(11, 20, 7)(torch.zeros(1, 8, 11))


def test_heads_must_fill_the_attention() -> None:
    with pytest.raises(ValueError, match="an attention 40 wide cannot have heads 64 wide"):
        PerceiverShape(width=40)


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_a_linear_projection_is_linear_then_layer_norm(tokens: int) -> None:
    projection = LinearProjection(7, 5, tokens)
    embedding = torch.randn(3, 7)
    layer = projection.proj
    assert isinstance(layer, nn.Linear)
    rows = embedding @ layer.weight.T + layer.bias
    expected = F.layer_norm(rows.view(3, tokens, 5), (5,))
    torch.testing.assert_close(projection(embedding), expected)


def test_a_zero_embedding_becomes_tokens_that_are_the_same_for_every_picture() -> None:
    tokens = LinearProjection(7, 5)(torch.zeros(2, 7))
    assert torch.equal(tokens[0], tokens[1])
    assert tokens.abs().max() > 0


# The official names and shapes (tencent-ailab/IP-Adapter at 62e4af9)

BASE = {"proj.weight": (15, 7), "proj.bias": (15,), "norm.weight": (5,), "norm.bias": (5,)}
FACE = {"proj.0.weight": (1024, 512), "proj.0.bias": (1024,)} | {
    "proj.2.weight": (3072, 1024),
    "proj.2.bias": (3072,),
    "norm.weight": (768,),
    "norm.bias": (768,),
}
FULL_FACE = {"proj.0.weight": (1280, 1280), "proj.0.bias": (1280,)} | {
    "proj.2.weight": (768, 1280),
    "proj.2.bias": (768,),
    "proj.3.weight": (768,),
    "proj.3.bias": (768,),
}


def perceiver(width: int, attention: int, features: int, context: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "proj_in.weight": (width, features),
        "proj_in.bias": (width,),
        "proj_out.weight": (context, width),
        "proj_out.bias": (context,),
        "norm_out.weight": (context,),
        "norm_out.bias": (context,),
    }
    for i in range(4):
        shapes |= {f"layers.{i}.0.{n}.{x}": (width,) for n in ("norm1", "norm2") for x in ("weight", "bias")}
        shapes |= {
            f"layers.{i}.0.to_q.weight": (attention, width),
            f"layers.{i}.0.to_kv.weight": (2 * attention, width),
            f"layers.{i}.0.to_out.weight": (width, attention),
            f"layers.{i}.1.0.weight": (width,),
            f"layers.{i}.1.0.bias": (width,),
            f"layers.{i}.1.1.weight": (4 * width, width),
            f"layers.{i}.1.3.weight": (width, 4 * width),
        }
    return shapes


SDXL_SHAPE = PerceiverShape(width=1280)
KOLORS_SHAPE = PerceiverShape(width=2048, attention_width=768)
OFFICIAL: dict[str, tuple[Callable[[], ImageProjection], dict[str, tuple[int, ...]]]] = {
    "base": (lambda: LinearProjection(7, 5, 3), BASE),
    "plus, SD1.5": (
        lambda: ResamplerProjection(1280, 768),
        perceiver(768, 768, 1280, 768) | {"latents": (1, 16, 768)},
    ),
    "plus, SDXL": (
        lambda: ResamplerProjection(1280, 2048, shape=SDXL_SHAPE),
        perceiver(1280, 1280, 1280, 2048) | {"latents": (1, 16, 1280)},
    ),
    "plus, Kolors": (
        lambda: ResamplerProjection(1024, 2048, shape=KOLORS_SHAPE),
        perceiver(2048, 768, 1024, 2048) | {"latents": (1, 16, 2048)},
    ),
    "full-face": (lambda: PatchProjection(1280, 768), FULL_FACE),
    "faceid": (lambda: FaceProjection(768), FACE),
    "faceid-plus": (
        lambda: FacePlusProjection(1280, 768, version=1),
        FACE | {f"perceiver_resampler.{k}": shape for k, shape in perceiver(768, 768, 1280, 768).items()},
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_state_dict_has_the_official_names_and_shapes(name: str) -> None:
    make, shapes = OFFICIAL[name]
    with torch.device("meta"):
        projection = make()
    assert {name: tuple(tensor.shape) for name, tensor in projection.state_dict().items()} == shapes


# Parity


def diffusers_projection(projection: ImageProjection) -> Any:
    """diffusers' own module with the same weights, made by its own conversion of the official names."""
    convert: Any = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    unet = SimpleNamespace(device="cpu", dtype=torch.float32)
    return convert(unet, projection.state_dict(), low_cpu_mem_usage=False).requires_grad_(False)


@pytest.mark.parametrize(
    "projection",
    [
        pytest.param(LinearProjection(7, 5, 4), id="base"),
        pytest.param(ResamplerProjection(11, 20, 5, shape=SHAPE), id="plus"),
        pytest.param(ResamplerProjection(11, 20, 1, shape=PerceiverShape(width=64)), id="plus, one token"),
        pytest.param(PatchProjection(11, 20, 7), id="full-face"),
        pytest.param(FaceProjection(20, 4, embedding_dim=6), id="faceid"),
        pytest.param(FaceProjection(20, 16, embedding_dim=6), id="portrait"),
    ],
)
def test_diffusers_makes_the_same_tokens(projection: ImageProjection) -> None:
    (given_input,) = inputs(random(projection))
    theirs = diffusers_projection(projection)(given_input)
    torch.testing.assert_close(projection(given_input), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_diffusers_makes_the_same_tokens_of_a_face_and_its_picture(version: Literal[1, 2]) -> None:
    projection = random(face_plus(version))
    face, features = inputs(projection)
    theirs = diffusers_projection(projection)
    theirs.clip_embeds = features.unsqueeze(0)
    theirs.shortcut, strengths = version == 2, (1.0, 0.3, 2) if version == 2 else (1.0,)
    for strength in strengths:
        theirs.shortcut_scale = strength
        ours = projection(face, features, strength)
        torch.testing.assert_close(ours, theirs(face), rtol=0, atol=1e-5)
