"""Hooks on a denoiser and its pipeline, and the check that every layer with image prompts has run."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from imprompt.attention.diffusers_internals import get_compiled_call, set_compiled_call, unwrap_compiled
from imprompt.attention.processor import DecoupledAttention
from imprompt.errors import AmbiguousBatch, AttachmentError


class Owner:
    """A weak reference to an attachment, held by layers and hooks so that they do not keep it alive.

    Args:
        attachment: its `before_forward(sample, timestep, text, options)` is called before every forward pass,
            with all keyword arguments as options, and its `after_forward()` after it, if the denoiser is not
            compiled
    """

    def __init__(self, attachment: Any) -> None:
        self.attachment: weakref.ref[Any] = weakref.ref(attachment)


def add_hook(module: nn.Module, owner: Owner) -> Callable[[], None]:
    """Notify an owner's attachment of every call of a denoiser; return a function that removes the hook."""

    def before(called: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> None:
        attachment = owner.attachment()
        if called is not module or attachment is None:  # A copy of the denoiser has a copy of the hook.
            return
        # Both kinds of U-Net have forward(sample, timestep, encoder_hidden_states, ...).
        names = ("sample", "timestep", "encoder_hidden_states")
        inputs = *args[:3], *(kwargs[name] for name in names[len(args) :])
        if torch.compiler.is_compiling():
            _before_outside_graph(attachment, *inputs, kwargs)
        else:
            attachment.before_forward(*inputs, kwargs)

    def after(called: nn.Module, *_: object) -> None:
        attachment = owner.attachment()
        if called is module and attachment is not None:
            if torch.compiler.is_compiling():
                _after_outside_graph(attachment)
            else:
                attachment.after_forward()

    compiled = get_compiled_call(module)
    if compiled is None:
        handles = [module.register_forward_pre_hook(before, with_kwargs=True)]
        if unwrap_compiled(module) is module:
            handles.append(module.register_forward_hook(after))

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    # module.compile() would compile hooks too, so the compiled call itself is wrapped.
    def call(*args: Tensor, **kwargs: Any) -> object:
        before(module, args, kwargs)
        return compiled(*args, **kwargs)

    set_compiled_call(module, call)
    return lambda: set_compiled_call(module, compiled)


# A graph compiled around the hook would freeze one batch layout. A disabled function takes longer to call, so
# it is called in graphs only.
@torch.compiler.disable(reason="imprompt sets the layers' image prompts: compile before adapter.use(...)")
def _before_outside_graph(attachment: Any, *inputs: Any) -> None:
    attachment.before_forward(*inputs)


@torch.compiler.disable(reason="imprompt checks that its layers have run")
def _after_outside_graph(attachment: Any) -> None:
    attachment.after_forward()


def check_layers_ran(
    layers: Mapping[int, Attention], processors: Mapping[int, DecoupledAttention], names: Mapping[int, str]
) -> None:
    """Make sure that each of these layers has run with its image prompts.

    Args:
        layers: the layers that have image prompts or a LoRA
        processors: layer number → its processor
        names: layer number → name of its module

    Raises:
        AttachmentError: a layer has not run; the message names what replaced it
        AmbiguousBatch: a layer was called with a part of the batch only
    """
    for layer, attn in layers.items():
        state = processors[layer].state
        if not (state.terms or state.loras):
            continue
        if not (state.has_run or processors[layer].latest.has_run):
            raise AttachmentError(
                f"the image prompt did not reach layer {layer} ({names.get(layer, 'self-attention')}): "
                f"{_describe_replacement(attn)}; undo that, or draw without references"
            )
        if state.offset:
            raise AmbiguousBatch(f"layer {layer} has seen {state.offset} rows of a larger batch only")


def _describe_replacement(attn: Attention) -> str:
    forward = vars(attn).get("forward")
    if forward is not None:
        return f"{getattr(forward, '__qualname__', repr(forward))} has taken the place of its forward"
    return "it was not run"
