"""What references contribute to the layers, a row for each prompt, and its expansion to a batch's rows."""

import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.diffusers_internals import Branches
from imprompt.attention.pipeline_state import Moment
from imprompt.attention.terms import ImageTerm, JointTerm, KeyValue, LoraTerm, Term


class LayerInputs(NamedTuple):
    """The image prompts and the LoRA of one layer, with a row for each of the batch."""

    terms: tuple[Term, ...] = ()
    lora: LoraTerm | None = None


class TimedRows:
    """Image prompts with a row for each sample, whose terms belong to the time steps of each call.

    It stands in the place of a `BatchPlan`, for training.

    Args:
        compute: returns the inputs of each layer at time steps " batch"
    """

    other_pipeline = None

    def __init__(self, compute: Callable[[Tensor], Mapping[int, LayerInputs]]) -> None:
        self.compute = compute

    def expand(self, denoising: DenoiserCall) -> Mapping[int, LayerInputs]:
        """Return the inputs of each layer for the batch that the denoiser is about to process."""
        times = torch.as_tensor(denoising.timestep, device=denoising.sample.device)
        return self.compute(times.expand(len(denoising.sample)))


class BatchRows(NamedTuple):
    """The rows of a batch: branch by branch, prompt by prompt, then each prompt's pictures (and frames)."""

    branches: Branches
    samples: int
    """The number of rows in each branch."""

    def expand(
        self, positive: Float[Tensor, "prompts ..."], negative: Float[Tensor, "prompts ..."] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Repeat each prompt's value for its rows; the negative branch has the positive one's by default."""
        halves = {"positive": positive, "negative": positive if negative is None else negative}
        each = self.samples // positive.shape[0]
        return torch.cat([halves[branch].repeat_interleave(each, 0) for branch in self.branches])


class Conditioning(abc.ABC):
    """What one group of references contributes, for the layers in which it acts.

    Args:
        areas: a mask "height width" for each prompt; None: everywhere
        weights: returns the factor on λ at a step, for each prompt; None: always 1

    Attributes:
        needs_guidance: whether some layers push away from the picture, which only guidance can do
        lacks_negative: whether the negative branch would need what no encoder has made
        has_negative: whether there is any image prompt on the negative branch
        depends_on_time: whether keys and values belong to the time step
    """

    needs_guidance = False
    lacks_negative = False
    has_negative = True
    depends_on_time = False

    def __init__(
        self,
        areas: Sequence[Tensor | None],
        weights: Callable[[Moment], list[float]] | None = None,
    ) -> None:
        self.areas, self.weights = areas, weights

    @property
    def prompts(self) -> int:
        """The number of rows; 1 stands for every prompt alike."""
        return len(self.areas)

    @property
    @abc.abstractmethod
    def layers(self) -> Collection[int]:
        """The layers in which the references act."""

    @abc.abstractmethod
    def expand(
        self, rows: BatchRows, timestep: Tensor | float | int, device: torch.device, dtype: torch.dtype
    ) -> Mapping[int, Term]:
        """Return the term of each layer, without a mask, with a row for each of the batch."""


class FixedConditioning(Conditioning):
    """K' and λV' of one group of references, which are the same at every step.

    Args:
        positive: layer → K' and λV' for the positive branch of guidance, a row for each prompt
        negative: the same for the negative branch
        areas: see `Conditioning`
        weights: see `Conditioning`
        needs_guidance: see `Conditioning`
        lacks_negative: see `Conditioning`
        has_negative: see `Conditioning`
    """

    def __init__(
        self,
        positive: Mapping[int, KeyValue],
        negative: Mapping[int, KeyValue],
        areas: Sequence[Tensor | None],
        weights: Callable[[Moment], list[float]] | None = None,
        needs_guidance: bool = False,
        lacks_negative: bool = False,
        has_negative: bool = True,
    ) -> None:
        super().__init__(areas, weights)
        self.positive, self.negative = positive, negative
        self.needs_guidance, self.lacks_negative = needs_guidance, lacks_negative
        self.has_negative = has_negative

    @property
    def layers(self) -> Collection[int]:
        """The layers in which the references act."""
        return self.positive.keys()

    def expand(
        self, rows: BatchRows, timestep: Tensor | float | int, device: torch.device, dtype: torch.dtype
    ) -> Mapping[int, ImageTerm]:
        """Return the term of each layer, without a mask, with a row for each of the batch."""
        terms: dict[int, ImageTerm] = {}
        for layer in self.layers:
            halves = zip(self.positive[layer], self.negative[layer], strict=True)
            terms[layer] = ImageTerm(*(rows.expand(*half).to(device, dtype) for half in halves))
        return terms


class TimedConditioning(Conditioning):
    """Inputs of a projection that depends on the time step, and λ of each layer.

    Args:
        positive: the projection's inputs for the positive branch of guidance, each "prompts images ..."
        negative: the same for the negative branch
        scales: layer → λ of each prompt
        compute: computes the term of each of these layers, λ being 1: (inputs with a row for each of the
            batch, timesteps " batch", layers)
        areas: see `Conditioning`
        weights: see `Conditioning`
    """

    depends_on_time = True

    def __init__(
        self,
        positive: Mapping[Any, Tensor],
        negative: Mapping[Any, Tensor],
        scales: Mapping[int, Sequence[float]],
        compute: Callable[[Mapping[Any, Tensor], Tensor, Collection[int]], Mapping[int, JointTerm]],
        areas: Sequence[Tensor | None],
        weights: Callable[[Moment], list[float]] | None = None,
    ) -> None:
        super().__init__(areas, weights)
        self.positive, self.negative, self.scales, self.compute = positive, negative, scales, compute

    @property
    def layers(self) -> Collection[int]:
        """The layers in which the references act."""
        return self.scales.keys()

    @torch.no_grad()
    def expand(
        self, rows: BatchRows, timestep: Tensor | float | int, device: torch.device, dtype: torch.dtype
    ) -> Mapping[int, JointTerm]:
        """Return the term of each layer at this time step, with a row for each of the batch."""
        inputs = {name: rows.expand(one, self.negative[name]) for name, one in self.positive.items()}
        count = rows.samples * len(rows.branches)
        weights = next(iter(inputs.values()))
        times = torch.as_tensor(timestep, device=weights.device).expand(count)
        terms: dict[int, JointTerm] = {}
        for layer, term in self.compute(inputs, times, self.layers).items():
            scale = rows.expand(weights.new_tensor(self.scales[layer]))[:, None, None, None]
            terms[layer] = JointTerm(*(x.to(device, dtype) for x in term._replace(weight=scale)))
        return terms
