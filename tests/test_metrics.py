"""Metrics: laws, then independent float64 computations (numpy, scipy)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from scipy.stats import norm, rankdata
from torch import Tensor

from imprompt.evaluation.metrics import (
    bootstrap_interval,
    chance_within,
    cosine_similarity,
    found_within,
    mean_distance,
    normalised,
    retrieval_ranks,
    shuffled_gap,
)

seeds = st.integers(0, 2**31)


def features(count: int, *, dim: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_similarity_does_not_depend_on_length(seed: int) -> None:
    left, right = features(3, seed=seed), features(5, seed=seed + 1)
    lengths = torch.rand(3, 1, generator=torch.Generator().manual_seed(seed)) + 0.1
    assert torch.allclose(cosine_similarity(left * lengths, right), cosine_similarity(left, right), atol=1e-6)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_ranks_do_not_depend_on_the_order_of_the_gallery(seed: int) -> None:
    similarity = features(4, dim=9, seed=seed)
    right = torch.tensor([0, 3, 3, 8])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    moved = torch.argsort(order)[right]
    assert torch.equal(retrieval_ranks(similarity[:, order], moved), retrieval_ranks(similarity, right))


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_thing_is_found_among_others_by_itself(seed: int) -> None:
    gallery = features(11, seed=seed)
    ranks = retrieval_ranks(cosine_similarity(gallery, gallery), torch.arange(11))
    assert found_within(ranks, 1).all()


def test_a_tie_counts_against() -> None:
    assert retrieval_ranks(torch.ones(1, 6), torch.tensor([2])).tolist() == [5]


def test_random_features_are_found_by_chance() -> None:
    ranks = retrieval_ranks(features(4000, dim=20), torch.zeros(4000, dtype=torch.long))
    for k in (1, 5):
        chance = chance_within(20, k)
        deviation = (chance * (1 - chance) / 4000) ** 0.5
        assert abs(float(found_within(ranks, k).double().mean()) - chance) < 4 * deviation


def test_chance_is_never_more_than_certainty() -> None:
    assert chance_within(3, 5) == 1.0


def test_the_gap_of_a_reference_with_itself_is_none() -> None:
    similarity, right = features(4, dim=6), torch.tensor([0, 1, 2, 3])
    assert shuffled_gap(similarity, right, right).abs().max() == 0


def test_the_gap_changes_sign_when_the_references_change_places() -> None:
    similarity, right, shuffled = features(4, dim=6), torch.tensor([0, 1, 2, 3]), torch.tensor([5, 4, 3, 2])
    assert torch.equal(shuffled_gap(similarity, right, shuffled), -shuffled_gap(similarity, shuffled, right))


@given(seeds, st.floats(-5, 5))
@settings(max_examples=10, deadline=None)
def test_an_interval_moves_with_its_values(seed: int, shift: float) -> None:
    values = features(30, dim=1, seed=seed)[:, 0].double().numpy()
    still, moved = bootstrap_interval(values), bootstrap_interval(values + shift)
    assert still.low <= still.mean <= still.high
    assert np.allclose(np.subtract(moved, still), shift)


def test_equal_values_leave_no_doubt() -> None:
    assert bootstrap_interval(np.full(9, 0.25)) == (0.25, 0.25, 0.25)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = features(30, dim=1)[:, 0].double().numpy()
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_a_score_between_floor_and_ceiling_is_a_share() -> None:
    assert normalised(0.4, floor=0.2, ceiling=0.6) == pytest.approx(0.5)
    assert np.isnan(normalised(0.4, floor=0.2, ceiling=0.2))


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan])])
def test_an_interval_of_nothing_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite values"):
        bootstrap_interval(values)


def test_one_picture_has_no_diversity() -> None:
    with pytest.raises(ValueError, match="two pictures"):
        mean_distance(features(1))


# Parity


def test_similarity_and_distance_against_scipy() -> None:
    left, right = features(5).double(), features(8, seed=1).double()
    expected = 1 - cdist(left.numpy(), right.numpy(), "cosine")
    assert np.abs(cosine_similarity(left, right).numpy() - expected).max() < 1e-12
    assert mean_distance(left) == pytest.approx(pdist(left.numpy(), "cosine").mean(), abs=1e-12)


def test_ranks_against_scipy() -> None:
    similarity = features(40, dim=12).double()
    right = torch.randint(12, (40,), generator=torch.Generator().manual_seed(0))
    expected = rankdata(-similarity.numpy(), axis=1, method="max")[np.arange(40), right.numpy()] - 1
    assert retrieval_ranks(similarity, right).tolist() == expected.tolist()


def test_gap_against_numpy() -> None:
    pictures, gallery = features(6), features(6, seed=1)
    right, shuffled = torch.arange(6), (torch.arange(6) + 2) % 6
    gap = shuffled_gap(cosine_similarity(pictures, gallery), right, shuffled)
    a, b = (x.numpy().astype(np.float64) for x in (pictures, gallery))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    expected = [unit[0][i] @ unit[1][i] - unit[0][i] @ unit[1][(i + 2) % 6] for i in range(6)]
    assert np.abs(gap.numpy() - expected).max() < 1e-12


def test_interval_against_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(0.3, 2.0, size=400)
    error = norm.ppf(0.975) * values.std(ddof=1) / 20
    low, high = bootstrap_interval(values)[1:]
    assert low == pytest.approx(values.mean() - error, abs=0.05 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.05 * error)
