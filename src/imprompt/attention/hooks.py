"""Hooks on a denoiser and its pipeline, and whether what is attached has acted."""

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from diffusers.pipelines.free_noise_utils import SplitInferenceModule
from torch import Tensor, nn

from imprompt.attention.pipeline_state import TAKES_NO_PICTURE
from imprompt.attention.processor import DecoupledAttention
from imprompt.errors import AmbiguousBatch, AttachmentError


class Owner:
    """What stands for an attachment in layers and hooks; they do not keep it alive.

    Args:
        attachment: its `before_forward(sample, timestep, text)` is called ahead of every forward pass, and
            its `after_forward()` after it, where the denoiser is not compiled
    """

    def __init__(self, attachment: Any) -> None:
        self.attachment: weakref.ref[Any] = weakref.ref(attachment)


def hook(module: nn.Module, owner: Owner) -> Callable[[], None]:
    """Let an owner's attachment look at every call of a denoiser; returns what undoes it."""

    def before(called: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        watcher = owner.attachment()
        if called is not module or watcher is None:  # A copy, made while attached, has a copy of the hook.
            return
        # forward(sample, timestep, encoder_hidden_states, ...) of both kinds of U-Net
        names = ("sample", "timestep", "encoder_hidden_states")
        given = *args[:3], *(kwargs[name] for name in names[len(args) :])
        if torch.compiler.is_compiling():
            _before_outside_graph(watcher, *given)
        else:
            watcher.before_forward(*given)

    def after(called: nn.Module, *_: object) -> None:
        watcher = owner.attachment()
        if called is module and watcher is not None:
            if torch.compiler.is_compiling():
                _after_outside_graph(watcher)
            else:
                watcher.after_forward()

    compiled = module._compiled_call_impl
    if compiled is None:
        handles = [module.register_forward_pre_hook(before, with_kwargs=True)]
        if not hasattr(module, "_orig_mod"):
            handles.append(module.register_forward_hook(after))

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    # module.compile() compiles the hooks too; what it calls is replaced to stay outside.
    def call(*args: Tensor, **kwargs: Tensor) -> object:
        before(module, args, kwargs)
        return compiled(*args, **kwargs)

    module._compiled_call_impl = call  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: setattr(module, "_compiled_call_impl", compiled)


# A graph compiled around the hook would freeze one batch layout; outside it, none is ever compiled in. A
# disabled function takes longer to call, so only graphs pay for it.
@torch.compiler.disable(reason="imprompt lays image prompts on the batch: compile before references(...)")
def _before_outside_graph(attachment: Any, *given: Any) -> None:
    attachment.before_forward(*given)


@torch.compiler.disable(reason="imprompt looks whether its layers have run")
def _after_outside_graph(attachment: Any) -> None:
    attachment.after_forward()


def check_acted(
    layers: Mapping[int, Attention], processors: Mapping[int, DecoupledAttention], names: Mapping[int, str]
) -> None:
    """Make sure that each of these layers has run with what is laid on it.

    Args:
        layers: those that have something to add
        processors: that add it
        names: of the layers' modules

    Raises:
        AttachmentError: a layer has not; the message names what took its place
        AmbiguousBatch: a layer has seen a part of the batch only
    """
    for layer, attn in layers.items():
        terms = processors[layer].terms
        if not (terms.images or terms.loras):
            continue
        if not (terms.has_acted or processors[layer].latest.has_acted):
            raise AttachmentError(
                f"the image prompt did not reach layer {layer} ({names.get(layer, 'self-attention')}): "
                f"{_instead(attn)}; undo that, or draw without references"
            )
        if terms.offset:
            raise AmbiguousBatch(f"layer {layer} has seen {terms.offset} rows of a larger batch only")


def _instead(attn: Attention) -> str:
    forward = vars(attn).get("forward")
    if forward is not None:
        return f"{getattr(forward, '__qualname__', repr(forward))} has taken the place of its forward"
    return "it was not run"


def split_layers(unet: nn.Module, layers: Mapping[int, Attention]) -> Collection[int]:
    """Numbers of the layers to which diffusers' split inference gives a batch part by part."""
    if not isinstance(unet, UNetMotionModel):
        return ()
    splits = (module for module in unet.modules() if isinstance(module, SplitInferenceModule))
    inside = {id(part) for split in splits for part in split.modules()}
    return {layer for layer, attn in layers.items() if id(attn) in inside}


class Refusal:
    """Stands for a method of diffusers' own IP-Adapter while one of ours is attached.

    Args:
        advice: what to do instead
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.owners: list[object] = []

    def __call__(self, *_: object, **__: object) -> None:
        """Refuse the call, whatever its arguments."""
        raise AttachmentError(f"an adapter of imprompt is attached to this pipeline: {self.advice}")


_REFUSED = {
    "set_ip_adapter_scale": (
        "set_ip_adapter_scale has no effect on it; "
        "use adapter.references(imprompt.Reference(picture, scale=...))"
    ),
    "prepare_ip_adapter_image_embeds": TAKES_NO_PICTURE,
}


def guard(target: object, owner: object) -> None:
    """Refuse what diffusers' own IP-Adapter offers on a pipeline, where it would do nothing, or fail."""
    for name, advice in _REFUSED.items():
        if not isinstance(target, nn.Module) and hasattr(type(target), name):
            refusal = vars(target).setdefault(name, Refusal(advice))
            if isinstance(refusal, Refusal):
                refusal.owners.append(owner)


def unguard(target: object, owner: object) -> None:
    """Undo `guard`, once no other owner needs it."""
    for name in _REFUSED:
        refusal = None if isinstance(target, nn.Module) else getattr(target, "__dict__", {}).get(name)
        if isinstance(refusal, Refusal) and owner in refusal.owners:
            refusal.owners.remove(owner)
            if not refusal.owners:
                del vars(target)[name]
