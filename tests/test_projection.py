"""Image projections: shapes, determinism, the official names."""

import pytest
import torch
from torch.nn import functional as F

from imprompt.projection import LinearProjection


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_a_linear_projection_is_linear_then_layer_norm(tokens: int) -> None:
    projection = LinearProjection(7, 5, tokens)
    embedding = torch.randn(3, 7)
    rows = embedding @ projection.proj.weight.T + projection.proj.bias
    expected = F.layer_norm(rows.view(3, tokens, 5), (5,))
    torch.testing.assert_close(projection(embedding), expected)


def test_its_state_dict_has_the_official_names() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in LinearProjection(7, 5, 3).state_dict().items()}
    assert shapes == {"proj.weight": (15, 7), "proj.bias": (15,), "norm.weight": (5,), "norm.bias": (5,)}


def test_a_zero_embedding_becomes_tokens_that_are_the_same_for_every_picture() -> None:
    tokens = LinearProjection(7, 5)(torch.zeros(2, 7))
    assert torch.equal(tokens[0], tokens[1])
    assert tokens.abs().max() > 0


def test_a_generator_makes_the_same_weights_again() -> None:
    first, second = (LinearProjection(7, 5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.proj.weight, second.proj.weight)
    assert torch.equal(first.proj.bias, second.proj.bias)
