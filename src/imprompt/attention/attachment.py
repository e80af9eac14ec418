"""Attaching to a denoiser: put processors in, lay image prompts on each batch, take everything out again.

The batch is looked at just before each forward pass, outside any compiled graph: how large it is, at which
step, and which rows are the negative and which the positive half of classifier-free guidance.
"""

import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import cast, get_args

from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from torch import Tensor, nn

from imprompt.attention.batch import Laid, Laying
from imprompt.attention.callers import Caller
from imprompt.attention.hooks import Owner, check_acted, guard, hook, split_layers, unguard
from imprompt.attention.layers import (
    Shapes,
    UNet,
    attention_layers,
    check_fit,
    cross_attention_layers,
    layer_level,
    layer_shapes,
)
from imprompt.attention.processor import (
    AttentionProcessor,
    DecoupledAttention,
    check_lora_supported,
    check_supported,
)
from imprompt.errors import AdapterMismatch, AttachmentError


class Acting:
    """Image prompts that a caller has let act.

    Args:
        what: a `Laying` for whole generations, or what each layer is shown, a row per sample
    """

    def __init__(self, what: Laying | Mapping[int, Laid]) -> None:
        self.what = what
        self.is_entered = False


class ForwardPass(threading.local):
    """What is laid on the batch in this thread, and whether the layers have run with it."""

    laid: Mapping[int, Laid] | None = None
    is_checked = True
    has_parts = False


