"""Metrics: laws; ceiling, floor and below; second computations (torchmetrics, scipy, numpy in float64)."""

import importlib.util
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm, rankdata
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import cosine_similarity as torchmetrics_cosine
from torchmetrics.functional import pairwise_cosine_similarity
from torchmetrics.functional.retrieval import retrieval_hit_rate

from imprompt.errors import MissingExtra
from imprompt.evaluation.metrics import (
    COPY_RATIO,
    area_difference,
    bootstrap_difference,
    bootstrap_interval,
    chance_within,
    clip_percent,
    clip_score,
    clip_t,
    cmmd,
    copy_ratios,
    cosine_similarity,
    distributions,
    dominated_area,
    fid,
    group_means,
    intervals,
    is_copy,
    is_retrieved,
    kid,
    mean_distance,
    normalize_score,
    paired_cosine,
    retrieval_ranks,
    scale_curve,
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
def test_a_pairs_similarity_is_symmetric_and_bounded_and_does_not_depend_on_length(seed: int) -> None:
    left, right = features(6, seed=seed), features(6, seed=seed + 1)
    similarity = paired_cosine(left, right)
    assert torch.equal(similarity, paired_cosine(right, left))
    assert similarity.abs().max() <= 1 + 1e-12
    assert torch.allclose(paired_cosine(3 * left, 0.01 * right), similarity, atol=1e-6)
    assert torch.allclose(cosine_similarity(left, right).diagonal(), similarity)


def test_the_three_scales_of_clip_t_are_one_cosine() -> None:
    cosines = clip_t(features(50), features(50, seed=1))
    assert torch.allclose(clip_percent(cosines), 100 * cosines)
    assert torch.allclose(clip_score(cosines), torch.relu(cosines) * 2.5)
    assert cosines.min() < 0  # the one scale that cuts off has been asked


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
    assert is_retrieved(ranks, 1).all()


def test_a_tie_counts_against() -> None:
    assert retrieval_ranks(torch.ones(1, 6), torch.tensor([2])).tolist() == [5]


def test_random_features_are_found_by_chance() -> None:
    ranks = retrieval_ranks(features(4000, dim=20), torch.zeros(4000, dtype=torch.long))
    for k in (1, 5):
        chance = chance_within(20, k)
        deviation = (chance * (1 - chance) / 4000) ** 0.5
        assert abs(float(is_retrieved(ranks, k).double().mean()) - chance) < 4 * deviation


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
    assert normalize_score(0.4, floor=0.2, ceiling=0.6) == pytest.approx(0.5)
    assert np.isnan(normalize_score(0.4, floor=0.2, ceiling=0.2))


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan])])
def test_an_interval_of_nothing_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite values"):
        bootstrap_interval(values)


def test_one_picture_has_no_diversity() -> None:
    with pytest.raises(ValueError, match="two pictures"):
        mean_distance(features(1))


# Sets of pictures

DISTANCES = [kid, fid, cmmd]


