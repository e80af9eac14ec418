"""References with finished keys and values → conditions: how strong, in which layers, where, when.

A layer that pushes away from the picture ("precise" modes) has nothing on the positive branch and the picture
on the negative one: guidance, u + w (c - u), then weighs what stands in u alone by 1 - w.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.attention.batch import Condition
from imprompt.attention.layer_weights import LayerWeights, layer_weights
from imprompt.attention.pipeline_state import Moment
from imprompt.attention.processor import KeyValue, split_heads
from imprompt.errors import AttachmentError, InvalidReference
from imprompt.reference import Reference

K = TypeVar("K")

KeysValues = Mapping[int, tuple[Tensor, Tensor]]
"""Layer number → K' and V', each "prompts tokens inner_dim"."""

FULL_WIDTH = 1280
"""The width C at which `Reference.width_penalty` changes nothing: that of the deepest layers."""


class Strength(NamedTuple):
    """K ← key · K', V ← spread · (V' - mean V') + mean · mean V', the mean over tokens."""

    key: float
    spread: float
    mean: float


class Asked(NamedTuple):
    """What one prompt's reference asks of the layers."""

    reference: Reference
    weights: LayerWeights

    def follows(self, layer: int) -> float:
        """λ at a layer."""
        return float(self.reference.scale * self.weights.follow[layer])

    def avoids(self, layer: int) -> float:
        """How strongly a layer pushes away."""
        boost = self.reference.scale if self.reference.boost is None else self.reference.boost
        return float(boost * self.weights.avoid.get(layer, 0.0))


def asked_of(references: Sequence[Reference], names: Mapping[int, str]) -> list[Asked]:
    """Resolve the layers that references name, on a base with these cross-attention modules.

    Raises:
        InvalidReference: layers that the base does not have, or a boost without effect
    """
    asked = [Asked(one, layer_weights(one.layers, names, convention=one.convention)) for one in references]
    for one, weights in asked:
        if one.boost is not None and not weights.avoid:
            raise InvalidReference(f"boost has no effect with layers={one.layers!r}; it is for precise modes")
    return asked


def layers_used(asked: Sequence[Asked]) -> list[int]:
    """Layers in which any of the references does anything."""
    return [
        layer
        for layer in asked[0].weights.follow
        if any(one.follows(layer) or one.avoids(layer) for one in asked)
    ]


def finished(
    asked: Sequence[Asked], positive: KeysValues, negative: KeysValues, heads: Mapping[int, int]
) -> Condition:
    """Make a condition of keys and values, a row per prompt.

    Args:
        asked: for each prompt
        positive: of the pictures
        negative: of what stands on the negative branch
        heads: layer number → attention heads
    """
    halves = {
        layer: _halves(asked, layer, positive[layer], negative[layer], heads[layer]) for layer in positive
    }
    references = [one.reference for one in asked]

    def weights(moment: Moment) -> list[float]:
        return [_weight(reference, moment) for reference in references]

    return Condition(
        positive={layer: half[0] for layer, half in halves.items()},
        negative={layer: half[1] for layer, half in halves.items()},
        areas=[reference.area for reference in references],
        weights=weights if any(reference.is_scheduled for reference in references) else None,
        needs_guidance=any(one.weights.avoid for one in asked),
    )


def _weight(reference: Reference, moment: Moment) -> float:
    """What multiplies λ now; a list has a factor for each of the sampler's steps, or for each call."""
    step, steps, noise, sampler_step, sampler_steps = moment
    if isinstance(reference.steps, list) and len(reference.steps) == sampler_steps:
        return reference.weight(sampler_step, sampler_steps, noise)
    return reference.weight(step, steps, noise)


