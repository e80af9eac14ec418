"""One call of a U-Net as inputs of its graph, or the reason why OpenVINO cannot compute it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from imprompt.attention.layers import count_halvings, find_cross_attention_layers
from imprompt.attention.processor import DecoupledAttention, project_text
from imprompt.attention.sharing import list_attention_layers
from imprompt.attention.terms import LayerState, Term
from imprompt.backends.graph import CallSize, LayerTensors, list_residual_channels

Arrays = Mapping[str, np.ndarray]
"""The inputs of a graph by name, in float32."""

_GRAPH_ARGUMENTS = {
    *("sample", "timestep", "encoder_hidden_states", "timestep_cond", "added_cond_kwargs", "return_dict"),
    *("down_block_additional_residuals", "mid_block_additional_residual"),
}
_HIDDEN = -1e30
"""Added to the logit of a token that is padding; its weight becomes 0 without NaN."""

_REMEMBERED = 4
"""How many prompts' keys and values are kept."""


class GraphCall(NamedTuple):
    """One call of a U-Net.

    Args:
        size: what its graph is compiled for
        changing: the inputs that change at every step
        lasting: the inputs that stay, the same arrays for the same prompts and references
    """

    size: CallSize
    changing: Arrays
    lasting: Arrays


class CallReader:
    """Reads the calls of one U-Net.

    Args:
        unet: the U-Net
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._config: Any = unet.config
        self._layers = find_cross_attention_layers(unet)
        self._attention = list_attention_layers(unet)
        self._residuals = list_residual_channels(unet)
        blocks: Any = unet.down_blocks
        self._levels = {layer: count_halvings(name, len(blocks)) for layer, (name, _) in self._layers.items()}
        self._divisor = 2 ** (len(blocks) - 1)
        self._memory: dict[tuple[object, ...], tuple[object, Arrays]] = {}

    def find_obstacle(self, arguments: Mapping[str, Any]) -> str | None:
        """Return why a graph cannot compute a call, a clause; None if it can."""
        sample: Tensor = arguments["sample"]
        used = [name for name, value in arguments.items() if value is not None and value != {}]
        if other := [name for name in used if name not in _GRAPH_ARGUMENTS]:
            return f"the call has {other[0]}"
        if sample.device.type != "cpu":
            return f"the U-Net is on {sample.device}, and OpenVINO computes on the CPU"
        if sample.ndim != 4 or any(side % self._divisor for side in sample.shape[2:]):
            return f"the sides of the latents are no multiples of {self._divisor}"
        states = [_read_state(attn) for attn in self._attention]
        if any(state.loras for state in states):
            return "the adapter has a LoRA"
        if torch.is_grad_enabled() and _needs_gradient(sample, states):
            return "gradients are computed"
        fits = (self._fits(layer, attn, sample) for layer, (_, attn) in self._layers.items())
        return None if all(fits) else "the image prompts are for another batch"

    def read(self, arguments: Mapping[str, Any]) -> GraphCall:
        """Return a call without obstacles as inputs of the graph, and note that its layers have run."""
        sample, context = arguments["sample"], arguments["encoder_hidden_states"]
        batch, _, height, width = sample.shape
        timestep = torch.as_tensor(arguments["timestep"]).float().reshape(-1).expand(batch)
        changing = {"sample": sample, "timestep": timestep, **self._read_residuals(arguments)}
        if self._config.time_cond_proj_dim is not None:
            guidance = arguments.get("timestep_cond")
            zeros = sample.new_zeros(batch, self._config.time_cond_proj_dim)
            changing["timestep_cond"] = zeros if guidance is None else guidance
        if self._config.addition_embed_type == "text_time":
            added = arguments["added_cond_kwargs"]
            changing["text_embeds"] = added["text_embeds"]
            changing["time_ids"] = added["time_ids"].reshape(batch, -1)
        size = (batch, height, width, context.shape[1])
        return GraphCall(size, _to_arrays(changing), self._read_layers(context))

    def _fits(self, layer: int, attn: Attention, sample: Tensor) -> bool:
        """Whether a layer's image prompts are for these rows and positions; if not, torch says why."""
        state = _read_state(attn)
        if state.is_split:
            return False
        sides = (-(-side // 2 ** self._levels[layer]) for side in sample.shape[2:])
        places = (1, int(np.prod([*sides])))
        return all(
            term.key.shape[0] == sample.shape[0] and (term.weight is None or term.weight.shape[2] in places)
            for term in state.terms
        )

    def _read_residuals(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        down, mid = (arguments.get(f"{name}_block_additional_residual{s}") for name, s in _RESIDUALS)
        blank = [torch.zeros(1, channels, 1, 1) for channels in self._residuals]
        residuals = [*(blank[:-1] if down is None else down), blank[-1] if mid is None else mid]
        return {f"residual_{place}": residual for place, residual in enumerate(residuals)}

    def _read_layers(self, context: Tensor) -> Arrays:
        states = {layer: _run_state(attn) for layer, (_, attn) in self._layers.items()}
        terms = (term for state in states.values() for term in state.terms)
        sources = [context, *(x for term in terms for x in term[:3] if x is not None)]
        return self._remember(sources, lambda: self._make_layers(context, states))

    def _make_layers(self, context: Tensor, states: Mapping[int, LayerState]) -> Arrays:
        tensors: dict[str, Tensor] = {}
        for layer, (_, attn) in self._layers.items():
            text = project_text(attn, context)
            image = stack_terms(states[layer].terms, text.key)
            inputs = LayerTensors(text.key, text.value, *image)
            tensors |= {f"{field}.{layer}": value for field, value in inputs._asdict().items()}
        return _to_arrays(tensors)

    def _remember(self, sources: Sequence[Tensor], make: Callable[[], Arrays]) -> Arrays:
        """Return what was made of these very tensors, unchanged since; or make it, and forget the oldest."""
        if any(source.is_inference() for source in sources):
            return make()
        key = tuple(part for source in sources for part in (id(source), source._version))
        entry = self._memory.pop(key, None) or (tuple(sources), make())
        self._memory[key] = entry
        while len(self._memory) > _REMEMBERED:
            del self._memory[next(iter(self._memory))]
        return entry[1]


_RESIDUALS = (("down", "s"), ("mid", ""))


def stack_terms(terms: Sequence[Term], text_key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return K', λV', bias and m of `LayerTensors`: each term is padded to the longest.

    Without terms there is one with K' = λV' = m = 0, which adds zero.

    Args:
        terms: the terms of the sum
        text_key: K, "batch heads text_tokens head_dim", for the sizes
    """
    batch, heads, _, width = text_key.shape
    if not terms:
        zeros = text_key.new_zeros(batch, 1, heads, 1, width)
        return zeros, zeros, text_key.new_zeros(1, 1, 1, 1, 1), text_key.new_zeros(batch, 1, 1, 1, 1)
    tokens = max(term.key.shape[2] for term in terms)
    places = max(1 if term.weight is None else term.weight.shape[2] for term in terms)
    key, value = (
        torch.stack([F.pad(x, (0, 0, 0, tokens - x.shape[2])) for x in column], 1)
        for column in zip(*((term.key, term.value) for term in terms), strict=True)
    )
    bias = torch.zeros(len(terms), tokens)
    for row, term in zip(bias, terms, strict=True):
        row[term.key.shape[2] :] = _HIDDEN
    weights = [key.new_ones(1) if term.weight is None else term.weight for term in terms]
    weight = torch.stack([one.expand(batch, 1, places, 1) for one in weights], 1)
    return key, value, bias[None, :, None, None, :], weight


def _read_state(attn: Attention) -> LayerState:
    processor: Any = attn.processor
    return processor.state if isinstance(processor, DecoupledAttention) else LayerState()


def _run_state(attn: Attention) -> LayerState:
    processor: Any = attn.processor
    return processor.find_running_state() if isinstance(processor, DecoupledAttention) else LayerState()


def _needs_gradient(sample: Tensor, states: Sequence[LayerState]) -> bool:
    values = (x for state in states for term in state.terms for x in term[:2])
    return sample.requires_grad or any(x is not None and x.requires_grad for x in values)


def _to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: value.detach().float().contiguous().numpy() for name, value in tensors.items()}
