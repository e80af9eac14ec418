"""Find the denoiser of a pipeline, and put into it what lets an adapter's image prompts act."""

from collections.abc import Collection
from typing import Any, cast, get_args

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from torch import nn

from imprompt.attention.choices import Injection
from imprompt.attention.denoiser_call import is_kind
from imprompt.attention.denoiser_layers import DenoiserLayers
from imprompt.attention.diffusers_internals import get_pipeline_denoiser, unwrap_compiled
from imprompt.attention.hooks import Owner
from imprompt.attention.layers import Shapes, UNet, describe_base
from imprompt.attention.unet_layers import UNetLayers
from imprompt.errors import AdapterMismatch, AttachmentError

TRANSFORMERS: dict[Injection, str] = {
    "flux-xlabs": "FluxTransformer2DModel",
    "flux-instantx": "FluxTransformer2DModel",
    "flux-redux": "FluxTransformer2DModel",
    "sd35": "SD3Transformer2DModel",
}
"""Injection → the class of the transformers that have it."""


def get_denoiser(target: object) -> nn.Module:
    """Return the module that is called at every step: the denoiser, or the compiled module around it.

    Raises:
        AttachmentError: the pipeline has none
    """
    module = target if isinstance(target, nn.Module) else get_pipeline_denoiser(target)
    if module is not None:
        return module
    raise AttachmentError(f"{type(target).__name__} has no U-Net and no transformer to attach to")


def get_unet(target: object) -> UNet:
    """Return the U-Net of a pipeline, or the one inside a compiled module.

    Raises:
        AttachmentError: there is none that an adapter can be attached to
    """
    unet = unwrap_compiled(get_denoiser(target))
    if not isinstance(unet, UNet2DConditionModel | UNetMotionModel):
        kinds = " and ".join(kind.__name__ for kind in get_args(UNet))
        raise AttachmentError(f"cannot attach to {type(unet).__name__}; only {kinds} are supported")
    return unet


def place_layers(
    target: object, owner: Owner, shapes: Shapes, lora_layers: Collection[int], injection: Injection
) -> DenoiserLayers:
    """Find an adapter's layers in a denoiser, and put there what lets image prompts act.

    Raises:
        AttachmentError, AdapterMismatch: see `Attachment`
    """
    denoiser = unwrap_compiled(get_denoiser(target))
    kind = TRANSFORMERS.get(injection)
    if kind is None and not any(is_kind(denoiser, name) for name in TRANSFORMERS.values()):
        return UNetLayers(get_unet(target), owner, shapes, lora_layers)
    if kind is None or not is_kind(denoiser, kind):
        raise AdapterMismatch(
            f"this adapter is for {describe_base(shapes)}; the denoiser of this base is of another kind "
            f"({type(denoiser).__name__})"
        )
    if injection == "sd35":
        from imprompt.attention.joint_layers import (
            JointLayers,  # its classes of diffusers take long to import
        )

        return JointLayers(cast("Any", denoiser), owner, shapes)
    if injection == "flux-redux":
        from imprompt.attention.text_tokens import TextTokens

        return TextTokens(cast("Any", denoiser), owner, shapes)
    from imprompt.attention.flux_layers import FluxLayers

    return FluxLayers(cast("Any", denoiser), owner, shapes, is_ungated=injection == "flux-xlabs")
