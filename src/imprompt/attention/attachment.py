"""Attach to a denoiser: install processors, give them the image prompts of each batch, restore everything.

A hook reads the batch just before each forward pass, outside any compiled graph: its size, its step, and
which rows are the negative and the positive half of classifier-free guidance.
"""

import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping

from imprompt.attention.batch import BatchPlan
from imprompt.attention.callers import Caller
from imprompt.attention.choices import Injection
from imprompt.attention.conditioning import LayerInputs, TimedRows
from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.denoiser_graphs import find_graphs
from imprompt.attention.denoiser_layers import DenoiserLayers
from imprompt.attention.diffusers_internals import (
    find_split_layers,
    get_compiled_call,
    is_compiled,
    unwrap_compiled,
)
from imprompt.attention.hooks import Owner, add_hook, check_layers_ran
from imprompt.attention.ip_adapter_calls import (
    block_ip_adapter_calls,
    block_ip_adapter_methods,
    unblock_ip_adapter_calls,
    unblock_ip_adapter_methods,
)
from imprompt.attention.layers import Shapes
from imprompt.attention.placement import get_denoiser, place_layers
from imprompt.errors import AttachmentError


class StackEntry:
    """Image prompts on a caller's stack; those on top are active.

    Args:
        source: what computes the inputs of the layers for each call, such as a `BatchPlan` for whole
            generations; or the inputs of each layer themselves, with a row per sample
    """

    def __init__(self, source: BatchPlan | TimedRows | Mapping[int, LayerInputs]) -> None:
        self.source = source
        self.is_entered = False


class ForwardPass(threading.local):
    """The inputs of the layers in this thread, and whether the layers have run with them."""

    inputs: Mapping[int, LayerInputs] | None = None
    is_checked = True
    has_parts = False
    running: set[int] | None = None
    """The layers that the running call runs; None: all."""