@pytest.mark.parametrize("distance", DISTANCES)
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_a_distance_between_sets_is_symmetric_and_takes_no_heed_of_order(
    distance: Callable[..., float], seed: int
) -> None:
    left, right = features(12, seed=seed), features(12, seed=seed + 1) + 0.5
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    value = distance(left, right)
    assert distance(right, left) == pytest.approx(value, abs=1e-8)
    assert distance(left[order], right) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_distance_between_sets_grows_with_their_distance(distance: Callable[..., float]) -> None:
    values = [distance(features(60), features(60, seed=1) + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)


@pytest.mark.parametrize("distance", [kid, cmmd])
def test_an_unbiased_distance_between_samples_of_one_distribution_is_zero_on_average(
    distance: Callable[..., float],
) -> None:
    values = [distance(features(20, seed=2 * n), features(20, seed=2 * n + 1)) for n in range(120)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 120**0.5
    assert min(values) < 0 < max(values)


def test_fid_is_biased_the_fewer_pictures_the_larger() -> None:
    few = np.mean([fid(features(20, seed=n), features(20, seed=n + 100)) for n in range(20)])
    many = np.mean([fid(features(200, seed=n), features(200, seed=n + 100)) for n in range(20)])
    assert few > 5 * many > 0


def test_what_the_published_code_of_cmmd_computes_is_never_below_zero_and_larger() -> None:
    for seed in range(20):
        left, right = features(15, seed=seed), features(15, seed=seed + 100)
        assert cmmd(left, right, unbiased=False) > max(0.0, cmmd(left, right))


def test_kid_of_more_pictures_than_a_subset_holds_is_a_mean_over_draws_by_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, right = features(30), features(41, seed=1) + 0.4
    whole = kid(left[:30], right[:30])
    monkeypatch.setattr(distributions, "KID_SUBSET", 12)
    state = torch.random.get_rng_state()
    assert kid(left, right, seed=3) == kid(left, right, seed=3) != kid(left, right, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert kid(left, right[:30]) == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_single_picture_is_no_set(distance: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="two or more on each side"):
        distance(features(1), features(5))


@pytest.mark.parametrize("distance", [kid, fid])
def test_without_torchmetrics_the_error_says_how_to_install_it(
    distance: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'imprompt\[eval\]'"):
        distance(features(4), features(4))


# Copies


def test_a_copy_lies_near_one_picture_and_what_is_new_near_none() -> None:
    gallery = features(40, dim=16)
    copies = gallery + 0.05 * features(40, dim=16, seed=1)
    assert is_copy(copy_ratios(copies, gallery)).all()
    assert not is_copy(copy_ratios(features(40, dim=16, seed=2), gallery)).any()
    assert copy_ratios(gallery, gallery).abs().max() == 0


def test_what_lies_between_two_pictures_is_a_copy_of_neither() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert copy_ratios(torch.tensor([[2.0, 2.0]]), gallery).tolist() == pytest.approx([1.0])


def test_a_picture_that_the_gallery_holds_twice_hides_all_but_exact_copies() -> None:
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    exact, near = copy_ratios(torch.tensor([[3.0, 0.0], [3.0, 0.1]]), gallery).tolist()
    assert exact == 0
    assert near == pytest.approx(1.0)
    assert near > COPY_RATIO


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_a_copy_ratio_is_a_share_and_does_not_depend_on_length(seed: int) -> None:
    pictures, gallery = features(5, seed=seed), features(9, seed=seed + 1)
    ratios = copy_ratios(pictures, gallery)
    assert ((ratios >= 0) & (ratios <= 1)).all()
    assert torch.allclose(copy_ratios(5 * pictures, 0.1 * gallery), ratios, atol=1e-5)


def test_a_gallery_of_one_has_no_second_nearest() -> None:
    with pytest.raises(ValueError, match="two or more"):
        copy_ratios(features(3), features(1))


# Intervals of differences, and how often an interval is right


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    samples = rng.exponential(1.0, size=(150, 40))  # skewed, as scores are
    held = [low <= 1.0 <= high for _, low, high in map(bootstrap_interval, samples)]
    assert 0.88 <= np.mean(held) <= 0.99


def test_an_interval_over_many_concepts_is_drawn_in_pieces_with_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(1).normal(size=37)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 1000)
    assert bootstrap_interval(values) == whole


def test_a_difference_changes_sign_when_the_methods_change_places() -> None:
    left, right = np.random.default_rng(0).normal(size=(2, 30, 4))
    there, back = bootstrap_difference(left, right), bootstrap_difference(right, left)
    assert np.allclose([back.mean, back.high, back.low], [-there.mean, -there.low, -there.high])
    assert bootstrap_difference(left, left) == (0, 0, 0)


def test_what_makes_a_concept_hard_cancels_in_a_difference() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, size=80)
    left, right = hard + 0.1 + rng.normal(0, 0.05, size=80), hard + rng.normal(0, 0.05, size=80)
    paired = bootstrap_difference(left, right)
    assert 0 < paired.low < 0.1 < paired.high
    assert bootstrap_interval(left).low < bootstrap_interval(right).high  # alone they cannot be told apart


def test_a_difference_of_other_concepts_is_refused() -> None:
    with pytest.raises(ValueError, match="the same concepts: 3 are not 4"):
        bootstrap_difference(np.ones(3), np.ones(4))


# Curves over the scale

shares = st.lists(st.tuples(st.floats(-0.5, 1), st.floats(-0.5, 1)), min_size=1, max_size=6)


def area_of(points: list[tuple[float, float]]) -> float:
    cp, pf = np.array(points).T
    return float(dominated_area(cp[:, None], pf[:, None])[0])


@given(shares, st.tuples(st.floats(-0.5, 1), st.floats(-0.5, 1)))
@settings(max_examples=30, deadline=None)
def test_an_area_is_a_share_that_another_scale_never_lowers(
    points: list[tuple[float, float]], another: tuple[float, float]
) -> None:
    area = area_of(points)
    assert 0 <= area <= area_of([*points, another]) + 1e-12 <= 1 + 1e-9
    assert area >= max(max(cp, 0) * max(pf, 0) for cp, pf in points) - 1e-12
    assert area_of(points[::-1]) == pytest.approx(area)


def test_the_difference_of_areas_is_that_of_the_curves_and_nothing_between_equals() -> None:
    noise = np.random.default_rng(0)
    one, other = noise.uniform(0, 1, (2, 2, 3, 20))
    difference = area_difference(one, other)
    areas = [scale_curve(np.arange(3), *both).area.mean for both in (one, other)]
    assert difference.mean == pytest.approx(areas[0] - areas[1])
    assert area_difference(one, one) == (0, 0, 0)
    assert area_difference(one, one / 2).low > 0
    with pytest.raises(ValueError, match="same λ and concepts"):
        area_difference(one, other[:, :2])


def test_a_method_that_keeps_both_has_all_of_the_area_and_one_that_gives_up_either_none() -> None:
    assert area_of([(1.0, 1.0)]) == 1
    assert area_of([(1.0, 0.0), (0.0, 1.0)]) == 0
    assert area_of([(0.5, 1.0), (1.0, 0.5)]) == pytest.approx(0.75)


def test_a_curve_says_each_scale_with_its_interval_and_the_best_compromise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    cp = np.array([0.0, 0.4, 0.6, 0.9])[:, None] + rng.normal(0, 0.1, size=(4, 50))
    pf = np.array([1.0, 0.8, 0.7, 0.1])[:, None] + rng.normal(0, 0.1, size=(4, 50))
    curve = scale_curve(np.array([0.0, 0.5, 0.75, 1.0]), pf, cp)
    assert curve.scales == [0.0, 0.5, 0.75, 1.0]
    assert curve.best == 2
    assert curve.reference[1] == bootstrap_interval(cp[1])
    assert curve.prompt[3] == bootstrap_interval(pf[3])
    for interval in (*curve.product, curve.area):
        assert interval.low <= interval.mean <= interval.high
    assert curve == scale_curve(np.array([0.0, 0.5, 0.75, 1.0]), pf, cp)


# Ceiling, floor and below


class World(NamedTuple):
    """Features as an encoder makes them: all pictures are a little alike, those of one concept much more."""

    references: Tensor
    itself: Tensor
    shuffled: Tensor
    noise: Tensor


@pytest.fixture
def world() -> World:
    count, dim = 60, 32
    concepts = features(1, dim=dim, seed=5) + features(count, dim=dim)
    again = concepts + 0.1 * features(count, dim=dim, seed=1)
    noise = features(count, dim=dim, seed=2)
    return World(concepts, again, again.roll(7, dims=0), noise)


def test_a_pairs_metric_gives_the_reference_the_ceiling_another_the_floor_and_noise_less(
    world: World,
) -> None:
    exact = paired_cosine(world.references, world.references)
    assert torch.allclose(exact, torch.ones_like(exact))
    ceiling, floor, below = (
        float(paired_cosine(pictures, world.references).mean())
        for pictures in (world.itself, world.shuffled, world.noise)
    )
    assert 1 > ceiling > 0.95
    assert 0.3 < floor < 0.7
    assert below < 0.1
    assert normalize_score(ceiling, floor=floor, ceiling=ceiling) == 1
    assert normalize_score(floor, floor=floor, ceiling=ceiling) == 0
    assert normalize_score(below, floor=floor, ceiling=ceiling) < 0


def test_retrieval_and_gap_find_the_reference_and_of_the_others_no_more_than_chance(world: World) -> None:
    right = torch.arange(60)
    found, gaps = [], []
    for pictures in (world.itself, world.shuffled, world.noise):
        similarity = cosine_similarity(pictures, world.references)
        found.append(float(is_retrieved(retrieval_ranks(similarity, right), 1).double().mean()))
        gaps.append(bootstrap_interval(shuffled_gap(similarity, right, (right + 11) % 60).numpy()))
    assert found[0] == 1
    assert found[1] == 0
    assert found[2] < 0.1
    assert gaps[0].low > 0.3
    assert all(gap.low < 0 < gap.high for gap in gaps[1:])


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_distance_between_sets_is_least_for_the_references_in_any_order_and_large_for_noise(
    distance: Callable[..., float], world: World
) -> None:
    same, shuffled, noise = (
        distance(pictures, world.references)
        for pictures in (world.references, world.references.roll(7, 0), world.noise)
    )
    assert same <= 1e-6
    assert shuffled == pytest.approx(same, abs=1e-6)  # sets have no pairs
    assert noise > 10 * abs(same) + 1e-3


def test_copies_are_the_references_themselves_and_noise_is_none(world: World) -> None:
    rates = [
        float(is_copy(copy_ratios(pictures, world.references)).double().mean())
        for pictures in (world.references, world.itself, world.shuffled, world.noise)
    ]
    assert rates == [1, 1, 1, 0]  # of whichever reference: a copy of another one is a copy too


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


def test_cosines_and_hit_rates_against_torchmetrics() -> None:
    left, right = features(12).double(), features(12, seed=1).double()
    assert torch.allclose(cosine_similarity(left, right), pairwise_cosine_similarity(left, right), atol=1e-12)
    expected = torchmetrics_cosine(left, right, reduction="none").double()
    assert torch.allclose(paired_cosine(left, right), expected, atol=1e-6)
    similarity, own = cosine_similarity(left, right), torch.arange(12)
    for k in (1, 3, 5):
        found = is_retrieved(retrieval_ranks(similarity, own), k)
        hits = [retrieval_hit_rate(row, own == n, top_k=k) for n, row in enumerate(similarity)]
        assert found.tolist() == [bool(hit) for hit in hits]


def test_clip_scores_against_numpy() -> None:
    images, texts = features(9).double().numpy(), features(9, seed=1).double().numpy()
    lengths = np.sqrt((images**2).sum(1) * (texts**2).sum(1))
    expected = (images * texts).sum(1) / lengths
    cosines = clip_t(torch.from_numpy(images), torch.from_numpy(texts))
    assert np.abs(cosines.numpy() - expected).max() < 1e-12
    assert np.abs(clip_score(cosines).numpy() - 2.5 * expected.clip(0)).max() < 1e-12


def test_kid_against_numpy() -> None:
    x, y = (features(25, seed=seed).numpy().astype(np.float64) + 0.2 * seed for seed in (0, 1))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 7 + 1) ** 3

    off = ~np.eye(25, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    assert kid(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, abs=1e-9)
    assert kid(features(25), features(25, seed=1) + 0.2) == pytest.approx(expected, abs=1e-5)


def test_fid_against_scipy() -> None:
    x, y = (features(40, seed=seed).numpy().astype(np.float64) * (1 + seed) for seed in (0, 1))
    covariances = [np.cov(side, rowvar=False) for side in (x, y)]
    root = np.real(np.asarray(sqrtm(covariances[0] @ covariances[1])))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert fid(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, abs=1e-8)
    assert fid(features(40), 2 * features(40, seed=1)) == pytest.approx(expected, abs=1e-5)


def test_cmmd_against_numpy() -> None:
    x, y = (features(count, seed=count).numpy().astype(np.float64) for count in (20, 31))
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    kernels = [np.exp(-cdist(a, b, "sqeuclidean") / 200) for a, b in ((x, x), (y, y), (x, y))]
    biased = kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean()
    within = [(kernel.sum() - len(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in kernels[:2]]
    unbiased = within[0] + within[1] - 2 * kernels[2].mean()
    pictures, others = features(20, seed=20), 3 * features(31, seed=31)
    assert cmmd(pictures, others) == pytest.approx(1000 * unbiased, abs=1e-5)
    assert cmmd(pictures, others, unbiased=False) == pytest.approx(1000 * biased, abs=1e-5)


def test_copy_ratios_against_scipy() -> None:
    pictures, gallery = features(10), features(30, seed=1)
    unit = [F.normalize(side.double(), dim=-1).numpy() for side in (pictures, gallery)]
    nearest = np.sort(cdist(unit[0], unit[1]), axis=1)[:, :2]
    assert np.abs(copy_ratios(pictures, gallery).numpy() - nearest[:, 0] / nearest[:, 1]).max() < 1e-12


def test_an_interval_against_draws_by_hand_and_scipys_bootstrap() -> None:
    values = np.random.default_rng(3).exponential(size=25)
    rows = np.random.default_rng(0).integers(25, size=(10_000, 25))
    means = np.sort([values[row].sum() / 25 for row in rows])
    found = bootstrap_interval(values)
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        place = share * 9999
        expected = np.interp(place, np.arange(10_000), means)
        assert end == pytest.approx(expected, abs=1e-12)
    scipys = scipy_bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=1
    ).confidence_interval
    width = found.high - found.low
    assert [found.low, found.high] == pytest.approx([scipys.low, scipys.high], abs=0.05 * width)


def test_a_difference_against_scipys_paired_bootstrap() -> None:
    left, right = np.random.default_rng(0).normal(size=(2, 50))
    found = bootstrap_difference(left, right)
    scipys = scipy_bootstrap(
        (left, right), lambda a, b, axis: (a - b).mean(axis=axis), paired=True, method="percentile", rng=1
    ).confidence_interval
    assert found.mean == pytest.approx((left - right).mean(), abs=1e-12)
    width = found.high - found.low
    assert [found.low, found.high] == pytest.approx([scipys.low, scipys.high], abs=0.05 * width)


def test_an_area_against_the_union_of_rectangles_cell_by_cell() -> None:
    points = np.random.default_rng(0).uniform(-0.3, 1, size=(7, 2))
    xs, ys = (np.unique(np.maximum(np.append(column, 0), 0)) for column in points.T)
    expected = sum(
        (x2 - x1) * (y2 - y1)
        for x1, x2 in itertools.pairwise(xs)
        for y1, y2 in itertools.pairwise(ys)
        if any(x >= x2 and y >= y2 for x, y in points)
    )
    assert area_of([tuple(point) for point in points]) == pytest.approx(expected, abs=1e-12)


def test_a_curves_intervals_against_means_and_draws_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)
    cp, pf = np.random.default_rng(0).uniform(0, 1, size=(2, 3, 20))
    curve = scale_curve(np.arange(3), pf, cp)
    rows = np.random.default_rng(0).integers(20, size=(intervals.RESAMPLES, 20))
    areas = [area_of([(cp[n, row].mean(), pf[n, row].mean()) for n in range(3)]) for row in rows[:200]]
    assert curve.area.mean == pytest.approx(area_of(list(zip(cp.mean(1), pf.mean(1), strict=True))))
    assert curve.area.low < np.median(areas) < curve.area.high
    products = [cp[1, row].mean() * pf[1, row].mean() for row in rows]
    expected = [cp[1].mean() * pf[1].mean(), *np.quantile(products, [0.025, 0.975])]
    assert list(curve.product[1]) == pytest.approx(expected, abs=1e-12)


def test_values_are_averaged_by_group_in_sorted_order() -> None:
    assert group_means(np.array([1.0, 2.0, 4.0]), np.array(["b", "a", "b"])).tolist() == [2.0, 2.5]
    assert group_means(np.array([True, False]), np.array([7, 7])).tolist() == [0.5]
