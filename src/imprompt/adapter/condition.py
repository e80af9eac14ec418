"""Compute what references contribute to each layer: K' and λV', for both branches of guidance.

A layer that pushes away from the picture ("precise" modes) has nothing on the positive branch and the picture
on the negative one. Guidance, u + w (c - u), then weights what only u contains by 1 - w.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.adapter.encode import EncodedReference, NegativeKind, ProjectionInputs
from imprompt.attention.attachment import Attachment
from imprompt.attention.choices import Injection
from imprompt.attention.conditioning import FixedConditioning, TimedConditioning
from imprompt.attention.layer_weights import LayerWeights, layer_weights
from imprompt.attention.pipeline_state import Moment
from imprompt.attention.terms import JointTerm, KeyValue, split_heads
from imprompt.errors import AmbiguousBatch, AttachmentError, InvalidReference
from imprompt.inputs.choices import Input
from imprompt.reference import Reference

FULL_WIDTH = 1280
"""The width C at which `Reference.width_penalty` changes nothing: that of the deepest layers."""

Adapter = Callable[[ProjectionInputs, Collection[int], Float[Tensor, " prompts"]], Mapping[int, KeyValue]]
"""Computes K' and V', each "prompts tokens inner_dim", of these layers: (inputs, layers, face_scale)."""


TimedAdapter = Callable[[Mapping[Input, Tensor], Tensor, Collection[int]], Mapping[int, JointTerm]]
"""Computes the terms of these layers at time steps: (inputs "batch ...", timesteps " batch", layers)."""


class Strength(NamedTuple):
    """K ← key · K', V ← spread · (V' - mean V') + mean · mean V', the mean over tokens."""

    key: float
    spread: float
    mean: float


def compute_conditioning(
    references: Sequence[Reference],
    encoded: Sequence[EncodedReference],
    attachment: Attachment,
    adapter: Adapter,
    like: Tensor,
) -> FixedConditioning:
    """Compute K' and λV' of one group of references, a row for each prompt.

    Args:
        references: one for each prompt, or one for all
        encoded: what the encoders returned for each
        attachment: the base's layers
        adapter: computes K' and V'
        like: device and number format to compute in

    Raises:
        InvalidReference: layers that the base does not have, a boost without effect, or inputs that are not
            finite
    """
    weights = [_scale_layers(reference, attachment.names) for reference in references]
    layers = list(attachment.names) if attachment.needs_static_terms else _find_used_layers(weights)
    face_scale = torch.tensor([float(reference.face_scale) for reference in references])
    _check_finite(inputs for halves in encoded for inputs in halves[:2])
    images = math.lcm(*(count_images(inputs) for halves in encoded for inputs in halves[:2]))
    positive, negative = (
        adapter(_stack([halves[:2][half] for halves in encoded], images, like), layers, face_scale)
        for half in (0, 1)
    )
    kinds = {halves.negative_kind for halves in encoded}
    negative = _remove_missing(negative, [halves.negative_kind for halves in encoded])
    halves = {
        layer: _weight_halves(
            references, weights, layer, positive[layer], negative[layer], attachment.heads(layer)
        )
        for layer in positive
    }

    return FixedConditioning(
        positive={layer: half[0] for layer, half in halves.items()},
        negative={layer: half[1] for layer, half in halves.items()},
        areas=[reference.area for reference in references],
        weights=_make_schedule(references),
        needs_guidance=any(one.avoid for one in weights),
        lacks_negative="unknown" in kinds,
        has_negative=kinds != {"nothing"},
    )


def compute_timed_conditioning(
    references: Sequence[Reference],
    encoded: Sequence[EncodedReference],
    attachment: Attachment,
    compute: TimedAdapter,
    like: Tensor,
) -> TimedConditioning:
    """Prepare one group of references for layers whose K' and V' belong to the time step.

    Args:
        references: one for each prompt, or one for all
        encoded: what the encoders returned for each
        attachment: the base's layers
        compute: computes the terms of the layers
        like: device and number format to compute in

    Raises:
        AmbiguousBatch: other numbers of pictures for other prompts
        InvalidReference: layers that the base does not have, or inputs that are not finite
    """
    weights = [_scale_layers(reference, attachment.names) for reference in references]
    layers = list(attachment.names) if attachment.needs_static_terms else _find_used_layers(weights)
    _check_finite(inputs for halves in encoded for inputs in halves[:2])
    counts = sorted({count_images(inputs) for halves in encoded for inputs in halves[:2]})
    if len(counts) > 1:
        raise AmbiguousBatch(
            f"prompts with {' and '.join(map(str, counts))} pictures each cannot share a batch on this base: "
            "its latents stand among the image tokens' keys; give every prompt equally many, and its negative"
        )
    positive, negative = (
        _stack([halves[:2][half] for halves in encoded], counts[0], like) for half in (0, 1)
    )
    return TimedConditioning(
        positive,
        negative,
        {layer: [one.follow[layer] for one in weights] for layer in layers},
        compute,
        areas=[reference.area for reference in references],
        weights=_make_schedule(references),
    )


def _make_schedule(references: Sequence[Reference]) -> Callable[[Moment], list[float]] | None:
    """Return what computes the factor on λ at a step for each prompt; None if it is always 1."""
    if not any(reference.is_scheduled for reference in references):
        return None
    return lambda moment: [_weight_at(reference, moment) for reference in references]


def _remove_missing(
    keys_values: Mapping[int, KeyValue], kinds: Sequence[NegativeKind]
) -> Mapping[int, KeyValue]:
    """Make V' zero, which contributes nothing, for the prompts whose negative is no image prompt at all."""
    if all(kind == "inputs" for kind in kinds):
        return keys_values
    kept = [float(kind == "inputs") for kind in kinds]
    return {
        layer: KeyValue(key, value.new_tensor(kept)[:, None, None] * value)
        for layer, (key, value) in keys_values.items()
    }


