"""The engine's laws: a row does not depend on its neighbors; a served picture is that of generate."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import served
import tiny
from conftest import ToyModel
from imprompt.attention.processor import project
from imprompt.attention.sharing import RowTerms, merge_terms
from imprompt.attention.terms import ImageTerm, LoraTerm, attend
from imprompt.errors import ConfigError, ImageError
from imprompt.serving.engine.base import EngineFailure, QueueFull
from imprompt.serving.engine.denoiser_calls import choose_bucket
from imprompt.serving.engine.models import ModelStore
from imprompt.serving.engine.picture_thread import PictureCanceled
from imprompt.serving.engine.queue import FairQueue
from imprompt.serving.request_job import RequestJob
from imprompt.serving.settings import Batching, ServedModel

# diffusers' Heun scheduler with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def bench(toy: ToyModel) -> Iterator[served.Bench]:
    with served.running_engine(toy) as bench:
        yield bench


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    return [served.save_picture_of(seed, folder) for seed in range(3)]


def kinds_of_jobs(toy: ToyModel, pictures: list[str]) -> dict[str, dict[str, Any]]:
    """A job of every kind that pipelines run differently."""
    one, two, three = pictures
    mask = {"images": two, "mask": three, "scale": 0.7}
    return {
        "one reference": served.toy_job(toy, references=[one], prompt="a cat", seed=1),
        "scheduled": served.toy_job(toy, references=[{"images": one, "end": 0.5}], seed=2),
        "two references": served.toy_job(toy, references=[one, mask], seed=3, steps=2),
        "two pictures": served.toy_job(toy, references=[{"images": [one, two], "scale": 0.4}], seed=4),
        "without guidance": served.toy_job(toy, references=[two], guidance_scale=1.0, seed=5),
        "guidance in part": served.toy_job(toy, references=[two], guidance_interval=(0.0, 0.4), seed=6),
        "text only": served.toy_job(toy, prompt="a dog", seed=7, steps=5),
        "from a picture": served.toy_job(toy, references=[three], init_image=one, seed=8),
        "inpainting": served.toy_job(toy, references=[three], init_image=one, inpaint=three, seed=9),
        "two calls a step": served.toy_job(toy, references=[one], scheduler="heun", seed=10),
        "random steps": served.toy_job(toy, references=[one], scheduler="euler_a", seed=11),
        "another size": served.toy_job(toy, references=[one], width=32, height=16, seed=12),
    }


def test_a_served_picture_is_that_of_generate_bit_for_bit(
    bench: served.Bench, toy: ToyModel, pictures: list[str]
) -> None:
    for kind, values in kinds_of_jobs(toy, pictures).items():
        (log,) = bench.make(values)
        if values["references"]:
            assert np.array_equal(log.pixels, served.generate(values)), kind
        assert log.pixels.std() > 0, kind


def test_together_with_all_others_a_picture_differs_by_one_gray_level_at_most(
    bench: served.Bench, toy: ToyModel, pictures: list[str]
) -> None:
    jobs = kinds_of_jobs(toy, pictures)
    alone = [bench.make(values)[0].pixels for values in jobs.values()]
    together = [log.pixels for log in bench.make(*jobs.values())]
    assert max(report.rows for report in bench.reports) > 4
    for kind, one, other in zip(jobs, alone, together, strict=True):
        assert served.differ(one, other) <= 1, kind


def test_in_one_bucket_the_bytes_do_not_depend_on_the_neighbors(toy: ToyModel, pictures: list[str]) -> None:
    jobs = kinds_of_jobs(toy, pictures)
    values = jobs["two references"]
    with served.running_engine(toy, Batching(pictures=4, deterministic=True)) as bench:
        alone = bench.make(values)[0].pixels
        companies = (
            ("one reference",),
            ("text only", "scheduled", "two pictures"),
            ("without guidance", "guidance in part"),
        )
        others = [bench.make(values, *(jobs[kind] for kind in kinds))[0].pixels for kinds in companies]
        assert {report.bucket for report in bench.reports} == {8}
    assert served.all_equal([alone, *others])


def test_many_interleaved_requests_equal_their_serial_run(toy: ToyModel, pictures: list[str]) -> None:
    jobs = [
        served.toy_job(
            toy, references=[{"images": pictures[n % 3], "scale": n / 10}], seed=n, steps=1 + n % 4
        )
        for n in range(9)
    ]
    with served.running_engine(toy, Batching(pictures=4, deterministic=True)) as bench:
        serial = [bench.make(values)[0].pixels for values in jobs]
        logs = bench.make(*jobs)
        assert all(map(np.array_equal, serial, (log.pixels for log in logs)))
        assert [len(log.steps) for log in logs] == [values["steps"] for values in jobs]
        assert served.wait_until(lambda: bench.engine.running == bench.engine.waiting == 0)


@pytest.mark.slow
@pytest.mark.parametrize(("deterministic", "most"), [(True, 0), (False, 1)])
def test_many_jobs_of_one_seed_make_one_picture_among_any_neighbors(
    toy: ToyModel, pictures: list[str], deterministic: bool, most: int
) -> None:
    values = served.toy_job(toy, references=[pictures[0]], seed=7)
    others = [served.toy_job(toy, seed=n, steps=1 + n % 7) for n in range(32)]
    with served.running_engine(toy, Batching(deterministic=deterministic)) as bench:
        alone = bench.make(values)[0].pixels
        jobs = [job for other in others for job in (values, other, values)]
        logs = bench.make(*jobs)
    same = [log.pixels for log, job in zip(logs, jobs, strict=True) if job is values]
    assert len(same) == 64
    assert max(served.differ(picture, alone) for picture in same) <= most


def test_a_pipeline_is_left_as_it_was(bench: served.Bench, toy: ToyModel, pictures: list[str]) -> None:
    bench.make(served.toy_job(toy, references=[pictures[0]]))
    with bench.engine.store.use(bench.served, bench.request(served.toy_job(toy))[1].job) as model:
        kinds = {type(layer.processor).__name__ for layer in model.denoiser.layers}
        assert kinds == {"AttnProcessor2_0"}
        assert not any(adapter.is_attached for adapter in model.adapters.values())


# Cancellation


def test_a_canceled_picture_stops_before_its_next_step(
    bench: served.Bench, toy: ToyModel, pictures: list[str]
) -> None:
    log, request = bench.request(served.toy_job(toy, references=[pictures[0]], steps=200))
    log.on_step = lambda: bench.engine.cancel(lambda one: one is request) if len(log.steps) == 3 else None
    bench.engine.submit([request])
    with pytest.raises(PictureCanceled):
        _ = log.pixels
    assert len(log.steps) == 3
    assert served.wait_until(lambda: bench.engine.running == 0)


def test_a_picture_canceled_in_its_last_step_is_not_decoded(
    bench: served.Bench, toy: ToyModel, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, request = bench.request(served.toy_job(toy, references=[pictures[0]], steps=3))
    with bench.engine.store.use(bench.served, request.job) as model:
        decoded: list[object] = []
        vae: Any = getattr(model.pipe, "vae")  # noqa: B009
        monkeypatch.setattr(vae, "decode", lambda *args, **kwargs: decoded.append(args))
        log.on_step = lambda: bench.engine.cancel(lambda one: one is request) if len(log.steps) == 3 else None
        bench.engine.submit([request])
        assert log.over.wait(60)
    assert isinstance(log.result, PictureCanceled)
    assert decoded == []


def test_a_picture_canceled_in_the_queue_never_starts(toy: ToyModel, pictures: list[str]) -> None:
    with served.running_engine(toy, Batching(pictures=1)) as bench:
        first, blocking = bench.request(served.toy_job(toy, references=[pictures[0]], steps=100), "a")
        second, waiting = bench.request(served.toy_job(toy), "b")
        bench.engine.submit([blocking, waiting])
        bench.engine.cancel(lambda request: request is waiting)
        assert isinstance(second.result, PictureCanceled)
        bench.engine.cancel(lambda request: True)
        assert first.over.wait(60)
    assert second.steps == []


def test_canceling_a_neighbor_changes_no_byte(toy: ToyModel, pictures: list[str]) -> None:
    values = served.toy_job(toy, references=[pictures[0]], steps=8)
    with served.running_engine(toy, Batching(pictures=2, deterministic=True)) as bench:
        alone = bench.make(values)[0].pixels
        (one, kept), (other, dropped) = bench.request(values, "a"), bench.request(values | {"seed": 5}, "b")
        other.on_step = lambda: bench.engine.cancel(lambda request: request is dropped)
        bench.engine.submit([kept, dropped])
        assert np.array_equal(one.pixels, alone)
        assert other.over.wait(60)
        assert isinstance(other.result, PictureCanceled)


# Failures


def test_a_fault_of_one_picture_does_not_end_the_others(
    bench: served.Bench, toy: ToyModel, pictures: list[str]
) -> None:
    good = served.toy_job(toy, references=[pictures[0]], seed=1)
    wrong_size, missing = good | {"width": 17, "height": 17}, good | {"references": ["nowhere.png"]}
    first, second, third = bench.make(good, wrong_size, missing)
    assert first.pixels.shape == (16, 16, 3)
    assert isinstance(second.result, ConfigError)
    assert isinstance(third.result, ImageError)


def test_a_failing_unet_call_is_repeated_for_each_picture_alone(
    toy: ToyModel, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = served.toy_job(toy, references=[pictures[0]])
    with served.running_engine(toy) as bench:
        expected = bench.make(values)[0].pixels
        with bench.engine.store.use(bench.served, bench.request(values)[1].job) as model:
            run = model.denoiser.run

            def run_small(calls: Any) -> Any:
                if len(calls) > 1:
                    raise torch.OutOfMemoryError("too many rows")
                return run(calls)

            monkeypatch.setattr(model.denoiser, "run", run_small)
            logs = bench.make(values, values, values)
        assert served.all_equal([expected, *(log.pixels for log in logs)])


def test_an_engine_that_fails_answers_with_errors_and_goes_on(
    toy: ToyModel, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = served.toy_job(toy, references=[pictures[0]], steps=8)
    with served.running_engine(toy) as bench:
        expected = bench.make(values)[0].pixels
        log, request = bench.request(values)
        group = bench.engine._group_calls

        def fail() -> Any:
            if len(log.steps) > 2:
                monkeypatch.setattr(bench.engine, "_group_calls", group)
                raise SystemError("broken")
            return group()

        monkeypatch.setattr(bench.engine, "_group_calls", fail)
        bench.engine.submit([request])
        assert log.over.wait(60)
        assert isinstance(log.result, EngineFailure)
        assert bench.engine.failures == 1
        assert bench.engine.is_alive
        assert np.array_equal(bench.make(values)[0].pixels, expected)


# The queue


def test_a_full_queue_refuses_and_says_how_long_to_wait(toy: ToyModel) -> None:
    with served.running_engine(toy, Batching(pictures=1), queue_seconds=1.0) as bench:
        release = threading.Event()
        log, request = bench.request(served.toy_job(toy, steps=2))
        log.on_step = lambda: assert_true(release.wait(60))
        bench.engine.submit([request])
        assert served.wait_until(lambda: bool(log.steps))
        bench.engine.submit([bench.request(served.toy_job(toy, steps=30))[1]])
        start = time.perf_counter()
        with pytest.raises(QueueFull) as refusal:
            bench.engine.submit([bench.request(served.toy_job(toy, steps=1000))[1]])
        assert time.perf_counter() - start < 0.05
        assert refusal.value.wait > 0
        bench.engine.cancel(lambda one: True)
        release.set()
        assert log.over.wait(60)


def test_clients_take_turns() -> None:
    queue = FairQueue()
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.add(FakeRequest(name))  # pyright: ignore[reportArgumentType]
    expected = [str(request) for request in queue]
    taken = [str(queue.take()) for _ in range(len(queue))]
    assert taken == expected == ["a1", "b1", "c1", "a2", "c2", "a3"]


def assert_true(value: bool) -> None:
    assert value


class FakeRequest(str):
    __slots__ = ()

    @property
    def client(self) -> str:
        return self[0]


def test_buckets_are_powers_of_two() -> None:
    assert [choose_bucket(rows) for rows in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]


def test_previews_come_evenly_and_the_last_one_resembles_the_picture(
    bench: served.Bench, toy: ToyModel, pictures: list[str]
) -> None:
    log, request = bench.request(served.toy_job(toy, references=[pictures[0]], steps=8), previews=4)
    bench.engine.submit([request])
    final = log.pixels
    assert len(log.previews) == 4
    errors = [served.differ(np.asarray(picture.resize((16, 16))), final) for picture in log.previews]
    assert errors[-1] <= errors[0]


# Models


def test_the_least_recently_used_model_leaves_unless_a_picture_needs_it(toy: ToyModel) -> None:
    first, second, third = (ServedModel.model_validate(served.toy_model(toy, name=name)) for name in "abc")
    events: list[str] = []
    store = ModelStore(2, Batching(), events.append)
    job = RequestJob.model_validate(served.toy_job(toy))
    for model in (first, second, first, third):
        with store.use(model, job):
            pass
    assert store.names == ["a", "c"]
    with store.use(first, job), store.use(third, job), store.use(second, job):
        assert store.names == ["a", "c", "b"]  # all are needed
    assert store.names == ["a", "c"]
    assert events.count("load") == 4


def test_a_picture_is_encoded_once_for_all_requests(toy: ToyModel, pictures: list[str]) -> None:
    with served.running_engine(toy) as bench:
        bench.make(*(served.toy_job(toy, references=[pictures[0]], seed=seed, steps=1) for seed in range(4)))
        assert bench.events.count("miss") == 1
        assert bench.events.count("hit") == 3


# What acts in a layer


def test_merged_terms_give_each_row_what_it_has_alone() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def term(rows: int, tokens: int, weight: torch.Tensor | None = None) -> ImageTerm:
        return ImageTerm(random(rows, 2, tokens, 4), random(rows, 2, tokens, 4), weight)

    lora = LoraTerm({"q": (random(3, 8), random(5, 3))}, torch.ones(2, 1, 1))
    parts = [
        RowTerms((term(2, 4), term(2, 16)), ()),
        RowTerms((term(1, 16, random(1, 1, 6, 1)),), ()),
        RowTerms(),
        RowTerms((term(2, 4, random(2, 1, 1, 1)),), (lora,)),
    ]
    counts, query, hidden = [2, 1, 1, 2], random(8, 2, 6, 4), random(8, 6, 8)
    merged = merge_terms(parts, counts, 8)

    def add_up(query: torch.Tensor, terms: Any) -> torch.Tensor:
        output = torch.zeros_like(query)
        for key, value, weight in terms:
            image = attend(query, key, value)
            output = output + (image if weight is None else weight * image)
        return output

    linear = torch.nn.Linear(8, 5)
    whole, projected = add_up(query, merged.terms), project(linear, hidden, "q", merged.loras)
    start = 0
    for part, count in zip(parts, counts, strict=True):
        rows = slice(start, start + count)
        assert torch.equal(whole[rows], add_up(query[rows], part.terms))
        assert torch.allclose(projected[rows], project(linear, hidden[rows], "q", part.loras), atol=1e-6)
        start += count
    assert not whole[6:].any()  # padding


def test_pictures_of_the_tests_differ(tmp_path: Path) -> None:
    assert not np.array_equal(np.asarray(tiny.picture(seed=0)), np.asarray(tiny.picture(seed=1)))
