"""Attention for some queries at a time, for processors on which PyTorch's fused attention is slow.

PyTorch's fused attention in bfloat16 on a CPU has a fast kernel for AMX only (pytorch PR 138783); without AMX
it is as slow as in float32. Products of some queries with all keys run at the speed of any other product, and
their logits stay in the processor's cache.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 128
"""Number of queries whose logits are computed at a time."""


def attend_in_chunks(
    query: Float[Tensor, "batch heads query_len head_dim"],
    key: Float[Tensor, "batch heads key_len head_dim"],
    value: Float[Tensor, "batch heads key_len head_dim"],
) -> Float[Tensor, "batch heads query_len head_dim"]:
    """Attn(Q, K, V) = softmax(Q Kᵀ / √head_dim) V, for CHUNK queries after CHUNK queries."""
    rows, values = (query * query.shape[-1] ** -0.5).flatten(0, 1), value.flatten(0, 1)
    keys = key.flatten(0, 1).transpose(-1, -2)
    chunks = [torch.bmm(torch.bmm(chunk, keys).softmax(-1), values) for chunk in rows.split(CHUNK, 1)]
    return torch.cat(chunks, 1).unflatten(0, query.shape[:2])