def count_images(inputs: ProjectionInputs) -> int:
    """Return the size of the first axis, which all inputs share."""
    return next(iter(inputs.values())).shape[0]


def _scale_layers(reference: Reference, names: Mapping[int, str]) -> LayerWeights:
    """Return λ of each layer that follows the reference, and the boost of each that avoids it."""
    weights = layer_weights(reference.layers, names, convention=reference.convention)
    if reference.boost is not None and not weights.avoid:
        raise InvalidReference(
            f"boost has no effect with layers={reference.layers!r}; it is for precise modes"
        )
    boost = reference.scale if reference.boost is None else reference.boost
    return LayerWeights(
        {layer: float(reference.scale * weight) for layer, weight in weights.follow.items()},
        {layer: float(boost * weight) for layer, weight in weights.avoid.items()},
    )


def _find_used_layers(weights: Sequence[LayerWeights]) -> list[int]:
    return [
        layer
        for layer in weights[0].follow
        if any(one.follow[layer] or one.avoid.get(layer) for one in weights)
    ]


def _weight_at(reference: Reference, moment: Moment) -> float:
    """Return the factor on λ now; a list has one for each of the sampler's steps, or for each call."""
    step, steps, noise, sampler_step, sampler_steps = moment
    if reference.step_weights is not None and len(reference.step_weights) == sampler_steps:
        return reference.weight(sampler_step, sampler_steps, noise)
    return reference.weight(step, steps, noise)


def _stack(prompts: Sequence[ProjectionInputs], images: int, like: Tensor) -> dict[Input, Tensor]:
    """Stack the prompts' inputs to "prompts images ...", and repeat pictures where a prompt has fewer.

    Args:
        prompts: the inputs of each prompt, each "images ..."
        images: the number of images of each row, a multiple of every prompt's own
        like: device and number format of the result
    """
    return {
        name: torch.stack([_repeat(inputs[name], images).to(like) for inputs in prompts])
        for name in prompts[0]
    }