class Attachment:
    """An adapter on a denoiser; use it with `with`, or call `detach`.

    It detaches by itself when it is no longer referenced. Image prompts belong to the caller that activates
    them: a thread, or a task of asyncio within it. Each caller has a stack of its own, so the image prompts
    of an outer `with` return at the end of an inner one.

    Args:
        target: a diffusers pipeline, or a bare U-Net or transformer (compiled or not)
        shapes: the adapter's layers
        lora_layers: numbers of the attention layers, self-attention too, that its LoRA changes
        injection: how the adapter's image prompts enter a denoiser

    Attributes:
        denoiser: the U-Net or the transformer, not compiled
        layers: the adapter's layers there
        on_detach: called after it has detached

    Raises:
        AttachmentError: no denoiser there, or an attention processor or option that is not supported
        AdapterMismatch: the adapter's layers are not this denoiser's
    """

    is_attached = False

    def __init__(
        self,
        target: object,
        shapes: Shapes,
        lora_layers: Collection[int] = (),
        injection: Injection = "unet",
    ) -> None:
        self.target = target
        self._called = get_denoiser(target)
        self.denoiser = unwrap_compiled(self._called)
        self.on_detach: Callable[[], None] = _do_nothing
        # PyTorch skips hooks that a compiled module gets later, but no change of a processor.
        self._owner = Owner(self, checks_compiled=injection.startswith("flux"))
        self._callers: list[Caller[StackEntry]] = []
        self._unhook: Callable[[], None] = _do_nothing
        self._forward = ForwardPass()
        self._lock = threading.RLock()  # Held while the stacks change, never during a forward pass.
        self.layers = place_layers(target, self._owner, shapes, lora_layers, injection)
        _warn_of_other_adapters(self.layers)
        block_ip_adapter_methods(target, self._owner)
        block_ip_adapter_calls(self.denoiser, self._owner)
        self._other_pipelines = weakref.WeakSet[object]()
        self.is_attached = True

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.detach()

    @property
    def names(self) -> Mapping[int, str]:
        """Layer number → name of the module in which image prompts act."""
        return self.layers.names

    def heads(self, layer: int) -> int:
        """Return the number of attention heads of a layer."""
        return self.layers.heads(layer)

    @property
    def is_compiled(self) -> bool:
        """Whether the denoiser goes through torch.compile."""
        return is_compiled(get_denoiser(self.target))

    @property
    def needs_static_terms(self) -> bool:
        """Whether every layer must have all terms, as what is compiled or recorded depends on them."""
        return self.is_compiled or find_graphs(self.denoiser) is not None

    @property
    def has_open_ended_references(self) -> bool:
        """Whether image prompts are active that no `with` will end."""
        return any(not entry.is_entered for caller in self._callers for entry in caller.stack)

    def activate(self, source: BatchPlan | TimedRows | Mapping[int, LayerInputs]) -> "ActiveReferences":
        """Activate image prompts until the returned context ends, when the ones before them return.

        Args:
            source: what computes the inputs of the layers for each call, such as a `BatchPlan` for whole
            generations; or the inputs of each layer themselves, with a row per sample

        Raises:
            AttachmentError: the denoiser is compiled, and image prompts of another thread are active in it
        """
        self.check_in_place()
        entry = StackEntry(source)
        with self._lock:
            caller = Caller.find_current(self._callers)
            if caller is None:
                self._check_compiled()
                caller = Caller()
            stack = caller.stack
            if len(stack) > 1 and not stack[-1].is_entered and not stack[-2].is_entered:
                del stack[-2]  # Of two calls without `with`, the later one replaces the earlier.
            stack.append(entry)
            if caller not in self._callers:
                self._callers.append(caller)
            self._refresh()
        return ActiveReferences(self, entry)

    def is_active(self, entry: StackEntry) -> bool:
        """Whether these image prompts are active for the caller that activated them."""
        return any(caller.stack[-1] is entry for caller in self._callers)

    def deactivate(self, entry: StackEntry) -> None:
        """Remove image prompts and all above them on the stack; do nothing if they have been replaced."""
        with self._lock:
            for caller in [caller for caller in self._callers if entry in caller.stack]:
                before = caller.stack[: caller.stack.index(entry)]
                if not before:
                    self._callers.remove(caller)
                caller.stack = before or caller.stack
                self._refresh()

    def detach(self) -> None:
        """Remove the hooks, and restore the very processors that the layers had before."""
        if not self.is_attached:
            return
        self.is_attached = False
        self._callers.clear()
        self._unhook()
        for pipeline in (self.target, *self._other_pipelines):
            unblock_ip_adapter_methods(pipeline, self._owner)
        unblock_ip_adapter_calls(self.denoiser, self._owner)
        self.layers.remove(self._owner)
        self.on_detach()

    def check_in_place(self) -> None:
        """Make sure that image prompts reach the pictures.

        Raises:
            AttachmentError: not attached, or the denoiser or its processors have been replaced since
        """
        if not self.is_attached:
            raise AttachmentError("the adapter is not attached any more; attach it again")
        self.check_denoiser()
        self.layers.check_in_place()

    def check_denoiser(self) -> None:
        """Make sure that the pipeline still has the denoiser that the adapter is attached to.

        Raises:
            AttachmentError: it has another one
        """
        module = get_denoiser(self.target)
        if module is not self._called and unwrap_compiled(module) is not self.denoiser:
            raise AttachmentError(
                f"the pipeline has another {self.layers.noun} than before; detach, then attach again"
            )

    def _check_compiled(self) -> None:
        module = get_denoiser(self.target)
        parts = (get_compiled_call(part) is not None for part in module.modules())
        if self._callers and (self.is_compiled or any(parts)):
            raise AttachmentError(
                "this U-Net is compiled, so image prompts of one thread at a time can act in it, and "
                f"{self._callers[-1].name} has let some act; end those first, or give each thread a pipeline"
            )

    def _refresh(self) -> None:
        """Add or remove the hook as the stacks need it, and update the layers for this thread."""
        needs_hook = any(not isinstance(caller.stack[-1].source, Mapping) for caller in self._callers)
        if needs_hook != (self._unhook is not _do_nothing):
            self._unhook()
            self._unhook = add_hook(get_denoiser(self.target), self._owner) if needs_hook else _do_nothing
        if not self._callers:
            for terms in self.layers.terms.values():
                terms.clear_terms(self._owner)
            self._forward = ForwardPass()
            return
        caller = Caller.find_current(self._callers)
        source = caller.stack[-1].source if caller else {}
        self._set_inputs(source if isinstance(source, Mapping) else {})

    def _set_inputs(self, inputs: Mapping[int, LayerInputs]) -> None:
        forward = self._forward
        forward.inputs = inputs
        parts = find_split_layers(self.denoiser, self.layers.modules)
        forward.has_parts, forward.is_checked = bool(parts), False
        for layer, terms in self.layers.terms.items():
            terms.set_terms(self._owner, *inputs.get(layer, LayerInputs()))
            terms.state.is_split = layer in parts

    def before_forward(self, call: DenoiserCall) -> None:
        """Give the layers this caller's image prompts for the batch that the denoiser is about to process.

        Raises:
            AttachmentError: only other callers have image prompts here, or the adapter has been replaced
        """
        caller = Caller.find_current(self._callers)
        if caller is None:
            raise AttachmentError(
                f"image prompts act on this {self.layers.noun}, but {self._callers[-1].name} has set them, "
                f"not {Caller().name}, which draws; call adapter.use(...) where the pipeline is called"
            )
        self.check_in_place()
        source = caller.stack[-1].source
        inputs = source if isinstance(source, Mapping) else source.expand(call)
        if not isinstance(source, Mapping) and source.other_pipeline is not None:
            self._refuse_in(source.other_pipeline())
        self.set_inputs(inputs, call)

    def set_inputs(self, inputs: Mapping[int, LayerInputs], call: DenoiserCall) -> None:
        """Give the layers what acts in this thread's next forward pass, a row for each row of the batch."""
        self._forward.running = self.layers.list_layers_of(call)
        if inputs is not self._forward.inputs:
            self._set_inputs(inputs)
        if self._forward.has_parts:
            for terms in self.layers.terms.values():
                terms.state.offset = 0

    def _refuse_in(self, pipeline: object) -> None:
        """Block the methods of diffusers' own IP-Adapter in another pipeline that shares the U-Net."""
        if pipeline is not None and pipeline not in self._other_pipelines:
            self._other_pipelines.add(pipeline)
            block_ip_adapter_methods(pipeline, self._owner)

    def after_forward(self) -> None:
        """Make sure, once for every change, that every layer with image prompts has run.

        Raises:
            AttachmentError: one has not; the message names what replaced it
        """
        forward = self._forward
        if not forward.is_checked and forward.inputs is not None:
            forward.is_checked = True
            numbers = forward.inputs if forward.running is None else forward.running & forward.inputs.keys()
            check_layers_ran(numbers, self.layers, is_compiled=self.is_compiled)


class ActiveReferences:
    """The context of active image prompts; leaving it restores those that were active before."""

    def __init__(self, attachment: Attachment, entry: StackEntry) -> None:
        self.attachment = attachment
        self.entry = entry

    def __enter__(self) -> "ActiveReferences":
        if not self.attachment.is_active(self.entry):
            raise AttachmentError(
                "these references were replaced by a later adapter.use(...) call; call it again before "
                "entering the context"
            )
        self.entry.is_entered = True
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        self.attachment.deactivate(self.entry)
        if kind is None and self.attachment.is_attached:
            self.attachment.check_denoiser()  # A new one would not call the hook, so would not be noticed.


def _warn_of_other_adapters(layers: DenoiserLayers) -> None:
    """Warn that two adapters on one base add up, where the first may have been forgotten."""
    others = (owner.attachment() for owner in layers.list_owners() if isinstance(owner, Owner))
    if any(other is not None and other.has_open_ended_references for other in others):
        warnings.warn(
            f"image prompts of another adapter act on this {layers.noun} already, and will add to those of "
            "this one; detach that adapter if this is not meant, or use `with adapter.use(...)`",
            stacklevel=4,
        )


def _do_nothing() -> None:
    """Do nothing, where there is nothing to undo."""
