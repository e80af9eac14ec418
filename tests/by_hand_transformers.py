"""The equations of the adapters for diffusion transformers by hand: what attached adapters must amount to.

Nothing here is imprompt's but the adapter's weights. A processor computes the base's attention and the image
prompts by matrix products and softmax alone. For which branch a call is, is not found out but said.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn import functional as F

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.diffusers_internals import Branches


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q Kᵀ / √d) V for every head, all "batch length heads d"; heads are joined."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def rms(x: Tensor, epsilon: float, weight: Tensor | None = None) -> Tensor:
    made = x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
    return made if weight is None else made * weight


@dataclass
class HandTerm:
    """One image prompt.

    Args:
        adapter: whose weights
        positive: what the encoder returned for every prompt, "prompts images ..."
        negative: the same for the negative branch; None: it has no image prompt
        scale: λ
        at: what λ is multiplied by at a step, counted from 0
        on: what λ is multiplied by in a layer, by its module's name
        where: a mask "height width" of the latents' patches; None: everywhere
    """

    adapter: ImagePromptAdapter
    positive: Tensor
    negative: Tensor | None = None
    scale: float = 1.0
    at: Callable[[int], float] = lambda step: 1.0
    on: Callable[[str], float] = lambda name: 1.0
    where: Tensor | None = None

    def rows(self, branches: Branches, each: int) -> tuple[Tensor, Tensor]:
        """The encoder's outputs of each row of a batch, and 0 for rows without an image prompt."""
        nothing = torch.zeros_like(self.positive)
        halves = {"positive": self.positive, "negative": nothing if self.negative is None else self.negative}
        acts = {"positive": 1.0, "negative": 0.0 if self.negative is None else 1.0}
        inputs = torch.cat([halves[branch].repeat_interleave(each, 0) for branch in branches])
        count = len(self.positive) * each
        return inputs, torch.cat([torch.full((count, 1, 1), acts[branch]) for branch in branches])

    def spread(self, pictures: int, text: int) -> Tensor | float:
        """The mask over the queries: text rows get its mean, each picture in the sequence the whole mask."""
        if self.where is None:
            return 1.0
        places = self.where.flatten()
        return torch.cat([places.mean().expand(text), *[places] * pictures])[:, None]


@dataclass
class ByHand:
    """A transformer whose attention is computed by hand.

    Args:
        transformer: the transformer
        terms: all that acts
        layout: the branches of each call of a step
        each: rows of each prompt in each branch
        calls: (step, branches) of every call, where a step has not always the same ones
        deviation: what a port of InstantX' adapter does otherwise, see test_transformer_faults.py
    """

    transformer: Any
    terms: Sequence[HandTerm]
    layout: Sequence[Branches] = (("positive",),)
    each: int = 1
    calls: Sequence[tuple[int, Branches]] = ()
    deviation: str = ""
    count: int = field(default=-1, init=False)
    timestep: Tensor = field(default_factory=lambda: torch.zeros(1), init=False)
    text: int = field(default=0, init=False)

    @contextmanager
    def install(self) -> Iterator[None]:
        """Let it act."""
        blocks = [*self.transformer.transformer_blocks]
        blocks += [*getattr(self.transformer, "single_transformer_blocks", ())]
        before = [block.attn.processor for block in blocks]
        hook = self.transformer.register_forward_pre_hook(self._next_call, with_kwargs=True)
        for number, block in enumerate(blocks):
            kind = HandFlux if hasattr(self.transformer, "single_transformer_blocks") else HandJoint
            block.attn.processor = kind(number, self)
        try:
            yield
        finally:
            hook.remove()
            for block, processor in zip(blocks, before, strict=True):
                block.attn.processor = processor

    def _next_call(self, module: object, args: object, kwargs: dict[str, Any]) -> None:
        self.count += 1
        self.timestep, self.text = kwargs["timestep"], kwargs["encoder_hidden_states"].shape[1]

    @property
    def now(self) -> tuple[int, Branches]:
        if self.calls:
            return self.calls[self.count]
        return self.count // len(self.layout), self.layout[self.count % len(self.layout)]

    def name(self, number: int) -> str:
        doubles = len(self.transformer.transformer_blocks)
        if number < doubles:
            return f"transformer_blocks.{number}.attn"
        return f"single_transformer_blocks.{number - doubles}.attn"

    def strength(self, term: HandTerm, number: int) -> float:
        return term.scale * term.at(self.now[0]) * term.on(self.name(number))


