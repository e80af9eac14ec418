"""Attaching to a denoiser: put processors in, lay image prompts on each batch, take everything out again.

The batch is looked at just before each forward pass, outside any compiled graph: how large it is, and which
rows are the negative and which the positive half of classifier-free guidance.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from imprompt.attention import DecoupledAttention, KeyValue, check_supported
from imprompt.errors import AmbiguousBatch, AttachmentError
from imprompt.layers import Shapes, check_fit, cross_attention_layers, layer_shapes

Branch = Literal["positive", "negative"]
Branches = tuple[Branch, ...]


class Condition(NamedTuple):
    """One image prompt, finished for every layer: K' and λV', a row per prompt, for each half of a batch."""

    positive: Mapping[int, KeyValue]
    negative: Mapping[int, KeyValue]

    @property
    def prompts(self) -> int:
        """1: for every prompt alike. More: one row for each prompt."""
        return next(iter(self.positive.values())).key.shape[0]

    def rows(self, layer: int, branches: Branches, samples: int) -> KeyValue:
        """Lay one layer on a batch: branch after branch, prompt after prompt, `samples` rows in each."""
        halves = {"positive": self.positive[layer], "negative": self.negative[layer]}
        each = samples // self.prompts
        return KeyValue(
            torch.cat([halves[branch].key.repeat_interleave(each, 0) for branch in branches]),
            torch.cat([halves[branch].value.repeat_interleave(each, 0) for branch in branches]),
        )


class Laying:
    """Lays conditions on the batches of one generation, each kind of batch once.

    Args:
        conditions: acting together, as a sum
        branches: asked before every forward pass, so guidance may be switched off part-way
    """

    def __init__(self, conditions: Sequence[Condition], branches: Callable[[], Branches]) -> None:
        self.conditions = conditions
        self.branches = branches
        self._laid: dict[tuple[object, ...], dict[int, tuple[KeyValue, ...]]] = {}
        self._checked: tuple[object, ...] | None = None

    def on_batch(self, sample: Tensor, text: Tensor) -> dict[int, tuple[KeyValue, ...]]:
        """Return each layer's terms for the batch that the denoiser is about to see.

        Raises:
            AmbiguousBatch: the conditions cannot be laid on this batch in exactly one way
        """
        branches = self.branches()
        samples = self._samples(sample.shape[0], branches)
        for condition in self.conditions:
            self._check_prompts(condition.prompts, samples, text)
        like = _computed_as(sample)
        kind = (samples, branches, *like)
        if kind not in self._laid:
            self._laid[kind] = {
                layer: tuple(
                    KeyValue(*(x.to(*like) for x in condition.rows(layer, branches, samples)))
                    for condition in self.conditions
                )
                for layer in self.conditions[0].positive
            }
        return self._laid[kind]

    def _samples(self, batch: int, branches: Branches) -> int:
        if batch % len(branches):
            raise AmbiguousBatch(
                f"a batch of {batch} cannot be divided among {len(branches)} branches ({', '.join(branches)})"
            )
        return batch // len(branches)

    def _check_prompts(self, prompts: int, samples: int, text: Tensor) -> None:
        """Rows that share a reference must share their text, or they are not of one prompt."""
        if samples % prompts:
            raise AmbiguousBatch(
                f"{prompts} references, one per prompt, do not fit a batch of {samples}; several pictures "
                "for one prompt are one Reference([...])"
            )
        if prompts == 1 or prompts == samples or self._is_checked(prompts, text):
            return
        groups = text.unflatten(0, (-1, samples // prompts))
        if not torch.equal(groups, groups[:, :1].expand_as(groups)):
            raise AmbiguousBatch(
                f"{prompts} references were given, one per prompt, but the {samples} samples are not "
                f"{prompts} prompts with {samples // prompts} pictures each; give one reference per prompt"
            )

    def _is_checked(self, prompts: int, text: Tensor) -> bool:
        # Comparing waits for the device, so one text is compared once. Inference tensors cannot be watched.
        if text.is_inference():
            return False
        last, self._checked = self._checked, (prompts, text._version, text)
        return last is not None and last[:2] == self._checked[:2] and last[2] is text


class Attachment:
    """An adapter on a denoiser; use it with `with`, or call `detach`.

    Args:
        target: a diffusers pipeline with a U-Net, or a `UNet2DConditionModel` (compiled or not)
        shapes: the adapter's layers

    Raises:
        AttachmentError: no U-Net there, or an attention processor or option that is not supported
        AdapterMismatch: the adapter's layers are not this U-Net's
    """

    def __init__(self, target: object, shapes: Shapes) -> None:
        self.target = target
        self.unet = _unet(target)
        layers = cross_attention_layers(self.unet)
        check_fit(shapes, layer_shapes(layers))
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

    def show(self, what: "Laying | Mapping[int, KeyValue]") -> "Shown":
        """Let image prompts act from now until the returned context ends; then what acted before acts again.

        Args:
            what: a `Laying` for whole generations, or K' and λV' of each layer, a row per sample
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
            self._place({layer: (term,) for layer, term in what.items()})

    def _place(self, terms: Mapping[int, tuple[KeyValue, ...]]) -> None:
        self._current = terms
        for layer, processor in self.processors.items():
            processor.show(self, terms.get(layer, ()))

    # A graph compiled around the hook would freeze one batch layout; outside it, none is ever compiled in.
    @torch.compiler.disable(reason="imprompt lays image prompts on the batch: compile before references(...)")
    def _before_forward(self, sample: Tensor, text: Tensor) -> None:
        assert self._now is not None
        assert isinstance(self._now.what, Laying)
        self.check_in_place()
        terms = self._now.what.on_batch(sample, text)
        if terms is not self._current:
            self._place(terms)


