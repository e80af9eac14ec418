"""Image embeddings on disk, whether they fit, and several made one."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from imprompt.checkpoint import save_adapter
from imprompt.errors import AdapterMismatch, CheckpointError, InvalidReference, OutputError
from imprompt.inputs.choices import Combine, Input
from imprompt.inputs.embeddings import ImageEmbeddings, combine_embeddings, load_embeddings
from imprompt.inputs.encoder import ImageEncoder

seeds = st.integers(0, 2**31)
counts = st.integers(1, 5)
WEIGHTED: list[Combine] = ["average", "add", "subtract", "normalized average"]


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def embeddings(images: int = 2) -> ImageEmbeddings:
    return ImageEmbeddings(
        {"image_embedding": vectors(images, 7), "image_features": vectors(images, 5, 6, seed=1).half()},
        {"image_embedding": torch.zeros(7), "image_features": vectors(5, 6, seed=2).half()},
        {"encoder": "ViT-H/14", "variant": "plus"},
    )


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# Laws of combining


@settings(max_examples=30)
@given(seeds, counts, st.sampled_from(["average", "normalized average"]), st.booleans())
def test_the_average_of_equal_pictures_is_the_picture(
    seed: int, images: int, how: str, features: bool
) -> None:
    one = vectors(1, *((4, 6) if features else (6,)), seed=seed)
    close(combine_embeddings(one.repeat(images, *[1] * (one.ndim - 1)), how), one)


@settings(max_examples=30)
@given(seeds, st.integers(2, 5))
def test_equal_pictures_subtracted_leave_nothing(seed: int, images: int) -> None:
    one = vectors(1, 6, seed=seed)
    close(combine_embeddings(one.repeat(images, 1), "subtract"), torch.zeros(1, 6))


@settings(max_examples=30)
@given(seeds)
def test_interpolation_ends_at_its_ends(seed: int) -> None:
    pair = vectors(2, 4, 6, seed=seed)
    close(combine_embeddings(pair, "interpolate", [1, 0]), pair[:1], 1e-6)
    close(combine_embeddings(pair, "interpolate", [0, 1]), pair[1:], 1e-6)


@settings(max_examples=30)
@given(seeds, st.floats(0, 1))
def test_interpolation_divides_the_angle_and_the_length(seed: int, t: float) -> None:
    first, second = pair = vectors(2, 6, seed=seed)
    made = combine_embeddings(pair, "interpolate", [1 - t, t])[0]
    assert made.norm().item() == pytest.approx(
        (1 - t) * first.norm().item() + t * second.norm().item(), rel=1e-5
    )
    whole = angle(first, second)
    assert angle(first, made) == pytest.approx(t * whole, abs=1e-3)
    assert angle(made, second) == pytest.approx((1 - t) * whole, abs=1e-3)


def angle(one: Tensor, other: Tensor) -> float:
    cosine = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0)
    return math.acos(min(1, max(-1, cosine.item())))


@settings(max_examples=30)
@given(seeds, st.sampled_from(WEIGHTED), st.permutations(range(1, 4)))
def test_the_order_of_pictures_says_nothing_but_who_is_first_in_a_subtraction(
    seed: int, how: str, order: list[int]
) -> None:
    x, weights = vectors(4, 6, seed=seed), [0.5, 2.0, 1.0, 0.25]
    order = [0, *order]
    close(combine_embeddings(x, how, weights), combine_embeddings(x[order], how, [weights[i] for i in order]))


@settings(max_examples=30)
@given(seeds, st.floats(0.1, 10), st.sampled_from(["average", "normalized average"]))
def test_an_average_knows_only_the_proportions_of_its_weights(seed: int, factor: float, how: str) -> None:
    x, weights = vectors(3, 6, seed=seed), [0.5, 2.0, 1.0]
    close(
        combine_embeddings(x, how, weights),
        combine_embeddings(x, how, [factor * weight for weight in weights]),
    )


@settings(max_examples=30)
@given(seeds)
def test_a_normalised_average_is_as_long_as_its_pictures_on_average(seed: int) -> None:
    x = vectors(3, 4, 6, seed=seed)
    close(combine_embeddings(x, "normalized average").norm(dim=-1), x.norm(dim=-1).mean(0, keepdim=True))


@settings(max_examples=30)
@given(seeds, st.floats(0.1, 10))
def test_no_picture_prevails_in_a_normalised_average_by_being_long(seed: int, factor: float) -> None:
    x = vectors(2, 6, seed=seed)
    longer = torch.stack([factor * x[0], x[1]])
    plain, prevailing = (
        combine_embeddings(x, "normalized average")[0],
        combine_embeddings(longer, "normalized average")[0],
    )
    assert angle(plain, prevailing) < 1e-3


def test_pictures_side_by_side_stay_as_they_are() -> None:
    x = vectors(3, 6)
    assert torch.equal(combine_embeddings(x, "concat"), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("how", ["average", "add", "subtract", "normalized average", "interpolate"])
def test_combining_keeps_the_type_and_the_shape(how: str, dtype: torch.dtype) -> None:
    made = combine_embeddings(vectors(2, 4, 6).to(dtype), how)
    assert made.dtype == dtype
    assert made.shape == (1, 4, 6)


# Golden values, by hand

SIX_AND_TWO = [[6.0, 0.0], [0.0, 2.0]]
THREE = [[5.0, 0.0], [1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("how", "pictures", "weights", "expected"),
    [
        ("average", SIX_AND_TWO, None, [3, 1]),
        ("average", SIX_AND_TWO, [1, 3], [1.5, 1.5]),
        ("add", SIX_AND_TWO, None, [6, 2]),
        ("add", SIX_AND_TWO, [2, -1], [12, -2]),
        ("subtract", THREE, None, [4.5, -1]),
        ("subtract", THREE, [2, 0.5, 4], [9.75, -0.5]),
        ("normalized average", SIX_AND_TWO, None, [8**0.5, 8**0.5]),  # along (1, 1), 4 long
        ("normalized average", SIX_AND_TWO, [3, 1], [15 / 10**0.5, 5 / 10**0.5]),  # along (3, 1), 5 long
        ("interpolate", SIX_AND_TWO, [2 / 3, 1 / 3], [14 / 3 * 0.75**0.5, 14 / 3 / 2]),  # 30°, 14/3 long
        ("interpolate", [[6.0, 0.0], [0.0, 0.0]], None, [3, 0]),  # a zero vector has no angle
        ("normalized average", [[6.0, 0.0], [0.0, 0.0]], None, [3, 0]),
        ("normalized average", [[0.0, 0.0], [0.0, 0.0]], None, [0, 0]),
        ("interpolate", [[1.0, 1e-9], [3.0, 0.0]], None, [2, 5e-10]),
    ],
)
def test_golden_values(
    how: str, pictures: list[list[float]], weights: Sequence[float | int] | None, expected: list[float]
) -> None:
    close(
        combine_embeddings(torch.tensor(pictures), how, weights)[0],
        torch.tensor(expected, dtype=torch.float32),
    )


# What cannot be combined


@pytest.mark.parametrize(
    ("how", "images", "weights", "message"),
    [
        ("mix", 2, None, "combine must be concat, average, add, .*, not 'mix'"),
        ("concat", 2, [1, 1], "'concat' takes no weights, not .1, 1."),
        ("subtract", 1, None, "'subtract' needs at least two pictures, not 1"),
        ("interpolate", 3, None, "'interpolate' needs two pictures, not 3"),
        ("interpolate", 2, [0.5, 0.6], r"weights of 'interpolate' are \(1 - t, t\)"),
        ("interpolate", 2, [-0.5, 1.5], r"weights of 'interpolate' are \(1 - t, t\)"),
        ("average", 3, [1, 2], r"3 pictures need as many weights, not 2: \[1, 2\]"),
        ("add", 2, [1, float("nan")], r"finite numbers, not \[1, nan\]"),
        ("average", 2, [1, -1], "sum to 0"),
        ("normalized average", 2, [1, -1], "sum to 0"),
    ],
)
def test_what_cannot_be_combined(
    how: str, images: int, weights: Sequence[float | int] | None, message: str
) -> None:
    with pytest.raises(InvalidReference, match=message):
        combine_embeddings(vectors(images, 6), how, weights)


@pytest.mark.parametrize("how", ["normalized average", "interpolate"])
def test_between_opposite_pictures_there_is_no_direction(how: str) -> None:
    with pytest.raises(InvalidReference, match="opposite"):
        combine_embeddings(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), how)


def test_a_way_between_opposites_still_has_ends() -> None:
    pair = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    close(combine_embeddings(pair, "interpolate", [1, 0]), pair[:1])


# Files


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    made = embeddings()
    made.save(tmp_path / "cat.safetensors")
    loaded = load_embeddings(str(tmp_path / "cat.safetensors"))
    assert loaded.metadata == made.metadata
    assert loaded.images == 2
    for one, other in ((loaded.inputs, made.inputs), (loaded.blank, made.blank)):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name])


def test_the_file_tells_what_it_holds(tmp_path: Path) -> None:
    embeddings().save(tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {
            "encoder": "ViT-H/14",
            "variant": "plus",
            "format": "pt",
            "imprompt.kind": "image embeddings",
            "imprompt.version": "1",
            "imprompt.inputs": '{"image_embedding": [2, 7], "image_features": [2, 5, 6]}',
        }


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    whole = vectors(3, 7)
    ImageEmbeddings({"image_embedding": whole[:2]}, {"image_embedding": whole[2]}).save(
        tmp_path / "x.safetensors"
    )
    assert torch.equal(load_embeddings(tmp_path / "x.safetensors").blank["image_embedding"], whole[2])


def test_what_an_encoder_makes_can_be_kept(tmp_path: Path) -> None:
    encoder = ImageEncoder(tiny.vision_model())
    inputs = encoder.inputs(encoder.pixels([tiny.picture()]), ["image_features", "image_embedding"])
    blank: dict[Input, Tensor] = {name: encoder.blank(name) for name in inputs}
    ImageEmbeddings(inputs, blank, {"encoder": encoder.name}).save(tmp_path / "x.safetensors")
    loaded = load_embeddings(tmp_path / "x.safetensors")
    loaded.check_fits({"image_embedding": encoder.embedding_dim, "image_features": encoder.feature_dim})
    assert torch.equal(loaded.inputs["image_features"], inputs["image_features"])


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings().save(tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        embeddings(3).save(tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"must end in \.safetensors"):
        embeddings().save(tmp_path / "x.pt")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        load_embeddings(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_no_file_an_empty_one_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert refusal(tmp_path / "x").endswith("no such file")
    assert refusal(tmp_path / "empty").endswith("is empty")
    assert "cannot be read" in refusal(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read: its name has 5000 bytes; the limit is 255"):
        load_embeddings(tmp_path / ("a" * 5000))


def test_truncated_at_any_length(tmp_path: Path) -> None:
    embeddings().save(tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    for length in (1, 8, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "y").write_bytes(whole[:length])
        assert "cannot be read as image embeddings" in refusal(tmp_path / "y"), length


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"inputs": vectors(2, 7)}, tmp_path / "x.ipadpt")
    assert "cannot be read as image embeddings" in refusal(tmp_path / "x.ipadpt")


def test_an_adapter_is_told_apart(tmp_path: Path) -> None:
    save_adapter(tiny.adapter(tiny.sd_unet()), tmp_path / "x.safetensors")
    assert "holds an adapter, not image embeddings" in refusal(tmp_path / "x.safetensors")
    safetensors.torch.save_file({"weight": vectors(2)}, tmp_path / "y.safetensors")
    assert "holds something else, not image embeddings" in refusal(tmp_path / "y.safetensors")


def save_altered(path: Path, tensors: dict[str, Tensor | None] | None = None, **metadata: str) -> Path:
    """The file of `embeddings()` with some of its tensors and metadata replaced, or taken out by None."""
    embeddings().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        noted = dict(file.metadata()) | {f"imprompt.{key}": text for key, text in metadata.items()}
    held = {**safetensors.torch.load_file(path), **(tensors or {})}
    safetensors.torch.save_file({key: value for key, value in held.items() if value is not None}, path, noted)
    return path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"inputs.image_embedding": torch.full((2, 7), math.nan)}, "image_embedding contains NaN"),
        (
            {"blank.image_embedding": torch.full((7,), math.inf)},
            "blank of image_embedding contains NaN or inf",
        ),
        (
            {"inputs.image_embedding": torch.zeros(2, 7, dtype=torch.int64)},
            "floating-point tensor (images d)",
        ),
        (
            {"inputs.image_embedding": vectors(3, 7)},
            "same number of images, not 3 of image_embedding, 2 of image_feat",
        ),
        ({"inputs.image_features": vectors(2, 6)}, "(images patches d), not (2, 6) of torch.float32"),
        ({"blank.image_embedding": vectors(6)}, "must have shape (7,), not (6,)"),
        ({"blank.image_embedding": None}, "blanks are image_features"),
        ({"inputs.image_embedding": None, "blank.image_embedding": None}, "its metadata say"),
        ({"inputs.smell": vectors(2, 6)}, "'inputs.smell', which is no part"),
    ],
)
def test_a_damaged_file(tmp_path: Path, tensors: dict[str, Tensor | None], message: str) -> None:
    assert message in refusal(save_altered(tmp_path / "x.safetensors", tensors))


def test_a_file_without_any_input(tmp_path: Path) -> None:
    names = [
        f"{part}.{name}" for part in ("inputs", "blank") for name in ("image_embedding", "image_features")
    ]
    message = refusal(save_altered(tmp_path / "x.safetensors", dict.fromkeys(names)))
    assert "need at least one input" in message


def test_a_later_version(tmp_path: Path) -> None:
    assert "has version 2 of the format, not 1" in refusal(
        save_altered(tmp_path / "x.safetensors", version="2")
    )


# What fits


def test_embeddings_fit_the_widths_they_have() -> None:
    embeddings().check_fits({"image_features": 6, "image_embedding": 7})


@pytest.mark.parametrize(
    ("takes", "message"),
    [
        (
            {"image_embedding": 7, "image_features": 8},
            "image_features is 6 wide in these image embeddings of ViT-H/14; this adapter takes a width of 8",
        ),
        (
            {"face_embedding": 512},
            "of ViT-H/14 hold image_embedding, image_features; this adapter takes face_embedding",
        ),
        ({"image_embedding": 7}, "hold image_embedding, image_features; this adapter takes image_embedding;"),
    ],
)
def test_embeddings_that_do_not_fit(takes: dict[str, int], message: str) -> None:
    with pytest.raises(AdapterMismatch, match=message):
        embeddings().check_fits(takes)  # pyright: ignore[reportArgumentType]


def test_embeddings_made_by_hand_are_checked_too() -> None:
    with pytest.raises(InvalidReference, match="must have shape"):
        ImageEmbeddings({"image_embedding": vectors(2, 7)}, {"image_embedding": vectors(1, 7)})
    with pytest.raises(InvalidReference, match="at least one input"):
        ImageEmbeddings({}, {})
    for key in ("imprompt.kind", "format"):
        with pytest.raises(InvalidReference, match=f"metadata cannot be named '{key}'"):
            ImageEmbeddings(embeddings().inputs, embeddings().blank, {key: "x"})
