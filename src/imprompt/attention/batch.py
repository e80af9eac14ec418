"""Expand per-prompt K′, V′ and masks to the rows of one U-Net call, and weight them for the step.

The rows are the branches of guidance, the prompts, the images per prompt, and the frames of a video.
"""

import weakref
from collections.abc import Hashable, Mapping, Sequence
from itertools import compress
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.attention.choices import Place
from imprompt.attention.conditioning import BatchRows, Conditioning, LayerInputs
from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.denoiser_layers import DenoiserLayers, QueryGrid
from imprompt.attention.diffusers_internals import Branches, PipelineCall, find_running_call
from imprompt.attention.pipeline_state import (
    Clock,
    check_no_other_prompt,
    check_rows,
    check_whole,
    find_picture_box,
    read_branches,
)
from imprompt.attention.terms import LoraTerm, Term
from imprompt.errors import AdapterMismatch, AmbiguousBatch, InvalidReference

Box = tuple[float, float, float, float]
"""A part of a picture: left, top, right and bottom, as fractions of its width and height."""


class BatchLayout(NamedTuple):
    """Everything about a batch that its `LayerInputs` depend on."""

    rows: BatchRows
    geometry: Hashable
    """The sizes on which the layers' grids depend, if there are masks; None without any."""
    device: torch.device
    dtype: torch.dtype
    box: Box | None = None
    """The part of the picture that the latents show, if there are masks; None: all of it."""


