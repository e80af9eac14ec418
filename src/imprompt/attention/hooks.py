"""Hooks on a denoiser and its pipeline, and the check that every layer with image prompts has run."""

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imprompt.attention.denoiser_call import read_call
from imprompt.attention.denoiser_layers import DenoiserLayers
from imprompt.attention.diffusers_internals import get_compiled_call, set_compiled_call, unwrap_compiled
from imprompt.errors import AmbiguousBatch, AttachmentError


class Owner:
    """A weak reference to an attachment, held by layers and hooks so that they do not keep it alive.

    Args:
        attachment: its `before_forward(call)` is called before every forward pass, and its `after_forward()`
            after it, if the denoiser is not compiled
        checks_compiled: whether `after_forward()` is called after a compiled denoiser, too
    """

    def __init__(self, attachment: Any, *, checks_compiled: bool = False) -> None:
        self.attachment: weakref.ref[Any] = weakref.ref(attachment)
        self.checks_compiled = checks_compiled


def add_hook(module: nn.Module, owner: Owner) -> Callable[[], None]:
    """Notify an owner's attachment of every call of a denoiser; return a function that removes the hook."""

    def before(called: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> None:
        attachment = owner.attachment()
        if called is not module or attachment is None:  # A copy of the denoiser has a copy of the hook.
            return
        if torch.compiler.is_compiling():
            _before_outside_graph(attachment, called, args, kwargs)
        else:
            attachment.before_forward(read_call(called, args, kwargs))

    def after(called: nn.Module, *_: object) -> None:
        attachment = owner.attachment()
        if called is module and attachment is not None:
            if torch.compiler.is_compiling():
                _after_outside_graph(attachment)
            else:
                attachment.after_forward()

    compiled = get_compiled_call(module)
    if compiled is None:
        # First of all hooks, as what others add to the arguments follows from what this one finds.
        handles = [module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)]
        if unwrap_compiled(module) is module or owner.checks_compiled:
            handles.append(module.register_forward_hook(after))

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    # module.compile() would compile hooks too, so the compiled call itself is wrapped.
    def call(*args: Tensor, **kwargs: Any) -> object:
        before(module, args, kwargs)
        output = compiled(*args, **kwargs)
        if owner.checks_compiled:
            after(module)
        return output

    set_compiled_call(module, call)
    return lambda: set_compiled_call(module, compiled)


# A graph compiled around the hook would freeze one batch layout. A disabled function takes longer to call, so
# it is called in graphs only.
@torch.compiler.disable(reason="imprompt sets the layers' image prompts: compile before adapter.use(...)")
def _before_outside_graph(attachment: Any, called: nn.Module, args: Any, kwargs: Any) -> None:
    attachment.before_forward(read_call(called, args, kwargs))


@torch.compiler.disable(reason="imprompt checks that its layers have run")
def _after_outside_graph(attachment: Any) -> None:
    attachment.after_forward()


def check_layers_ran(numbers: Collection[int], layers: DenoiserLayers, *, is_compiled: bool) -> None:
    """Make sure that each of these layers has run with its image prompts.

    Args:
        numbers: the layers that have image prompts or a LoRA
        layers: all layers of the adapter
        is_compiled: whether the denoiser goes through torch.compile

    Raises:
        AttachmentError: a layer has not run; the message names what replaced it
        AmbiguousBatch: a layer was called with a part of the batch only
    """
    for layer in numbers:
        terms = layers.terms[layer]
        if not (terms.state.terms or terms.state.loras):
            continue
        if is_compiled and not (terms.state.has_run or terms.latest.has_run):
            raise AttachmentError(
                f"the image prompt did not reach layer {layer}: this {layers.noun} was compiled before the "
                "adapter was attached, and PyTorch does not look for new hooks; call torch.compiler.reset(), "
                "or attach before the first picture"
            )
        if not (terms.state.has_run or terms.latest.has_run):
            raise AttachmentError(
                f"the image prompt did not reach layer {layer} "
                f"({layers.names.get(layer, 'self-attention')}): "
                f"{_describe_replacement(layers.modules[layer])}; undo that, or draw without references"
            )
        if terms.state.offset:
            raise AmbiguousBatch(f"layer {layer} has seen {terms.state.offset} rows of a larger batch only")


def _describe_replacement(attn: nn.Module) -> str:
    forward = vars(attn).get("forward")
    if forward is not None:
        return f"{getattr(forward, '__qualname__', repr(forward))} has taken the place of its forward"
    return "it was not run"