class Shown:
    """Image prompts that act now; leaving the context brings back what acted before."""

    def __init__(
        self, attachment: Attachment, what: Laying | Mapping[int, KeyValue], before: "Shown | None"
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


def guidance_branches(pipeline: object) -> Branches:
    """Say how a running diffusers pipeline stacks its batch.

    Stable Diffusion stacks (negative, positive) with guidance and nothing without; perturbed-attention
    guidance repeats the positive half (diffusers, pipelines/pag/pag_utils.py); InstructPix2Pix stacks
    (positive, negative, negative) (pipeline_stable_diffusion_instruct_pix2pix.py).

    Raises:
        AttachmentError: a pipeline that does not tell, or that is not the one that runs
    """
    kind = type(pipeline)
    known = isinstance(getattr(kind, "do_classifier_free_guidance", None), property)
    if not known or kind.__name__.startswith("LEdits"):
        raise AttachmentError(
            f"{kind.__name__} does not tell how it stacks its batch; give references(..., branches=...)"
        )
    if not _is_running(pipeline):
        raise AttachmentError(
            f"the U-Net is called, but not by the {kind.__name__} that the adapter is attached to; attach "
            "to what calls it, or give references(..., branches=...)"
        )
    guided = bool(getattr(pipeline, "do_classifier_free_guidance"))  # noqa: B009
    perturbed = bool(getattr(pipeline, "do_perturbed_attention_guidance", False))
    if guided and hasattr(kind, "image_guidance_scale"):
        return "positive", "negative", "negative"
    return (("negative",) if guided else ()) + (("positive",) * (2 if perturbed else 1))


def _is_running(pipeline: object) -> bool:
    """Whether one of its methods is up the stack.

    Several pipelines may share one U-Net, and people write sampling loops of their own. The settings of a
    pipeline's last run say nothing about these, and would lay image prompts on the wrong rows without a word.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",) and frame.f_locals.get("self") is pipeline:
            return True
        frame = frame.f_back
    return False


def _denoiser(target: object) -> nn.Module:
    """The module that is called at every step: the U-Net, or what torch.compile made of it."""
    module = target if isinstance(target, nn.Module) else getattr(target, "unet", None)
    if not isinstance(module, nn.Module):
        raise AttachmentError(f"{type(target).__name__} has no U-Net to attach to")
    return module


def _unet(target: object) -> UNet2DConditionModel:
    module = _denoiser(target)
    unet = getattr(module, "_orig_mod", module)
    if not isinstance(unet, UNet2DConditionModel):
        raise AttachmentError(
            f"cannot attach to {type(unet).__name__}; only UNet2DConditionModel is supported"
        )
    return unet


def _adopted(attn: Attention, owner: Attachment) -> DecoupledAttention:
    processor = attn.processor
    if not isinstance(processor, DecoupledAttention):
        processor = DecoupledAttention(processor)  # pyright: ignore[reportArgumentType]
        attn.processor = processor  # pyright: ignore[reportAttributeAccessIssue]
    processor.adopt(owner)
    return processor


def _hook(module: nn.Module, before: Callable[[Tensor, Tensor], None]) -> Callable[[], None]:
    """Call `before(sample, text)` ahead of every call of a denoiser; returns what undoes it."""

    def look(called: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        if called is not module:  # A copy, made while we were attached, has a copy of the hook.
            return
        # UNet2DConditionModel.forward(sample, timestep, encoder_hidden_states, ...)
        sample = args[0] if args else kwargs["sample"]
        before(sample, args[2] if len(args) > 2 else kwargs["encoder_hidden_states"])

    compiled = module._compiled_call_impl
    if compiled is None:
        return module.register_forward_pre_hook(look, with_kwargs=True).remove

    # module.compile() compiles the hooks too; what it calls is replaced to stay outside.
    def call(*args: Tensor, **kwargs: Tensor) -> object:
        look(module, args, kwargs)
        return compiled(*args, **kwargs)

    module._compiled_call_impl = call  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: setattr(module, "_compiled_call_impl", compiled)


def _computed_as(sample: Tensor) -> tuple[torch.device, torch.dtype]:
    kind = sample.device.type
    autocast = torch.is_autocast_enabled(kind)
    return sample.device, torch.get_autocast_dtype(kind) if autocast else sample.dtype


def _nothing() -> None:
    """Nothing to undo."""