class BatchPlan:
    """Expands conditionings to the batches of one generation, once for each kind of batch.

    Args:
        conditionings: they act together, as a sum
        layers: the layers of the denoiser
        denoiser: the denoiser
        target: what the adapter is attached to: the denoiser, or a pipeline
        branches: how every batch is stacked. By default the running pipeline is asked before every forward
            pass, so guidance may be switched off part-way
        clock: finds the step, for references with a schedule; None for a bare denoiser
        loras: the adapter's LoRA at each layer, with a scale for each prompt (or one for all)
        is_static: give every layer all terms with whole masks, even where they are off. A compiled denoiser
            would otherwise be compiled again for every combination

    Attributes:
        other_pipeline: the last pipeline that ran and is not the one to which the adapter is attached
    """

    def __init__(
        self,
        conditionings: Sequence[Conditioning],
        layers: DenoiserLayers,
        denoiser: nn.Module,
        target: object,
        *,
        branches: Branches | None = None,
        clock: Clock | None = None,
        loras: Mapping[int, LoraTerm] | None = None,
        is_static: bool = False,
    ) -> None:
        self.conditionings, self.layers, self.branches = conditionings, layers, branches
        self.denoiser, self.target = denoiser, target
        self.clock, self.loras, self.is_static = clock, loras or {}, is_static
        self.other_pipeline: weakref.ref[object] | None = None
        self._inputs: dict[BatchLayout, dict[int, LayerInputs]] = {}
        self._weighted: tuple[object, dict[int, LayerInputs]] | None = None
        self._checked: tuple[int, int, Tensor] | None = None
        self._guided: object = None
        self._sampled: tuple[object, int] | None = None

    def expand(self, denoising: DenoiserCall) -> dict[int, LayerInputs]:
        """Return the inputs of each layer for the batch that the denoiser is about to process.

        Args:
            denoising: the call of the denoiser

        Raises:
            AmbiguousBatch: the rows of this batch fit the references in no way, or in several
            InvalidReference: steps or layers that this generation cannot honor
        """
        call = find_running_call(self.denoiser, self.target)
        if call is not None and (call.pipeline is not self.target or self.layers.noun == "transformer"):
            check_no_other_prompt(call, self.denoiser, self.layers.noun)
        if call is not None and call.pipeline is not self.target:
            self.other_pipeline = weakref.ref(call.pipeline)
        if self.clock is not None:
            self.clock.call = call
        try:
            batch = self._layout(denoising, call)
            if batch not in self._inputs or self._depends_on_time:
                self._inputs[batch] = self._expand(batch, denoising.timestep)
            return self._at_step(batch, denoising.timestep)
        finally:
            if self.clock is not None:
                self.clock.call = None  # It holds all tensors of the pipeline's call.

    @property
    def _depends_on_time(self) -> bool:
        return any(conditioning.depends_on_time for conditioning in self.conditionings)

    def _layout(self, denoising: DenoiserCall, call: PipelineCall | None) -> BatchLayout:
        rows = self._rows(denoising, call)
        place = find_device_and_dtype(denoising.sample)
        areas = [area for conditioning in self.conditionings for area in conditioning.areas]
        if not self.is_static and all(area is None for area in areas):
            return BatchLayout(rows, None, *place)
        geometry = self.layers.read_geometry(denoising)
        if all(area is None for area in areas):
            return BatchLayout(rows, geometry, *place)
        check_whole(call, (denoising.sample.shape[-2], denoising.sample.shape[-1]), self.layers.noun)
        return BatchLayout(rows, geometry, *place, find_picture_box(call))

    def _rows(self, denoising: DenoiserCall, call: PipelineCall | None) -> BatchRows:
        sample = denoising.sample
        branches = self.branches or read_branches(call, self.target, denoising)
        if self.branches is None and call is not None:
            check_rows(call, branches, sample.shape[0], self.layers.noun)
        self._check_guidance(branches)
        if "negative" in branches and any(one.lacks_negative for one in self.conditionings):
            raise AdapterMismatch(
                "with guidance this adapter takes a black picture for no image, which an image encoder must "
                "see; set adapter.image_encoder, or give Reference(negative=...)"
            )
        batch = sample.shape[0] * (sample.shape[2] if sample.ndim == 5 else 1)
        if batch % len(branches):
            raise AmbiguousBatch(
                f"a batch of {batch} cannot be divided among {len(branches)} branches ({', '.join(branches)})"
            )
        rows = BatchRows(branches, batch // len(branches))
        self._check_same_rows(rows, call)
        for conditioning in self.conditionings:
            self._check_prompts(conditioning.prompts, rows.samples, denoising.text)
        return rows

    def _expand(self, batch: BatchLayout, timestep: Tensor | float | int) -> dict[int, LayerInputs]:
        rows, _, device, dtype, _ = batch
        expanded = [
            one.expand(rows, timestep, device, dtype) if self._acts(one, rows) else {}
            for one in self.conditionings
        ]
        masks: dict[QueryGrid | None, list[Tensor | None]] = {}
        inputs: dict[int, LayerInputs] = {}
        for layer in {layer: None for terms in expanded for layer in terms}:
            grid = None if batch.geometry is None else self.layers.grid(layer, batch.geometry)
            if grid not in masks:
                masks[grid] = self._masks(batch, grid)
            terms = zip(expanded, masks[grid], strict=True)
            inputs[layer] = LayerInputs(
                tuple(_mask_term(one[layer], self._unshare(mask)) for one, mask in terms if layer in one)
            )
        check_finite(inputs, dtype)
        for layer, (pairs, scale) in self.loras.items():
            lora = convert_lora(LoraTerm(pairs, rows.expand(scale)[:, None, None]), device, dtype)
            inputs[layer] = inputs.get(layer, LayerInputs())._replace(lora=lora)
        return inputs

    def _acts(self, conditioning: Conditioning, rows: BatchRows) -> bool:
        """Whether a conditioning acts in these rows; a compiled denoiser gets its zeros."""
        return self.is_static or conditioning.has_negative or "positive" in rows.branches

    def _masks(
        self, batch: BatchLayout, grid: QueryGrid | None
    ) -> list[Float[Tensor, "batch 1 queries 1"] | None]:
        """Return every conditioning's mask on the grid of a layer."""
        masks: list[Tensor | None] = []
        for conditioning in self.conditionings:
            if grid is None or (not self.is_static and all(area is None for area in conditioning.areas)):
                masks.append(None)
                continue
            areas = torch.stack([_resize_mask(area, grid, batch.box) for area in conditioning.areas])
            masks.append(batch.rows.expand(areas)[:, None, :, None].to(batch.device, batch.dtype))
        return masks

    def _unshare(self, mask: Tensor | None) -> Tensor | None:
        # A compiled graph expects the same tensors to be shared among layers every time, so none are.
        return mask.clone() if mask is not None and self.is_static else mask

    def _at_step(self, batch: BatchLayout, timestep: Tensor | float | int) -> dict[int, LayerInputs]:
        """Return the inputs with each term weighted for this step."""
        scheduled = [conditioning.weights for conditioning in self.conditionings]
        if not any(scheduled) or self.clock is None:
            return self._inputs[batch]
        moment = self.clock.moment(timestep)
        factors = tuple(tuple(weights(moment)) if weights else (1.0,) for weights in scheduled)
        if self._depends_on_time or self._weighted is None or self._weighted[0] != (batch, factors):
            terms = {
                layer: self._weight(inputs, layer, batch, factors)
                for layer, inputs in self._inputs[batch].items()
            }
            self._weighted = (batch, factors), terms
        return self._weighted[1]

    def _weight(
        self, inputs: LayerInputs, layer: int, batch: BatchLayout, factors: Sequence[tuple[float, ...]]
    ) -> LayerInputs:
        used = [self._acts(one, batch.rows) and layer in one.layers for one in self.conditionings]
        terms: list[Term] = []
        for term, factor in zip(inputs.terms, compress(factors, used), strict=True):
            if self.is_static or set(factor) - {0.0, 1.0} or len(set(factor)) > 1:
                # Not `new_tensor`, which waits for the device.
                factors_of_prompts = torch.tensor(factor, dtype=term.key.dtype)
                by_row = batch.rows.expand(factors_of_prompts)[:, None, None, None].to(
                    term.key.device, non_blocking=True
                )
                terms.append(term._replace(weight=by_row if term.weight is None else by_row * term.weight))
            elif set(factor) == {1.0}:
                terms.append(term)
        return inputs._replace(terms=tuple(terms))

    def _check_guidance(self, branches: Branches) -> None:
        """Refuse layers that push away if this generation has not had a negative branch."""
        if not any(conditioning.needs_guidance for conditioning in self.conditionings):
            return
        generation = self.clock.generation if self.clock else self
        if "negative" in branches:
            self._guided = generation
        elif self._guided is not generation:
            raise InvalidReference(
                "a precise mode pushes away from the picture by guidance, and guidance is off; "
                "set guidance_scale above 1"
            )

    def _check_same_rows(self, rows: BatchRows, call: PipelineCall | None) -> None:
        """Refuse a batch that changes its size within a generation, as `branches` cannot fit both."""
        is_alike = len(set(rows.branches)) == 1 and all(one.prompts == 1 for one in self.conditionings)
        if self.branches is None or call is None or is_alike:
            return
        generation, before = call.timesteps, self._sampled
        self._sampled = generation, rows.samples
        if before is not None and before[0] is generation and before[1] != rows.samples:
            count = len(rows.branches)
            raise AmbiguousBatch(
                f"{type(call.pipeline).__name__} called its {self.layers.noun} with a batch of "
                f"{before[1] * count}, then of {rows.samples * count} in one generation; "
                f"branches={rows.branches} cannot fit both"
            )

    def _check_prompts(self, prompts: int, samples: int, text: Tensor) -> None:
        """Refuse rows that share a reference but not their text, which cannot be of one prompt."""
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
        # Comparing waits for the device, so a text is compared once. Inference tensors have no version.
        if text.is_inference():
            return False
        last, self._checked = self._checked, (prompts, text._version, text)
        return last is not None and last[:2] == self._checked[:2] and last[2] is text


def convert_lora(lora: LoraTerm, device: torch.device, dtype: torch.dtype) -> LoraTerm:
    """Move a LoRA to a device, and convert it to a number format."""
    pairs: dict[Place, tuple[Tensor, Tensor]] = {
        place: (down.to(device, dtype), up.to(device, dtype)) for place, (down, up) in lora.pairs.items()
    }
    return LoraTerm(pairs, lora.scale.to(device, dtype))


def check_finite(inputs: Mapping[int, LayerInputs], dtype: torch.dtype) -> None:
    """Refuse values beyond what the number format holds (65504 in float16): the picture would be NaN."""
    terms = [(layer, term) for layer, one in inputs.items() for term in one.terms]
    if not terms:
        return
    # Reading a result waits for the device, so all are read at once.
    finite = torch.stack([x.isfinite().all() for _, term in terms for x in (term.key, term.value)])
    if not bool(finite.all()):
        layer = terms[int(finite.logical_not().nonzero()[0]) // 2][0]
        raise InvalidReference(
            f"the image prompt's key or value in layer {layer} is NaN or beyond what {dtype} holds; "
            "use the base in bfloat16 or float32, or a smaller scale"
        )


def _mask_term(term: Term, mask: Tensor | None) -> Term:
    if mask is None:
        return term
    return term._replace(weight=mask if term.weight is None else term.weight * mask)


def _resize_mask(area: Tensor | None, grid: QueryGrid, box: Box | None = None) -> Float[Tensor, " queries"]:
    """Average a mask over the part of the picture that each query of a layer covers.

    The rows of a text show no place: they get the mask's mean. Averages are linear, so masks that add up to 1
    everywhere still do.
    """
    if area is None:
        return torch.ones(grid.text + sum(height * width for height, width in grid.pictures))
    parts = [_average_mask(area, height, width, box) for height, width in grid.pictures]
    return torch.cat([parts[0].mean().expand(grid.text), *parts])


def _average_mask(
    area: Tensor, height: int, width: int, box: Box | None = None
) -> Float[Tensor, " {height*width}"]:
    if box is None:
        return F.adaptive_avg_pool2d(area[None, None], (height, width)).flatten()
    left, top, right, bottom = box
    down, across = (
        _mean_weights(area.shape[0], top, bottom, height),
        _mean_weights(area.shape[1], left, right, width),
    )
    return (down @ area.double() @ across.T).clamp(0, 1).float().flatten()


def _mean_weights(cells: int, start: float, end: float, parts: int) -> Float[Tensor, "{parts} {cells}"]:
    """Return weights that average a row of cells over equal parts of it, from `start` to `end`.

    Both are fractions of the whole row; beyond its ends, the outermost cells continue.
    """
    bounds = torch.linspace(start * cells, end * cells, parts + 1, dtype=torch.float64)
    edges = torch.arange(cells + 1, dtype=torch.float64)
    edges[0], edges[-1] = min(0.0, start * cells), max(float(cells), end * cells)
    overlaps = torch.minimum(bounds[1:, None], edges[1:]) - torch.maximum(bounds[:-1, None], edges[:-1])
    return overlaps.clamp(min=0) / (bounds[1:] - bounds[:-1])[:, None]


def find_device_and_dtype(sample: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return the device and the number format in which a denoiser computes with these latents."""
    kind = sample.device.type
    autocast = torch.is_autocast_enabled(kind)
    return sample.device, torch.get_autocast_dtype(kind) if autocast else sample.dtype