class Attachment:
    """An adapter on a denoiser; use it with `with`, or call `detach`.

    It detaches by itself when nothing holds it any more.
    Image prompts belong to who lets them act: a thread, or within it a task of asyncio. Each caller has its
    own, with those in an outer `with` coming back at the end of an inner one.

    Args:
        target: a diffusers pipeline with a U-Net, or a bare one (compiled or not)
        shapes: the adapter's layers
        lora_layers: numbers of the attention layers, self-attention too, that its LoRA changes

    Attributes:
        names: layer number → name of the cross-attention's module
        levels: layer number → how often the latents have been halved there
        when_detached: called once it is detached

    Raises:
        AttachmentError: no U-Net there, or an attention processor or option that is not supported
        AdapterMismatch: the adapter's layers are not this U-Net's
    """

    is_attached = False

    def __init__(self, target: object, shapes: Shapes, lora_layers: Collection[int] = ()) -> None:
        self.target = target
        self.unet = _unet(target)
        self._denoiser = _denoiser(target)
        crossing = cross_attention_layers(self.unet)
        check_fit(shapes, layer_shapes(crossing))
        self.names = {layer: name for layer, (name, _) in crossing.items()}
        blocks = len(cast(nn.ModuleList, self.unet.down_blocks))
        self.levels = {layer: layer_level(name, blocks) for layer, name in self.names.items()}
        layers = crossing | _lora_layers(self.unet, lora_layers)
        for name, attn in layers.values():
            check_supported(name, attn)
        self.layers = {layer: attn for layer, (_, attn) in layers.items()}
        _warn_of_others(list(self.layers.values()))
        self.when_detached: Callable[[], None] = _nothing
        self._owner = Owner(self)
        self._callers: list[Caller[Acting]] = []
        self._unhook: Callable[[], None] = _nothing
        self._forward = ForwardPass()
        self._lock = threading.RLock()  # around changes of what acts, never around a forward pass
        self.processors = {layer: _adopted(attn, self._owner) for layer, attn in self.layers.items()}
        guard(target, self._owner)
        self._guests = weakref.WeakSet[object]()
        self.is_attached = True

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.detach()

    def heads(self, layer: int) -> int:
        """Number of attention heads of a layer."""
        return self.layers[layer].heads

    @property
    def is_compiled(self) -> bool:
        """Whether the denoiser goes through torch.compile."""
        module = _denoiser(self.target)
        return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None

    @property
    def acts_for_good(self) -> bool:
        """Whether image prompts act that no `with` will end."""
        return any(not acting.is_entered for caller in self._callers for acting in caller.stack)

    def show(self, what: Laying | Mapping[int, Laid]) -> "ActiveReferences":
        """Let image prompts act from now until the returned context ends; then what acted before acts again.

        Args:
            what: a `Laying` for whole generations, or what each layer is shown, a row per sample

        Raises:
            AttachmentError: the denoiser is compiled, and image prompts of another thread act in it
        """
        self.check_in_place()
        acting = Acting(what)
        with self._lock:
            caller = Caller.mine(self._callers)
            if caller is None:
                self._check_compiled()
                caller = Caller()
            stack = caller.stack
            if len(stack) > 1 and not stack[-1].is_entered and not stack[-2].is_entered:
                del stack[-2]  # Two calls without `with`: the later one has replaced the earlier for good.
            stack.append(acting)
            if caller not in self._callers:
                self._callers.append(caller)
            self._refresh()
        return ActiveReferences(self, acting)

    def acts(self, acting: Acting) -> bool:
        """Whether this acts for whoever let it act."""
        return any(caller.stack[-1] is acting for caller in self._callers)

    def end(self, acting: Acting) -> None:
        """End image prompts and all that came inside them; nothing happens if they have been replaced."""
        with self._lock:
            for caller in [caller for caller in self._callers if acting in caller.stack]:
                before = caller.stack[: caller.stack.index(acting)]
                if not before:
                    self._callers.remove(caller)
                caller.stack = before or caller.stack
                self._refresh()

    def detach(self) -> None:
        """Take out the processors and hooks, and put back the very processors that were there."""
        if not self.is_attached:
            return
        self.is_attached = False
        self._callers.clear()
        self._unhook()
        for pipeline in (self.target, *self._guests):
            unguard(pipeline, self._owner)
        for layer, processor in self.processors.items():
            attn = self.layers[layer]
            if processor.disown(self._owner) and attn.processor is processor:
                attn.processor = processor.base  # pyright: ignore[reportAttributeAccessIssue]
        self.when_detached()

    def check_in_place(self) -> None:
        """Make sure that image prompts reach the pictures.

        Raises:
            AttachmentError: not attached, or someone has replaced the U-Net or its attention processors since
        """
        if not self.is_attached:
            raise AttachmentError("the adapter is not attached any more; attach it again")
        self.check_unet()
        for layer, processor in self.processors.items():
            if self.layers[layer].processor is not processor:
                kind = type(self.layers[layer].processor).__name__
                raise AttachmentError(
                    f"cross-attention layer {layer} was given another processor ({kind}) after the adapter; "
                    "detach, then attach again; a pipeline that puts its own there on every call cannot be "
                    "used with an image prompt"
                )

    def check_unet(self) -> None:
        """Make sure that the pipeline still has the U-Net that the adapter is attached to.

        Raises:
            AttachmentError: it has another one
        """
        module = _denoiser(self.target)
        if module is not self._denoiser and _unet(self.target) is not self.unet:
            raise AttachmentError("the pipeline has another U-Net than before; detach, then attach again")

    def _check_compiled(self) -> None:
        module = _denoiser(self.target)
        parts = (part._compiled_call_impl is not None for part in module.modules())
        if self._callers and (self.is_compiled or any(parts)):
            raise AttachmentError(
                "this U-Net is compiled, so image prompts of one thread at a time can act in it, and "
                f"{self._callers[-1].name} has let some act; end those first, or give each thread a pipeline"
            )

    def _refresh(self) -> None:
        """Have the hook where it is needed, and in this thread nothing of what does not act any more."""
        needs_hook = any(isinstance(caller.stack[-1].what, Laying) for caller in self._callers)
        if needs_hook != (self._unhook is not _nothing):
            self._unhook()
            self._unhook = hook(_denoiser(self.target), self._owner) if needs_hook else _nothing
        if not self._callers:
            for processor in self.processors.values():
                processor.end(self._owner)
            self._forward = ForwardPass()
            return
        caller = Caller.mine(self._callers)
        what = caller.stack[-1].what if caller else {}
        self._place({} if isinstance(what, Laying) else what)

    def _place(self, laid: Mapping[int, Laid]) -> None:
        forward = self._forward
        forward.laid = laid
        parts = split_layers(self.unet, self.layers)
        forward.has_parts, forward.is_checked = bool(parts), False
        for layer, processor in self.processors.items():
            processor.show(self._owner, *laid.get(layer, Laid()))
            processor.terms.is_split = layer in parts

    def before_forward(self, sample: Tensor, timestep: Tensor | float | int, text: Tensor) -> None:
        """Lay this caller's image prompts on the batch that the denoiser is about to see.

        Raises:
            AttachmentError: all that acts was set by other threads, or the adapter has been replaced
        """
        caller = Caller.mine(self._callers)
        if caller is None:
            raise AttachmentError(
                f"image prompts act on this U-Net, but {self._callers[-1].name} has set them, not "
                f"{Caller().name}, which draws; call references(...) where the pipeline is called"
            )
        self.check_in_place()
        what = caller.stack[-1].what
        laid = what.on_batch(sample, timestep, text) if isinstance(what, Laying) else what
        if isinstance(what, Laying) and what.guest is not None:
            self._guard_guest(what.guest())
        if laid is not self._forward.laid:
            self._place(laid)
        if self._forward.has_parts:
            for processor in self.processors.values():
                processor.terms.offset = 0

    def _guard_guest(self, pipeline: object) -> None:
        """Refuse, in a pipeline that shares the U-Net, what is refused in the one attached to."""
        if pipeline is not None and pipeline not in self._guests:
            self._guests.add(pipeline)
            guard(pipeline, self._owner)

    def after_forward(self) -> None:
        """Make sure that every layer that has something to add has run, once for every change.

        Raises:
            AttachmentError: one has not; the message names what took its place
        """
        forward = self._forward
        if not forward.is_checked and forward.laid is not None:
            forward.is_checked = True
            check_acted({layer: self.layers[layer] for layer in forward.laid}, self.processors, self.names)


