"""How strongly a reference acts, layer by layer: modes, pushing away, scaling."""

import copy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

import tiny
from imprompt.adapter.condition import _apply_strengths, _strength
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.layers import find_cross_attention_layers
from imprompt.errors import InvalidReference
from imprompt.reference import Reference
from showing import close, latents, output, run_unet

pytestmark = pytest.mark.usefixtures("no_grad")


# Layers


def test_layers_that_are_off_are_as_if_their_values_were_zero(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    weights = {"up": 1.0, "mid": 0.5}
    alike = copy.deepcopy(adapter)
    for number, (name, _) in find_cross_attention_layers(unet).items():
        section = name.split("_")[0]
        alike.key_value(number).to_value.weight.mul_(weights.get(section, 0.0))
    embedding = tiny.embedding(1)
    close(
        run_unet(unet, adapter, Reference(embedding, layers=weights)),
        run_unet(unet, alike, Reference(embedding)),
    )


def test_layers_that_are_off_cost_nothing(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    with (
        adapter.attach(unet) as attachment,
        adapter.references(Reference(tiny.embedding(1), layers={"mid": 1})),
    ):
        output(unet)
        terms = {
            attachment.names[n].split("_")[0]: len(p.state.terms) for n, p in attachment.layers.terms.items()
        }
    assert terms == {"down": 0, "up": 0, "mid": 1}


def test_two_references_in_different_layers_are_one_in_both(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    embedding = tiny.embedding(1)
    parts = [Reference(embedding, layers={"down": 1.0}), Reference(embedding, layers={"up": 1.0, "mid": 1.0})]
    close(run_unet(unet, adapter, *parts), run_unet(unet, adapter, Reference(embedding)))


def test_every_prompt_has_its_own_layers(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    references = [
        Reference(tiny.embedding(1, seed=0), layers={"down": 1.0}, scale=0.7),
        Reference(tiny.embedding(1, seed=1), layers={"up": 0.5}, scaling="key and mean value", scale=0.7),
    ]
    together = run_unet(unet, adapter, references)
    for row, reference in enumerate(references):
        close(together[row], run_unet(unet, adapter, reference)[row])


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny base has no precise modes; this one follows in the middle and avoids going up."""
    from imprompt.adapter import condition as conditions
    from imprompt.attention.layer_weights import LayerWeights

    def weights(layers: object, names: dict[int, str], *, convention: str) -> LayerWeights:
        avoid = {number: 0.5 for number, name in names.items() if name.startswith("up")}
        return LayerWeights({number: float(name.startswith("mid")) for number, name in names.items()}, avoid)

    monkeypatch.setattr(conditions, "layer_weights", weights)


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("boost", [None, 1.5])
def test_a_precise_mode_shows_the_picture_to_the_negative_branch_alone(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, boost: float | None
) -> None:
    embedding, scale = tiny.embedding(1), 0.8
    reference = Reference(embedding, scale=scale, boost=boost)
    with adapter.attach(unet), adapter.references(reference, branches=("negative", "positive")):
        both = output(unet)
    pushed, middle = (scale if boost is None else boost) * 0.5, {"mid": 1.0}
    zero = torch.zeros_like(embedding)
    positive = unprecise(unet, adapter, Reference(embedding, scale=scale, layers=middle))
    negative = unprecise(
        unet,
        adapter,
        Reference(zero, scale=scale, layers=middle),
        Reference(embedding, scale=pushed, layers={"up": 1.0}),
    )
    close(both[0], negative[0])
    close(both[1], positive[1])


def unprecise(unet: UNet2DConditionModel, adapter: ImagePromptAdapter, *references: Reference) -> Tensor:
    from imprompt.adapter import condition as conditions
    from imprompt.attention import layer_weights

    with patch.object(conditions, "layer_weights", layer_weights.layer_weights):
        return run_unet(unet, adapter, *references)


@pytest.mark.usefixtures("precise")
def test_a_precise_mode_needs_guidance(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(Reference(tiny.embedding(1))):
        latents(pipe, guidance_scale=3.0)
        with pytest.raises(InvalidReference, match="guidance is off"):
            latents(pipe, guidance_scale=1.0)


def test_a_boost_without_a_precise_mode_is_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    with pytest.raises(InvalidReference, match="boost has no effect with layers='full'"):
        run_unet(unet, adapter, Reference(tiny.embedding(1), boost=2.0))


# Scaling


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("scaling", ["value", "key and value", "key and mean value"])
def test_scaling_follows_its_formula(scaling: Any, penalty: bool) -> None:
    key, value, width, scale = torch.randn(1, 4, 640), torch.randn(1, 4, 640), 640, 0.7
    reference = Reference(tiny.embedding(1), scale=scale, scaling=scaling, width_penalty=penalty)
    w = scale * width / 1280 if penalty else scale
    mean = value.mean(1, keepdim=True)
    expected = {
        "value": (key, w * value),
        "key and value": (w * key, w * value),
        "key and mean value": (w * key, value - mean + w * mean),
    }[scaling]
    scaled = _apply_strengths(key, value, [_strength(reference, scale, width)])
    for ours, theirs in zip(scaled, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scaling", ["value", "key and value", "key and mean value"])
def test_any_scaling_with_scale_zero_is_the_base_model_to_the_last_bit(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, scaling: Any
) -> None:
    reference = Reference(tiny.embedding(1), scale=0.0, scaling=scaling)
    assert torch.equal(run_unet(unet, adapter, reference), output(unet))


@pytest.mark.parametrize("scaling", ["value", "key and value", "key and mean value"])
def test_any_scaling_with_scale_one_is_the_same(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, scaling: Any
) -> None:
    close(
        run_unet(unet, adapter, Reference(tiny.embedding(1), scaling=scaling)),
        run_unet(unet, adapter, Reference(tiny.embedding(1))),
    )
