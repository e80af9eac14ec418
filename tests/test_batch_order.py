"""Which samples a step sees."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imprompt.training.batch_order import BatchOrder, mix_bits, permute

COUNTS = st.integers(1, 300)
SEEDS = st.integers(0, 2**40)


@given(count=COUNTS, seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_epoch_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(count), count, (seed, epoch)).tolist()) == list(range(count))


@given(count=COUNTS, seed=SEEDS, places=st.lists(st.integers(0, 299), min_size=1, max_size=20))
def test_a_place_goes_where_it_goes_alone_or_in_company(count: int, seed: int, places: list[int]) -> None:
    inside = np.array([place % count for place in places])
    together = permute(inside, count, (seed, 0)).tolist()
    assert together == [int(permute(inside[i : i + 1], count, (seed, 0))[0]) for i in range(len(inside))]


def test_a_billion_rows_cost_no_memory() -> None:
    assert len(set(permute(np.arange(1000), 10**9, (0, 0)).tolist())) == 1000


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(permute(np.arange(50), 50, (seed, epoch))) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_every_order_of_three_is_as_likely() -> None:
    counted = dict.fromkeys(range(6), 0)
    orders = sorted({tuple(permute(np.arange(3), 3, (seed,))) for seed in range(100)})
    for seed in range(1200):
        counted[orders.index(tuple(permute(np.arange(3), 3, (seed,))))] += 1
    assert all(130 < count < 270 for count in counted.values())  # 200 ± 13 is one deviation


@given(count=st.integers(1, 12), size=st.integers(1, 20), seed=SEEDS)
def test_one_bucket_is_seen_epoch_after_epoch(count: int, size: int, seed: int) -> None:
    order = BatchOrder({"all": np.arange(100, 100 + count)}, size, seed)
    per_round = -(-count // size)
    seen = [row for step in range(per_round * count) for row in order.batch(step)]
    # `count` rounds are a whole number of epochs: every row as often as any other.
    assert {seen.count(row) for row in range(100, 100 + count)} == {len(seen) // count}


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5), batch=st.integers(1, 9), seed=SEEDS)
def test_a_batch_is_of_one_bucket_and_every_bucket_has_its_turn(
    sizes: list[int], batch: int, seed: int
) -> None:
    buckets = {i: range(1000 * i, 1000 * i + size) for i, size in enumerate(sizes)}
    if not sum(sizes):
        return
    order = BatchOrder(buckets, batch, seed)
    turn = [order.batch(step) for step in range(sum(-(-size // batch) for size in sizes))]
    assert all(len(rows) == batch and len({row // 1000 for row in rows}) == 1 for rows in turn)
    assert {row for rows in turn for row in rows} == {row for rows in buckets.values() for row in rows}


@given(seed=SEEDS, step=st.integers(0, 10**9))
def test_a_batch_is_a_pure_function_of_seed_and_step(seed: int, step: int) -> None:
    one, other = (BatchOrder({"a": range(17), "b": range(17, 22)}, 4, seed) for _ in range(2))
    other.batch(step + 1)
    assert one.batch(step) == other.batch(step)


@given(numbers=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_mixing_depends_on_every_number(numbers: list[int]) -> None:
    made = mix_bits(*numbers)
    assert 0 <= made < 2**64
    for place in range(len(numbers)):
        other = [number ^ (place == i) for i, number in enumerate(numbers)]
        assert mix_bits(*other) != made