class HandFlux:
    """The attention of a block of FLUX.1 with image prompts."""

    _attention_backend = _parallel_config = None

    def __init__(self, number: int, hand: ByHand) -> None:
        self.number, self.hand = number, hand

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        own = attn.norm_q(heads(attn.to_q(hidden_states)))
        query, key, value = own, attn.norm_k(heads(attn.to_k(hidden_states))), heads(attn.to_v(hidden_states))
        words = 0
        if encoder_hidden_states is not None:
            words = encoder_hidden_states.shape[1]
            query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states))), query], 1)
            key = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states))), key], 1)
            value = torch.cat([heads(attn.add_v_proj(encoder_hidden_states)), value], 1)
        rotate: Any = apply_rotary_emb
        query, key = (rotate(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        out = attend(query, key, value)
        if self.hand.deviation == "the query after rotation" and not words:
            own = query
        gated, ungated = self._image(own, heads, 0 if words else self.hand.text)
        if encoder_hidden_states is None:
            return out + gated
        if self.hand.deviation == "added after W_out":
            gated, ungated = torch.zeros_like(gated), gated
        text, picture = out[:, :words], out[:, words:] + gated
        return attn.to_out[0](picture), attn.to_add_out(text), ungated

    def _image(self, own: Tensor, heads: Any, text: int) -> tuple[Tensor, Tensor]:
        """The terms of InstantX' kind, and those of XLabs' kind."""
        gated, ungated = torch.zeros_like(own.flatten(2)), torch.zeros_like(own.flatten(2))
        for term in self.hand.terms:
            if str(self.number) not in term.adapter.layers:
                continue
            inputs, acts = term.rows(self.hand.now[1], self.hand.each)
            tokens = term.adapter.projection(inputs.flatten(0, 1))
            tokens = tokens.reshape(len(inputs), -1, tokens.shape[-1])
            layer: Any = term.adapter.layers[str(self.number)]
            key, value = heads(tokens @ layer.to_key.weight.T), heads(tokens @ layer.to_value.weight.T)
            weight = self.hand.strength(term, self.number) * acts
            if term.where is not None:
                pictures = (own.shape[1] - text) // term.where.numel()
                weight = weight * term.spread(pictures, text)
            if term.adapter.injection == "flux-xlabs":
                key, value = key + heads(layer.to_key.bias), value + heads(layer.to_value.bias)
                ungated = ungated + weight * attend(own, key, value)
            else:
                value = rms(value, 1e-5) if self.hand.deviation == "V' normalized" else value
                gated = gated + weight * attend(own, rms(key, 1e-5), value)
        return gated, ungated


class HandJoint:
    """The attention of a block of Stable Diffusion 3.5 with image prompts."""

    def __init__(self, number: int, hand: ByHand) -> None:
        self.number, self.hand = number, hand

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object
    ) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        query, key, value = (heads(one(hidden_states)) for one in (attn.to_q, attn.to_k, attn.to_v))
        adds = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        q, k, v = (heads(one(encoder_hidden_states)) for one in adds)
        out = attend(
            torch.cat([attn.norm_q(query), attn.norm_added_q(q)], 1),
            torch.cat([attn.norm_k(key), attn.norm_added_k(k)], 1),
            torch.cat([value, v], 1),
        )
        length = hidden_states.shape[1]
        picture, text = out[:, :length], out[:, length:]
        for term in self.hand.terms:
            picture = picture + self._image(term, heads, query, key, value)
        text = text if attn.context_pre_only else attn.to_add_out(text)
        return attn.to_out[0](picture), text

    def _image(self, term: HandTerm, heads: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        inputs, acts = term.rows(self.hand.now[1], self.hand.each)
        images = inputs.shape[1]
        times = self.hand.timestep.expand(len(inputs)).repeat_interleave(images)
        tokens, time = term.adapter.projection(inputs.flatten(0, 1), times.float())
        tokens = tokens.reshape(len(inputs), -1, tokens.shape[-1])
        layer: Any = term.adapter.layers[str(self.number)]
        shift, scale = layer.norm_ip.linear(F.silu(time[::images])).chunk(2, -1)
        centered = tokens - tokens.mean(-1, keepdim=True)
        c = centered / (tokens.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        c = c * (1 + scale[:, None]) + shift[:, None]
        image_key = rms(heads(c @ layer.to_key.weight.T), 1e-6, layer.norm_ip_k.weight)
        keys = torch.cat([rms(key, 1e-6, layer.norm_k.weight), image_key], 1)
        values = torch.cat([value, heads(c @ layer.to_value.weight.T)], 1)
        weight = self.hand.strength(term, self.number) * acts * term.spread(1, 0)
        return weight * attend(rms(query, 1e-6, layer.norm_q.weight), keys, values)
