"""Equation 5 of the paper by hand, on each row of a batch: what attached adapters must amount to.

    output = softmax(Q Kᵀ / √d) V + Σ λ m softmax(Q K'ᵀ / √d) V'

Nothing here is imprompt's but the adapter's weights. Which row is of which prompt, and whether of the
negative or the positive branch, is not found out but said, for every step.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.diffusers_internals import Branches


@dataclass
class Term:
    """One image prompt: image embeddings of every prompt ("prompts images dim"), and how strongly they act.

    Args:
        adapter: whose weights
        embeddings: see above
        scale: λ
        at: what λ is multiplied by at a step, counted from 0
        on: what λ is multiplied by in a layer, by its module's name
        where: what λ is multiplied by at each latent pixel ("height width"), on the grid of a layer
    """

    adapter: ImagePromptAdapter
    embeddings: Tensor
    scale: float = 1.0
    at: Callable[[int], float] = lambda step: 1.0
    on: Callable[[str], float] = lambda name: 1.0
    where: Callable[[int], Tensor] | None = None

    def key_value(self, layer: int, branches: Branches, rows: int) -> tuple[Tensor, Tensor]:
        """K' and V' of a layer for a whole batch, `rows` for each prompt in each branch."""
        halves = {"positive": self.embeddings, "negative": torch.zeros_like(self.embeddings)}
        tokens = torch.cat([self._tokens(halves[branch]).repeat_interleave(rows, 0) for branch in branches])
        weights = self.adapter.key_value(layer)
        return tokens @ weights.to_key.weight.T, tokens @ weights.to_value.weight.T

    def _tokens(self, embeddings: Tensor) -> Tensor:
        tokens = self.adapter.projection(embeddings.flatten(0, 1))
        return tokens.reshape(len(embeddings), -1, tokens.shape[-1])


@dataclass
class ByHand:
    """A denoiser whose cross-attention is computed by hand.

    Args:
        unet: the denoiser
        terms: all that acts
        branches: how each step's batch is stacked; the last goes on
        rows: of each prompt in each branch: its pictures times their frames
    """

    unet: Any
    terms: Sequence[Term]
    branches: Sequence[Branches]
    rows: int = 1
    step: int = field(default=-1, init=False)

    @contextmanager
    def install(self) -> Iterator[None]:
        """Let it act."""
        before = {name: module.processor for name, module in self._layers().values()}
        count = self.unet.register_forward_pre_hook(self._next_step)
        for number, (name, module) in self._layers().items():
            module.processor = functools.partial(self._attend, number, name)
        try:
            yield
        finally:
            count.remove()
            for name, processor in before.items():
                self.unet.get_submodule(name).processor = processor

    def _layers(self) -> dict[int, tuple[str, Any]]:
        names = [name.removesuffix(".processor") for name in self.unet.attn_processors]
        spatial = enumerate(name for name in names if "motion_modules" not in name)
        return {n: (name, self.unet.get_submodule(name)) for n, name in spatial if name.endswith("attn2")}

    def _next_step(self, *_: object) -> None:
        self.step += 1

    def _attend(
        self,
        layer: int,
        name: str,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        **_: object,
    ) -> Tensor:
        query, text = attn.to_q(hidden_states), encoder_hidden_states
        out = attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
        branches = self.branches[min(self.step, len(self.branches) - 1)]
        for term in self.terms:
            key, value = term.key_value(layer, branches, self.rows)
            weight = term.scale * term.at(self.step) * term.on(name)
            image = weight * attend(query, key, value, attn.heads)
            out = out + (image if term.where is None else term.where(query.shape[1])[:, None] * image)
        return attn.to_out[1](attn.to_out[0](out))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q Kᵀ / √d) V for every head."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