class ActiveReferences:
    """Image prompts that act now; leaving the context brings back what acted before."""

    def __init__(self, attachment: Attachment, acting: Acting) -> None:
        self.attachment = attachment
        self.acting = acting

    def __enter__(self) -> "ActiveReferences":
        if not self.attachment.acts(self.acting):
            raise AttachmentError("these image prompts do not act any more; set them again")
        self.acting.is_entered = True
        return self

    def __exit__(self, kind: object = None, *_: object) -> None:
        self.attachment.end(self.acting)
        if kind is None and self.attachment.is_attached:
            self.attachment.check_unet()  # another U-Net, put there meanwhile, calls no hook of ours


def _denoiser(target: object) -> nn.Module:
    """The module that is called at every step: the U-Net, or what torch.compile made of it."""
    module = target if isinstance(target, nn.Module) else getattr(target, "unet", None)
    if not isinstance(module, nn.Module):
        raise AttachmentError(f"{type(target).__name__} has no U-Net to attach to")
    return module


def _unet(target: object) -> UNet:
    module = _denoiser(target)
    unet = getattr(module, "_orig_mod", module)
    if not isinstance(unet, UNet2DConditionModel | UNetMotionModel):
        kinds = " and ".join(kind.__name__ for kind in get_args(UNet))
        raise AttachmentError(f"cannot attach to {type(unet).__name__}; only {kinds} are supported")
    return unet


def _lora_layers(unet: UNet, numbers: Collection[int]) -> dict[int, tuple[str, Attention]]:
    layers = attention_layers(unet) if numbers else {}
    for number in numbers:
        if number not in layers:
            raise AdapterMismatch(f"the adapter's LoRA changes layer {number}, which this base does not have")
        check_lora_supported(*layers[number])
    return {number: layers[number] for number in numbers}


def _adopted(attn: Attention, owner: Owner) -> DecoupledAttention:
    processor = attn.processor
    if not isinstance(processor, DecoupledAttention):
        processor = DecoupledAttention(cast(AttentionProcessor, processor))
        attn.processor = processor  # pyright: ignore[reportAttributeAccessIssue]
    processor.adopt(owner)
    return processor


def _warn_of_others(layers: Collection[Attention]) -> None:
    """Two adapters on one base add up; say so where the first may have been forgotten."""
    processors = (attn.processor for attn in layers)
    owners = (owner for one in processors if isinstance(one, DecoupledAttention) for owner in one.owners)
    others = (owner.attachment() for owner in owners if isinstance(owner, Owner))
    if any(other is not None and other.acts_for_good for other in others):
        warnings.warn(
            "image prompts of another adapter act on this U-Net already, and will add to those of this one; "
            "detach that adapter if this is not meant, or use `with adapter.references(...)`",
            stacklevel=4,
        )


def _nothing() -> None:
    """Nothing to undo."""