def _repeat(value: Tensor, images: int) -> Tensor:
    return value.repeat(images // len(value), *(1,) * (value.ndim - 1))


def _check_finite(inputs: Iterable[ProjectionInputs]) -> None:
    for one in inputs:
        for name, value in one.items():
            if not torch.isfinite(value).all():
                raise InvalidReference(
                    f"the encoder's {name} of a reference, in {value.dtype}, contain NaN or infinity; "
                    "use the encoder in float32 or bfloat16"
                )


def find_lora_scale(groups: Sequence[Sequence[Reference]]) -> Float[Tensor, " prompts"]:
    """Return the strength of an adapter's LoRA for each prompt, on which all references must agree.

    Raises:
        InvalidReference: they do not
    """
    prompts = max(map(len, groups))
    rows = [[float(one.lora_scale) for one in group] * (prompts // len(group)) for group in groups]
    if any(row != rows[0] for row in rows):
        raise InvalidReference(f"one adapter has one LoRA; these references ask for lora_scale {rows}")
    return torch.tensor(rows[0])


def check_settings(
    groups: Iterable[Sequence[Reference]],
    *,
    injection: Injection,
    has_clock: bool,
    has_face_scale: bool,
    has_lora: bool,
) -> None:
    """Refuse settings that this adapter, or what it is attached to, cannot honor.

    Raises:
        AttachmentError: a schedule, attached to a bare denoiser
        InvalidReference: a scale of something that the adapter does not have
    """
    for reference in (reference for group in groups for reference in group):
        if not has_clock and reference.is_scheduled:
            raise AttachmentError(
                "start, end and step_weights need a pipeline; attach to the pipeline, not to its "
                f"{'U-Net' if injection == 'unet' else 'transformer'}"
            )
        if injection != "unet" and reference.width_penalty:
            raise InvalidReference(
                "width_penalty has no effect: all layers of a transformer are equally wide"
            )
        if injection in ("sd35", "flux-redux") and reference.scaling != "value":
            raise InvalidReference(
                f"scaling={reference.scaling!r} is not defined for this adapter, whose image tokens stand "
                "among other keys; leave it out"
            )
        if injection == "flux-redux" and reference.layers != "full":
            raise InvalidReference(
                "layers has no meaning: FLUX Redux's tokens stand in the text, which all layers read"
            )
        if not has_face_scale and reference.face_scale != 1:
            raise InvalidReference("face_scale has no effect: this is no FaceID-PlusV2 adapter")
        if not has_lora and reference.lora_scale != 1:
            raise InvalidReference("lora_scale has no effect: this adapter has no LoRA")


def check_alike(groups: Iterable[Sequence[Reference]]) -> None:
    """Refuse references of FLUX Redux of which some prompts of a batch would be without tokens.

    Raises:
        AmbiguousBatch: λ is 0 for some prompts only, or their schedules differ
    """
    for group in groups:
        schedules = {(one.start, one.end, one.measured_in, tuple(one.step_weights or ())) for one in group}
        if len({one.scale == 0 for one in group}) > 1 or len(schedules) > 1:
            raise AmbiguousBatch(
                "FLUX Redux's tokens stand in the text, so they act for all prompts of a batch or for none; "
                "give every prompt a scale other than 0 and the same steps"
            )


def _weight_halves(
    references: Sequence[Reference],
    weights: Sequence[LayerWeights],
    layer: int,
    positive: KeyValue,
    negative: KeyValue,
    heads: int,
) -> tuple[KeyValue, KeyValue]:
    """Weight K' and V' of a layer for the positive and the negative branch, and split their heads."""
    width = positive.value.shape[-1]

    def strengths(scales: Sequence[float]) -> list[Strength]:
        return [_strength(one, scale, width) for one, scale in zip(references, scales, strict=True)]

    follow = strengths([one.follow[layer] for one in weights])
    with_picture, without = _apply_strengths(*positive, follow), _apply_strengths(*negative, follow)
    avoid = [one.avoid.get(layer, 0.0) for one in weights]
    if any(avoid):
        is_pushed = positive.key.new_tensor(avoid).bool()[:, None, None]
        pushed = _apply_strengths(*positive, strengths(avoid))
        without = KeyValue(
            *(torch.where(is_pushed, there, here) for there, here in zip(pushed, without, strict=True))
        )
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


def _apply_strengths(
    key: Float[Tensor, "prompts tokens inner_dim"],
    value: Float[Tensor, "prompts tokens inner_dim"],
    strengths: Sequence[Strength],
) -> KeyValue:
    of_key, spread, mean = (key.new_tensor(column)[:, None, None] for column in zip(*strengths, strict=True))
    if any(strength.key != 1 for strength in strengths):
        key = of_key * key
    if all(strength.spread == strength.mean for strength in strengths):
        return KeyValue(key, spread * value)
    middle = value.mean(1, keepdim=True)
    return KeyValue(key, spread * (value - middle) + mean * middle)
