"""Attaching to a denoiser: put processors in, lay image prompts on each batch, take everything out again.

The batch is looked at just before each forward pass, outside any compiled graph: how large it is, at which
step, and which rows are the negative and which the positive half of classifier-free guidance.
"""

from collections.abc import Callable, Collection, Mapping
from typing import cast, get_args

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from torch import Tensor, nn

from imprompt.attention import (
    AttentionProcessor,
    DecoupledAttention,
    check_lora_supported,
    check_supported,
)
from imprompt.errors import AdapterMismatch, AttachmentError
from imprompt.layers import (
    Shapes,
    UNet,
    attention_layers,
    check_fit,
    cross_attention_layers,
    layer_level,
    layer_shapes,
)
from imprompt.laying import Laid, Laying


class Attachment:
    """An adapter on a denoiser; use it with `with`, or call `detach`.

    Args:
        target: a diffusers pipeline with a U-Net, or a bare one (compiled or not)
        shapes: the adapter's layers
        lora_layers: numbers of the attention layers, self-attention too, that its LoRA changes

    Attributes:
        names: layer number → name of the cross-attention's module
        levels: layer number → how often the latents have been halved there

    Raises:
        AttachmentError: no U-Net there, or an attention processor or option that is not supported
        AdapterMismatch: the adapter's layers are not this U-Net's
    """

    def __init__(self, target: object, shapes: Shapes, lora_layers: Collection[int] = ()) -> None:
        self.target = target
        self.unet = _unet(target)
        crossing = cross_attention_layers(self.unet)
        check_fit(shapes, layer_shapes(crossing))
        self.names = {layer: name for layer, (name, _) in crossing.items()}
        blocks = len(cast(nn.ModuleList, self.unet.down_blocks))
        self.levels = {layer: layer_level(name, blocks) for layer, name in self.names.items()}
        layers = crossing | _lora_layers(self.unet, lora_layers)
        for name, attn in layers.values():
            check_supported(name, attn)
        self.layers = {layer: attn for layer, (_, attn) in layers.items()}
        self.processors = {layer: _adopted(attn, self) for layer, attn in self.layers.items()}
        self.is_attached = True
        self._now: Shown | None = None
        self._unhook: Callable[[], None] = _nothing
        self._current: object = None

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def heads(self, layer: int) -> int:
        """Number of attention heads of a layer."""
        return self.layers[layer].heads

    @property
    def is_compiled(self) -> bool:
        """Whether the denoiser goes through torch.compile."""
        module = _denoiser(self.target)
        return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None

    def show(self, what: "Laying | Mapping[int, Laid]") -> "Shown":
        """Let image prompts act from now until the returned context ends; then what acted before acts again.

        Args:
            what: a `Laying` for whole generations, or what each layer is shown, a row per sample
        """
        self.check_in_place()
        if self._now is not None:
            self._now.settle()
        shown = Shown(self, what, self._now)
        self._display(shown)
        return shown

    def acts(self, shown: "Shown") -> bool:
        """Whether this acts now."""
        return self._now is shown

    def end(self, shown: "Shown") -> None:
        """End a `Shown` and all that came inside it; nothing happens if it has been replaced for good."""
        inner = self._now
        while inner is not None and inner is not shown:
            inner = inner.before
        if inner is shown:
            self._display(shown.before)

    def detach(self) -> None:
        """Take out the processors and hooks, and put back the very processors that were there."""
        if not self.is_attached:
            return
        self._display(None)
        for layer, processor in self.processors.items():
            attn = self.layers[layer]
            if processor.disown(self) and attn.processor is processor:
                attn.processor = processor.base  # pyright: ignore[reportAttributeAccessIssue]
        self.is_attached = False

    def check_in_place(self) -> None:
        """Make sure that image prompts reach the pictures.

        Raises:
            AttachmentError: not attached, or someone has replaced the U-Net or its attention processors since
        """
        if not self.is_attached:
            raise AttachmentError("the adapter is not attached any more; attach it again")
        if _unet(self.target) is not self.unet:
            raise AttachmentError("the pipeline has another U-Net than before; detach, then attach again")
        for layer, processor in self.processors.items():
            if self.layers[layer].processor is not processor:
                kind = type(self.layers[layer].processor).__name__
                raise AttachmentError(
                    f"cross-attention layer {layer} was given another processor ({kind}) after the adapter; "
                    "detach, then attach again"
                )

    def _display(self, shown: "Shown | None") -> None:
        self._unhook()
        self._unhook = _nothing
        self._now = shown
        what = {} if shown is None else shown.what
        if isinstance(what, Laying):
            self._place({})
            self._unhook = _hook(_denoiser(self.target), self._before_forward)
        else:
            self._place(what)

    def _place(self, laid: Mapping[int, Laid]) -> None:
        self._current = laid
        for layer, processor in self.processors.items():
            processor.show(self, *laid.get(layer, Laid()))

    # A graph compiled around the hook would freeze one batch layout; outside it, none is ever compiled in.
    @torch.compiler.disable(reason="imprompt lays image prompts on the batch: compile before references(...)")
    def _before_forward(self, sample: Tensor, timestep: Tensor | float | int, text: Tensor) -> None:
        assert self._now is not None
        assert isinstance(self._now.what, Laying)
        self.check_in_place()
        laid = self._now.what.on_batch(sample, timestep, text)
        if laid is not self._current:
            self._place(laid)


class Shown:
    """Image prompts that act now; leaving the context brings back what acted before."""

    def __init__(
        self, attachment: Attachment, what: Laying | Mapping[int, Laid], before: "Shown | None"
    ) -> None:
        self.attachment = attachment
        self.what = what
        self.before = before
        self.entered = False

    def settle(self) -> None:
        """Two calls without `with`: the later one has replaced the earlier one for good."""
        if self.before is not None and not self.entered and not self.before.entered:
            self.before = self.before.before

    def __enter__(self) -> "Shown":
        if not self.attachment.acts(self):
            raise AttachmentError("these image prompts do not act any more; set them again")
        self.entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.attachment.end(self)


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


def _adopted(attn: Attention, owner: Attachment) -> DecoupledAttention:
    processor = attn.processor
    if not isinstance(processor, DecoupledAttention):
        processor = DecoupledAttention(cast(AttentionProcessor, processor))
        attn.processor = processor  # pyright: ignore[reportAttributeAccessIssue]
    processor.adopt(owner)
    return processor


def _hook(module: nn.Module, before: Callable[..., None]) -> Callable[[], None]:
    """Call `before(sample, timestep, text)` ahead of every call of a denoiser; returns what undoes it."""

    def look(called: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        if called is not module:  # A copy, made while we were attached, has a copy of the hook.
            return
        # forward(sample, timestep, encoder_hidden_states, ...) of both kinds of U-Net
        names = ("sample", "timestep", "encoder_hidden_states")
        before(*args[:3], *(kwargs[name] for name in names[len(args) :]))

    compiled = module._compiled_call_impl
    if compiled is None:
        return module.register_forward_pre_hook(look, with_kwargs=True).remove

    # module.compile() compiles the hooks too; what it calls is replaced to stay outside.
    def call(*args: Tensor, **kwargs: Tensor) -> object:
        look(module, args, kwargs)
        return compiled(*args, **kwargs)

    module._compiled_call_impl = call  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: setattr(module, "_compiled_call_impl", compiled)


def _nothing() -> None:
    """Nothing to undo."""
