"""The cache: rows are a function of their samples, nothing is done twice, what cannot be used is named."""

import errno
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cache_parts
import data_sets
import tiny
from cache_parts import Sources, config, face, png, sample
from imprompt.errors import DataError, OutputError
from imprompt.inputs.encoder import ImageEncoder
from imprompt.training.cache import CachedSamples, LiveSamples, build_cache
from imprompt.training.cache.encode import CacheRow, ContentBatcher
from imprompt.training.cache.shards import Shard, write_shard
from imprompt.training.cache.split import split_between, split_by_share
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.samples import Unreadable
from imprompt.training.targets import make_target

Samples = CachedSamples | LiveSamples


@pytest.fixture(scope="module")
def base() -> FrozenBase:
    return FrozenBase(tiny.sd_pipeline(), ImageEncoder(tiny.vision_model()))


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Sources:
    made = Sources(monkeypatch)
    made.read["things"] = cache_parts.samples(11)
    return made


def assert_same_rows(one: Samples, other: Samples) -> None:
    assert len(one) == len(other)
    for number in range(len(one)):
        mine, theirs = one.row(number), other.row(number)
        assert set(mine) == set(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert one.caption(number) == other.caption(number)
        assert one.key(number) == other.key(number)
        assert torch.equal(one.thumbnails(number), other.thumbnails(number))


# What a row holds


def test_a_row_is_what_the_frozen_models_make_of_its_sample(
    tmp_path: Path, base: FrozenBase, sources: Sources
) -> None:
    built = build_cache(config(tmp_path), base)
    row, picture = built.row(7), tiny.picture(seed=7)
    target = make_target(picture, config(tmp_path).data)
    assert torch.allclose(row["moments"], base.encode_targets(target.pixels[None])[0], atol=1e-5)
    assert torch.allclose(
        row["text_embeddings"], base.encode_text(["thing 7"])["text_embeddings"][0], atol=1e-5
    )
    seen = base.encode_references([picture], ["image_embedding"])["image_embedding"]
    assert torch.allclose(row["image_embedding"], seen, atol=1e-5)
    assert set(row) == {"moments", "text_embeddings", "image_embedding"}
    assert built.caption(7) == "thing 7"
    assert built.key(7) == sample(7).key
    assert built.thumbnails(7).shape == (1, 64, 64, 3)
    assert built.blanks["image_embedding"].tolist() == [0] * tiny.EMBEDDING_DIM


def test_references_masks_and_faces_are_kept(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    others = {"references": (png(50), png(51, 20, 40)), "face": face(1)}
    sources.read["things"] = [
        sample(0, face=face(0)),
        sample(1, mask=png(1, 74, 62), **others),
        sample(2, face=face(2)),
    ]
    built = build_cache(config(tmp_path, adapter={"variant": "faceid-plus"}), base)
    plain, full = built.row(0), built.row(1)
    assert "mask" not in plain
    assert full["mask"].shape == (1, 8, 8)
    assert full["image_features"].shape == (2, 5, 24)
    assert full["face_embedding"].tolist() == [face(1).tolist()] * 2
    assert plain["face_embedding"].tolist() == [face(0).tolist()]
    assert built.thumbnails(1).shape == (2, 64, 64, 3)
    assert built.blanks["face_embedding"].tolist() == [0] * 6
    seen = base.encode_references([tiny.picture(seed=50)], ["image_features"])["image_features"][0]
    assert torch.allclose(full["image_features"][0], seen, atol=1e-5)


def test_sdxl_rows_have_pooled_text_and_size(tmp_path: Path, sources: Sources) -> None:
    base = FrozenBase(tiny.xl_pipeline(), ImageEncoder(tiny.vision_model()))
    row = build_cache(config(tmp_path), base).row(3)
    assert row["size_condition"].tolist() == [31, 37, 0, 2, 16, 16]
    assert row["pooled_text"].shape == (tiny.XL_CONTEXT_2,)


def test_buckets_keep_shapes_and_rows_in_order(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    sizes = [(30, 30), (60, 30), (30, 60)] * 4
    sources.read["things"] = [sample(n, image=png(n, *size)) for n, size in enumerate(sizes)]
    built = build_cache(config(tmp_path, data={"buckets": True, "bucket_step": 8, "size": 24}), base)
    for number, (width, height) in enumerate(sizes):
        shape = built.bucket(number)
        assert built.row(number)["moments"].shape == (8, *shape)
        assert (shape[0] < shape[1]) == (height < width)
        assert built.key(number) == sample(number, image=png(number, width, height)).key
    together = np.sort(np.concatenate(list(built.buckets.values())))
    assert together.tolist() == built.train.tolist()
    assert all(built.bucket(row) == shape for shape, rows in built.buckets.items() for row in rows.tolist())


def test_captions_may_be_kept_in_place_of_their_states(
    tmp_path: Path, base: FrozenBase, sources: Sources
) -> None:
    built = build_cache(config(tmp_path, cache={"text": "captions"}), base)
    assert set(built.row(0)) == {"moments", "image_embedding"}
    assert built.caption(0) == "thing 0"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_is_that_of_the_rows(
    tmp_path: Path, base: FrozenBase, sources: Sources, precision: str
) -> None:
    exact = build_cache(config(tmp_path), base).row(4)
    narrow = build_cache(config(tmp_path, cache={"precision": precision}), base).row(4)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert all(torch.equal(narrow[name], exact[name].to(dtype)) for name in exact)


def test_a_number_that_the_precision_cannot_hold_is_refused(
    tmp_path: Path, base: FrozenBase, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "encode_text", lambda captions: {"text_embeddings": torch.full((3, 1, 1), 1e6)})
    with pytest.raises(DataError, match="text_embeddings holds numbers that fp16 cannot"):
        build_cache(config(tmp_path, cache={"precision": "fp16"}), base)


# However samples are grouped


@pytest.mark.parametrize(("part", "batch"), [(1, 3), (3, 5), (7, 2), (11, 8)])
def test_rows_do_not_depend_on_the_size_of_parts(
    tmp_path: Path, base: FrozenBase, sources: Sources, part: int, batch: int
) -> None:
    one = config(tmp_path / "1", cache={"batch_size": batch})
    other = config(tmp_path / "2", cache={"batch_size": batch, "shard_size": part})
    assert_same_rows(build_cache(one, base), build_cache(other, base))


@pytest.mark.parametrize(("write", "part"), [("official", 2), ("tars", 5), ("json_lines", 3)])
def test_rows_do_not_depend_on_where_samples_lie(
    tmp_path: Path, base: FrozenBase, write: str, part: int
) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    plain = config(tmp_path / "1", data={"source": data_sets.write_folder(folder)})
    source = getattr(data_sets, f"write_{write}")(other)
    same = config(tmp_path / "2", data={"source": source}, cache={"shard_size": part})
    one, two = build_cache(plain, base), build_cache(same, base)
    assert_same_rows(one, two)
    assert one.held_out.tolist() == two.held_out.tolist()


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_an_item_has_the_same_place_in_every_batch(items: list[int], size: int) -> None:
    def work(batch: list[int]) -> dict[str, torch.Tensor]:
        assert len(batch) == size
        return {"seen": torch.tensor(batch), "place": torch.arange(size)}

    batches = ContentBatcher[int](size, work)
    for name, item in enumerate(items):
        batches.add(name, item, bytes([item]))
    made = batches.finish()
    assert [made[name]["seen"].item() for name in range(len(items))] == items
    assert all(made[name]["place"].item() == item % size for name, item in enumerate(items))


def test_live_samples_are_those_of_the_cache(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    sources.read["things"] = [*cache_parts.samples(9), sample(20, references=(png(3), png(4)))]
    cached = build_cache(config(tmp_path), base)
    live = build_cache(config(tmp_path, cache={"enabled": False}), base)
    assert isinstance(live, LiveSamples)
    assert_same_rows(cached, live)
    assert live.train.tolist() == cached.train.tolist()
    assert live.held_out.tolist() == cached.held_out.tolist()
    assert live.buckets.keys() == cached.buckets.keys()
    assert [row.keys() for row in live.rows([1, 9])] == [row.keys() for row in cached.rows([1, 9])]


def test_a_reader_can_go_to_another_process(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    built = build_cache(config(tmp_path), base)
    assert isinstance(built, CachedSamples)
    assert_same_rows(built, pickle.loads(pickle.dumps(built)))


def test_there_is_no_row_beyond_the_last(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    built = build_cache(config(tmp_path), base)
    for number in (-1, 11):
        with pytest.raises(IndexError, match="of 11"):
            built.row(number)


# Once


def list_shards(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("cache/*/shards/*")}


def test_a_second_run_reads_and_encodes_nothing(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    sources.log = str(tmp_path / "log")
    first = build_cache(config(tmp_path), base)
    before, lines = list_shards(tmp_path), Path(sources.log).read_text()
    assert_same_rows(first, build_cache(config(tmp_path), base))
    assert list_shards(tmp_path) == before
    assert Path(sources.log).read_text() == lines


@pytest.mark.parametrize("stop", range(4))
def test_a_run_that_was_cut_off_goes_on_where_it_was(
    tmp_path: Path, base: FrozenBase, sources: Sources, stop: int
) -> None:
    class CutOff(Exception):
        pass

    def cut_off(done: int, total: int) -> None:
        if done > 4 * stop:
            raise CutOff

    sources.log = str(tmp_path / "log")
    if stop < 3:
        with pytest.raises(CutOff):
            build_cache(config(tmp_path), base, cut_off)
    before = list_shards(tmp_path)
    build_cache(config(tmp_path), base)
    assert list_shards(tmp_path).items() >= before.items()
    assert sorted(Path(sources.log).read_text().split()) == ["part-0", "part-1", "part-2"]


def test_a_shard_that_lost_its_receipt_is_read_but_not_made_again(
    tmp_path: Path, base: FrozenBase, sources: Sources
) -> None:
    sources.read["things"] = [
        *cache_parts.samples(5),
        sample(9, image=b"no picture"),
        *cache_parts.samples(2),
    ]
    first = build_cache(config(tmp_path), base)
    before = list_shards(tmp_path)
    skipped = next(tmp_path.glob("cache/*/skipped-*"))
    was = skipped.read_text()
    for path in tmp_path.glob("cache/*/receipts/*"):
        path.unlink()
    assert_same_rows(first, build_cache(config(tmp_path), base))
    assert list_shards(tmp_path) == before
    assert skipped.read_text() == was


def test_a_finished_cache_is_enough(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    built = build_cache(config(tmp_path), base)
    sources.read.clear()
    assert_same_rows(built, build_cache(config(tmp_path, data={"source": ""}), base))
    with pytest.raises(DataError, match="holds: none"):
        build_cache(config(tmp_path, data={"source": "", "size": 32}), base)


def test_an_empty_source_is_refused_where_several_are_cached(
    tmp_path: Path, base: FrozenBase, sources: Sources
) -> None:
    sources.read["others"] = cache_parts.samples(4)
    for source in ("things", "others"):
        build_cache(config(tmp_path, data={"source": source}), base)
    with pytest.raises(DataError, match=r"'things', 'others'|'others', 'things'"):
        build_cache(config(tmp_path, data={"source": ""}), base)


@pytest.mark.parametrize(
    "change",
    [{"data": {"size": 24}}, {"data": {"reference_crop": "pad"}}, {"cache": {"precision": "fp16"}}],
)
def test_other_settings_have_another_folder(
    tmp_path: Path, base: FrozenBase, sources: Sources, change: dict[str, Any]
) -> None:
    first = build_cache(config(tmp_path), base)
    build_cache(config(tmp_path, **change), base)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert_same_rows(first, build_cache(config(tmp_path), base))


def test_another_encoder_has_another_folder(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    build_cache(config(tmp_path), base)
    build_cache(config(tmp_path), FrozenBase(tiny.sd_pipeline(), ImageEncoder(tiny.vision_model(seed=8))))
    assert len(list((tmp_path / "cache").iterdir())) == 2


# What cannot be used


def test_a_damaged_picture_is_left_out_and_named(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    cut = sample(5, image=png(5)[:60])
    sources.read["things"] = [*cache_parts.samples(3), cut, sample(4)]
    for enabled in (True, False):
        built = build_cache(config(tmp_path, cache={"enabled": enabled}), base)
        assert [built.caption(row) for row in range(len(built))] == [
            "thing 0",
            "thing 1",
            "thing 2",
            "thing 4",
        ]
    for path in (next(tmp_path.glob("cache/*/skipped-*")), tmp_path / "run" / "skipped.jsonl"):
        (line,) = [json.loads(line) for line in path.read_text().splitlines()]
        assert line["name"] == "5.png"
        assert "damaged" in line["reason"]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("count", "bad", "stops"), [(8, 1, False), (8, 2, True), (1, 1, True)])
def test_more_than_one_percent_stops_it(
    tmp_path: Path, base: FrozenBase, sources: Sources, enabled: bool, count: int, bad: int, stops: bool
) -> None:
    missing = [Unreadable(f"bad-{number}", "no such file") for number in range(bad)]
    sources.read["things"] = [*cache_parts.samples(count - bad), *missing]
    given = config(tmp_path, cache={"enabled": enabled})
    if not stops:
        assert len(build_cache(given, base)) == count - bad
        return
    with pytest.raises(DataError, match="bad-0: no such file"):
        build_cache(given, base)


def test_a_face_variant_needs_a_face(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    with pytest.raises(DataError, match=r"no face embedding \(data.columns.face is 'face'\)"):
        build_cache(config(tmp_path, adapter={"variant": "faceid"}), base)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, base: FrozenBase, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, count = Path.write_bytes, itertools.count()

    def full(self: Path, data: bytes) -> int:
        if next(count) > 5:
            whole(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        build_cache(config(tmp_path), base)
    monkeypatch.undo()
    assert not list(tmp_path.glob("cache/*/*/.imprompt*"))
    for path in tmp_path.glob("cache/*/shards/*"):
        assert len(Shard(path)) > 0
    sources.__init__(monkeypatch)
    sources.read["things"] = cache_parts.samples(11)
    assert len(build_cache(config(tmp_path), base)) == 11


# Shards


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=9), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=6))
def test_a_shard_gives_back_its_rows(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, int, int]]
) -> None:
    rows = [
        CacheRow(
            key=bytes([number]) * 32,
            picture=bytes([255 - number]) * 32,
            caption=caption,
            thumbnails=tuple(bytes([n]) * n for n in range(references)),
            tensors={"a": torch.rand(width, 2), "b": torch.arange(width)}
            | ({"c": torch.rand(references, 3).bfloat16()} if references else {}),
        )
        for number, (caption, references, width) in enumerate(made)
    ]
    path = tmp_path_factory.mktemp("shards") / "shard.safetensors"
    write_shard(path, rows, [(2, "why")])
    first = path.read_bytes()
    write_shard(path, rows, [(2, "why")])
    assert path.read_bytes() == first
    shard = Shard(path)
    assert len(shard) == len(rows)
    assert shard.skipped == [(2, "why")]
    for number, row in enumerate(rows):
        assert shard.keys[number].tobytes() == row.key
        assert shard.caption(number) == row.caption
        assert tuple(shard.thumbnails(number)) == row.thumbnails
        tensors = shard.tensors(number)
        assert tensors.keys() == row.tensors.keys()
        assert all(torch.equal(tensors[name], row.tensors[name]) for name in tensors)


# What is held out


def digests(numbers: list[int]) -> np.ndarray:
    rows = [np.random.default_rng(number).integers(0, 256, 32, np.uint8) for number in numbers]
    return np.array(rows, np.uint8)


LISTS = st.lists(st.integers(0, 60), min_size=3, max_size=60)


@given(numbers=LISTS, share=st.floats(0.01, 0.9), most=st.integers(2, 20), shuffle=st.randoms())
def test_the_split_follows_from_the_pictures_alone(
    numbers: list[int], share: float, most: int, shuffle: Any
) -> None:
    numbers = [*numbers, 100, 101, 102]
    train, held_out = split_by_share(digests(numbers), share, most)
    count = len(set(numbers))
    assert len(held_out) == min(max(round(share * count), 2), most, count - 1)
    out = {numbers[row] for row in held_out}
    assert len(out) == len(held_out)
    assert {numbers[row] for row in train} == set(numbers) - out
    shuffled = numbers.copy()
    shuffle.shuffle(shuffled)
    assert {shuffled[row] for row in split_by_share(digests(shuffled), share, most).held_out} == out


@pytest.mark.parametrize("numbers", [[1, 1, 2], [1]])
def test_too_few_pictures_cannot_be_split(numbers: list[int]) -> None:
    with pytest.raises(DataError, match="at least 3"):
        split_by_share(digests(numbers), 0.1, 10)


def test_pictures_of_the_held_out_source_are_not_trained_on() -> None:
    found = split_between(digests([1, 2, 3, 4]), digests([2, 9, 9, 8]), 10)
    assert found.train.tolist() == [0, 2, 3]
    assert len(found.held_out) == 3
    assert {4, 7} <= set(found.held_out.tolist())


def test_a_second_source_can_be_held_out(tmp_path: Path, base: FrozenBase, sources: Sources) -> None:
    sources.read["unseen"] = [sample(seed) for seed in (30, 31, 2, 32)]
    for enabled in (True, False):
        given = config(tmp_path, data={"held_out": "unseen"}, cache={"enabled": enabled})
        built = build_cache(given, base)
        assert built.train.tolist() == [0, 1, *range(3, 11)]
        assert sorted(built.caption(row) for row in built.held_out.tolist()) == [
            "thing 2",
            "thing 30",
            "thing 31",
            "thing 32",
        ]
    assert len(build_cache(config(tmp_path, data={"source": ""}), base)) == 11
