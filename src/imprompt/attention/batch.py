"""Laying finished image prompts on a batch: whose rows, where masks fall, what acts at which step."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.attention.pipeline_state import (
    Branches,
    Clock,
    Moment,
    RunningCall,
    check_no_other_prompt,
    check_rows,
    check_whole,
    guidance_branches,
    picture_box,
    running_call,
)
from imprompt.attention.processor import KeyValue, LoraTerm, Place, Term
from imprompt.errors import AmbiguousBatch, InvalidReference

LoraPairs = Mapping[int, dict[Place, tuple[Tensor, Tensor]]]
"""Layer number → (down, up) for its matrices."""


class Condition(NamedTuple):
    """One image prompt, finished: K' and λV' of the layers it acts in, a row per prompt.

    They come for both halves of a batch under guidance.
    """

    positive: Mapping[int, KeyValue]
    negative: Mapping[int, KeyValue]
    areas: Sequence[Tensor | None]
    """A mask "height width" for each prompt; None: everywhere."""
    weights: Callable[[Moment], list[float]] | None = None
    """What multiplies λ at a step, for each prompt; None: always 1."""
    needs_guidance: bool = False
    """Whether some layers push away from the picture, which only guidance can."""

    @property
    def prompts(self) -> int:
        """1: for every prompt alike. More: one row for each prompt."""
        return len(self.areas)


class Loras(NamedTuple):
    """The LoRA that comes with an adapter, and its strength for each prompt (or one for all)."""

    pairs: LoraPairs
    scale: Float[Tensor, " prompts"]


class Laid(NamedTuple):
    """What a layer is shown for a batch."""

    terms: tuple[Term, ...] = ()
    lora: LoraTerm | None = None


class Rows(NamedTuple):
    """The rows of a batch: branch after branch, prompt after prompt, each prompt's pictures (and frames)."""

    branches: Branches
    samples: int
    """Rows in each branch."""

    def of(
        self, positive: Float[Tensor, "prompts ..."], negative: Float[Tensor, "prompts ..."] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Repeat what belongs to a prompt for each of its rows; the negative branch is alike if not given."""
        halves = {"positive": positive, "negative": positive if negative is None else negative}
        each = self.samples // positive.shape[0]
        return torch.cat([halves[branch].repeat_interleave(each, 0) for branch in self.branches])


Box = tuple[float, float, float, float]
"""A part of a picture: left, top, right, bottom, as fractions of its width and height."""


class Batch(NamedTuple):
    """What decides how image prompts are laid: rows, size of the latents, device and number format."""

    rows: Rows
    size: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    box: Box | None = None
    """The part of the picture that the latents are, for masks; None: all of it."""


class Laying:
    """Lays conditions on the batches of one generation, each kind of batch once.

    Args:
        conditions: acting together, as a sum
        levels: layer number → how often the latents have been halved there
        unet: the denoiser
        target: what the adapter is attached to: the denoiser, or a pipeline
        branches: how every batch is stacked; if not given, the pipeline that runs is asked before every
            forward pass, so guidance may be switched off part-way
        clock: tells the step, where a condition does not act alike at every one; None for a bare denoiser
        loras: of the adapter, if it has any
        is_static: give every layer all terms with whole masks, whatever is on or off: for compiled denoisers,
            which would be compiled anew for every combination

    Attributes:
        guest: the last pipeline that drew and is not the one that the adapter is attached to
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        levels: Mapping[int, int],
        unet: nn.Module,
        target: object,
        *,
        branches: Branches | None = None,
        clock: Clock | None = None,
        loras: Loras | None = None,
        is_static: bool = False,
    ) -> None:
        self.conditions, self.levels, self.branches = conditions, levels, branches
        self.unet, self.target = unet, target
        self.clock, self.loras, self.is_static = clock, loras, is_static
        self.guest: weakref.ref[object] | None = None
        self._laid: dict[Batch, dict[int, Laid]] = {}
        self._weighted: tuple[object, dict[int, Laid]] | None = None
        self._checked: tuple[int, int, Tensor] | None = None
        self._guided: object = None
        self._sampled: tuple[object, int] | None = None

    def on_batch(self, sample: Tensor, timestep: Tensor | float | int, text: Tensor) -> dict[int, Laid]:
        """Return what each layer is shown for the batch that the denoiser is about to see.

        Args:
            sample: latents, "batch channels height width"; of a video "batch channels frames height width"
            timestep: of this step
            text: the text's states, a row for each of the batch (and frames)

        Raises:
            AmbiguousBatch: the conditions cannot be laid on this batch in exactly one way
            InvalidReference: steps or layers that this generation cannot honour
        """
        call = running_call(self.unet, self.target)
        if call is not None and call.pipeline is not self.target:
            check_no_other_prompt(call)
            self.guest = weakref.ref(call.pipeline)
        if self.clock is not None:
            self.clock.call = call
        try:
            batch = self._batch(sample, text, call)
            if batch not in self._laid:
                self._laid[batch] = self._laid_on(batch)
            return self._at_step(batch, timestep)
        finally:
            if self.clock is not None:
                self.clock.call = None  # it holds all tensors of the pipeline's call

    def _batch(self, sample: Tensor, text: Tensor, call: RunningCall | None) -> Batch:
        rows = self._rows(sample, text, call)
        size = sample.shape[-2], sample.shape[-1]
        if all(area is None for condition in self.conditions for area in condition.areas):
            return Batch(rows, size, *_computed_as(sample))
        check_whole(call, size)
        return Batch(rows, size, *_computed_as(sample), picture_box(call))

    def _rows(self, sample: Tensor, text: Tensor, call: RunningCall | None) -> Rows:
        branches = self.branches or guidance_branches(call, self.target)
        if self.branches is None and call is not None:
            check_rows(call, branches, sample.shape[0])
        self._check_guidance(branches)
        batch = sample.shape[0] * (sample.shape[2] if sample.ndim == 5 else 1)
        if batch % len(branches):
            raise AmbiguousBatch(
                f"a batch of {batch} cannot be divided among {len(branches)} branches ({', '.join(branches)})"
            )
        rows = Rows(branches, batch // len(branches))
        self._check_same_rows(rows, call)
        for condition in self.conditions:
            self._check_prompts(condition.prompts, rows.samples, text)
        return rows

    def _laid_on(self, batch: Batch) -> dict[int, Laid]:
        rows, _, device, dtype, _ = batch
        layers = {layer for condition in self.conditions for layer in condition.positive}
        masks = {level: self._masks(batch, level) for level in {self.levels[layer] for layer in layers}}
        laid = {
            layer: Laid(
                tuple(
                    Term(*_on_rows(condition, layer, batch), self._own(mask))
                    for condition, mask in zip(self.conditions, masks[self.levels[layer]], strict=True)
                    if layer in condition.positive
                )
            )
            for layer in layers
        }
        _check_finite(laid, dtype)
        if self.loras is not None:
            scale = rows.of(self.loras.scale)[:, None, None].to(device, dtype)
            for layer, pairs in self.loras.pairs.items():
                low_rank: dict[Place, tuple[Tensor, Tensor]] = {
                    place: (down.to(device, dtype), up.to(device, dtype))
                    for place, (down, up) in pairs.items()
                }
                laid[layer] = Laid(laid[layer].terms if layer in laid else (), LoraTerm(low_rank, scale))
        return laid

    def _masks(self, batch: Batch, level: int) -> list[Float[Tensor, "batch 1 queries 1"] | None]:
        """Every condition's mask at one resolution."""
        height, width = (-(-side // 2**level) for side in batch.size)
        masks: list[Tensor | None] = []
        for condition in self.conditions:
            if not self.is_static and all(area is None for area in condition.areas):
                masks.append(None)
                continue
            areas = torch.stack([_resized(area, height, width, batch.box) for area in condition.areas])
            masks.append(batch.rows.of(areas)[:, None, :, None].to(batch.device, batch.dtype))
        return masks

    def _own(self, mask: Tensor | None) -> Tensor | None:
        # A graph is compiled for tensors that are shared among layers in just this way: never share any.
        return mask.clone() if mask is not None and self.is_static else mask

    def _at_step(self, batch: Batch, timestep: Tensor | float | int) -> dict[int, Laid]:
        """Weigh the terms as this step asks for."""
        scheduled = [condition.weights for condition in self.conditions]
        if not any(scheduled) or self.clock is None:
            return self._laid[batch]
        moment = self.clock.moment(timestep)
        factors = tuple(tuple(weights(moment)) if weights else (1.0,) for weights in scheduled)
        if self._weighted is None or self._weighted[0] != (batch, factors):
            terms = {
                layer: self._weighed(laid, layer, batch, factors) for layer, laid in self._laid[batch].items()
            }
            self._weighted = (batch, factors), terms
        return self._weighted[1]

    def _weighed(self, laid: Laid, layer: int, batch: Batch, factors: Sequence[tuple[float, ...]]) -> Laid:
        mine = [
            x for x, condition in zip(factors, self.conditions, strict=True) if layer in condition.positive
        ]
        terms: list[Term] = []
        for term, factor in zip(laid.terms, mine, strict=True):
            if self.is_static or set(factor) - {0.0, 1.0} or len(set(factor)) > 1:
                by_row = batch.rows.of(term.key.new_tensor(factor))[:, None, None, None]
                terms.append(term._replace(weight=by_row if term.weight is None else by_row * term.weight))
            elif set(factor) == {1.0}:
                terms.append(term)
        return laid._replace(terms=tuple(terms))

    def _check_guidance(self, branches: Branches) -> None:
        """Pushing away needs a negative branch; guidance that has stopped part-way did have one."""
        if not any(condition.needs_guidance for condition in self.conditions):
            return
        generation = self.clock.generation if self.clock else self
        if "negative" in branches:
            self._guided = generation
        elif self._guided is not generation:
            raise InvalidReference(
                "a precise mode pushes away from the picture by guidance, and guidance is off; "
                "set guidance_scale above 1"
            )

    def _check_same_rows(self, rows: Rows, call: RunningCall | None) -> None:
        """A batch that changes within a generation is not stacked as the user says of all its batches."""
        is_alike = len(set(rows.branches)) == 1 and all(one.prompts == 1 for one in self.conditions)
        if self.branches is None or call is None or is_alike:
            return
        generation, before = call.generation, self._sampled
        self._sampled = generation, rows.samples
        if before is not None and before[0] is generation and before[1] != rows.samples:
            count = len(rows.branches)
            raise AmbiguousBatch(
                f"{type(call.pipeline).__name__} called its U-Net with a batch of {before[1] * count}, then "
                f"of {rows.samples * count} in one generation; branches={rows.branches} cannot fit both"
            )

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


def _on_rows(condition: Condition, layer: int, batch: Batch) -> KeyValue:
    halves = zip(condition.positive[layer], condition.negative[layer], strict=True)
    return KeyValue(*(batch.rows.of(*half).to(batch.device, batch.dtype) for half in halves))


def _check_finite(laid: Mapping[int, Laid], dtype: torch.dtype) -> None:
    """Float16 holds values up to 65504; beyond it a picture would be of NaN."""
    terms = [(layer, term) for layer, one in laid.items() for term in one.terms]
    if not terms:
        return
    # All at once: looking waits for the device.
    finite = torch.stack([x.isfinite().all() for _, (key, value, _) in terms for x in (key, value)])
    if not bool(finite.all()):
        layer = terms[int(finite.logical_not().nonzero()[0]) // 2][0]
        raise InvalidReference(
            f"the image prompt's key or value in layer {layer} is NaN or beyond what {dtype} holds; "
            "use the base in bfloat16 or float32, or a smaller scale"
        )


def _resized(
    area: Tensor | None, height: int, width: int, box: Box | None = None
) -> Float[Tensor, " {height*width}"]:
    """A mask at a layer's resolution: the mean over each position's part of the picture.

    Means are linear: masks that add up to 1 everywhere still do.
    """
    if area is None:
        return torch.ones(height * width)
    if box is None:
        return F.adaptive_avg_pool2d(area[None, None], (height, width)).flatten()
    left, top, right, bottom = box
    down, across = _means(area.shape[0], top, bottom, height), _means(area.shape[1], left, right, width)
    return (down @ area.double() @ across.T).clamp(0, 1).float().flatten()


def _means(cells: int, start: float, end: float, parts: int) -> Float[Tensor, "{parts} {cells}"]:
    """Weights that take the means of a row of cells over equal parts of it from `start` to `end`.

    Both are fractions of the whole row; beyond it, its outermost cells go on.
    """
    bounds = torch.linspace(start * cells, end * cells, parts + 1, dtype=torch.float64)
    edges = torch.arange(cells + 1, dtype=torch.float64)
    edges[0], edges[-1] = min(0.0, start * cells), max(float(cells), end * cells)
    overlaps = torch.minimum(bounds[1:, None], edges[1:]) - torch.maximum(bounds[:-1, None], edges[:-1])
    return overlaps.clamp(min=0) / (bounds[1:] - bounds[:-1])[:, None]


def _computed_as(sample: Tensor) -> tuple[torch.device, torch.dtype]:
    kind = sample.device.type
    autocast = torch.is_autocast_enabled(kind)
    return sample.device, torch.get_autocast_dtype(kind) if autocast else sample.dtype