def stacked(prompts: Sequence[Mapping[K, Tensor]], images: int, like: Tensor) -> dict[K, Tensor]:
    """Stack the prompts' inputs, "prompts images ...", pictures repeated where there are fewer.

    Args:
        prompts: of each prompt, each "images ..."
        images: how many each shall have, a multiple of those that it has
        like: device and number format of the result
    """
    return {
        name: torch.stack([_repeated(inputs[name], images).to(like) for inputs in prompts])
        for name in prompts[0]
    }


def _repeated(value: Tensor, images: int) -> Tensor:
    return value.repeat(images // len(value), *(1,) * (value.ndim - 1))


def check_finite(inputs: Iterable[Mapping[Any, Tensor]]) -> None:
    """Refuse what an encoder has made of a picture, if it is no number.

    Raises:
        InvalidReference: NaN or infinity in it
    """
    for one in inputs:
        for name, value in one.items():
            if not torch.isfinite(value).all():
                raise InvalidReference(
                    f"the encoder's {name} of a reference, in {value.dtype}, contain NaN or infinity; "
                    "use the encoder in float32 or bfloat16"
                )


def lora_scale(references: Sequence[Sequence[Reference]]) -> Float[Tensor, " prompts"]:
    """Return the strength of an adapter's LoRA for each prompt, on which all references must agree.

    Raises:
        InvalidReference: they do not
    """
    prompts = max(map(len, references))
    rows = [
        [float(one.lora_scale) for one in argument] * (prompts // len(argument)) for argument in references
    ]
    if any(row != rows[0] for row in rows):
        raise InvalidReference(f"one adapter has one LoRA; these references ask for lora_scale {rows}")
    return torch.tensor(rows[0])


def check_schedule(references: Collection[Reference], has_clock: bool) -> None:
    """Refuse steps where nothing tells the step.

    Raises:
        AttachmentError: attached to a bare denoiser
    """
    if not has_clock and any(reference.is_scheduled for reference in references):
        raise AttachmentError(
            "steps need a pipeline to tell them by; attach to the pipeline, not to its U-Net"
        )


def _halves(
    asked: Sequence[Asked],
    layer: int,
    positive: tuple[Tensor, Tensor],
    negative: tuple[Tensor, Tensor],
    heads: int,
) -> tuple[KeyValue, KeyValue]:
    width = positive[1].shape[-1]
    follow = [_strength(one.reference, one.follows(layer), width) for one in asked]
    with_picture, without = _scaled(*positive, follow), _scaled(*negative, follow)
    avoid = [one.avoids(layer) for one in asked]
    if any(avoid):
        pushes = positive[0].new_tensor(avoid).bool()[:, None, None]
        pushed = _scaled(
            *positive, [_strength(one.reference, a, width) for one, a in zip(asked, avoid, strict=True)]
        )
        without = tuple(torch.where(pushes, there, here) for there, here in zip(pushed, without, strict=True))
    return (
        KeyValue(*(split_heads(x, heads) for x in with_picture)),
        KeyValue(*(split_heads(x, heads) for x in without)),
    )


def _strength(reference: Reference, weight: float, width: int) -> Strength:
    if reference.width_penalty:
        weight = weight * width / FULL_WIDTH
    if reference.scaling == "value" or weight == 0:
        return Strength(1.0, weight, weight)
    if reference.scaling == "key and value":
        return Strength(weight, weight, weight)
    return Strength(weight, 1.0, weight)


def _scaled(
    key: Float[Tensor, "prompts tokens inner_dim"],
    value: Float[Tensor, "prompts tokens inner_dim"],
    strengths: Sequence[Strength],
) -> tuple[Float[Tensor, "prompts tokens inner_dim"], Float[Tensor, "prompts tokens inner_dim"]]:
    of_key, spread, mean = (key.new_tensor(column)[:, None, None] for column in zip(*strengths, strict=True))
    if any(strength.key != 1 for strength in strengths):
        key = of_key * key
    if all(strength.spread == strength.mean for strength in strengths):
        return key, spread * value
    middle = value.mean(1, keepdim=True)
    return key, spread * (value - middle) + mean * middle
