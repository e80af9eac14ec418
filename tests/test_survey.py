"""`imprompt train --check`: what is said of data and of what a run needs."""

import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rich.console import Console

import data_sets
import tiny
from imprompt import mini
from imprompt.errors import DataError
from imprompt.runtime import precision
from imprompt.training import survey as surveying
from imprompt.training.config import TrainingConfig, parse_config
from imprompt.training.estimates import Work, count_work, estimate_memory, estimate_sample_bytes, read_shapes
from imprompt.training.survey import print_survey, size_in_words, survey_data, time_in_words


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counting of the base's work takes seconds, and is tested alone."""
    monkeypatch.setattr(surveying, "count_work", lambda config, shapes: Work(4, 3, 2, 1))


def config(source: str, **groups: Any) -> TrainingConfig:
    """Of the embedded base in float32, whatever is fastest on this machine."""
    data = {"source": source, **groups.pop("data", {})}
    training = {"precision": "fp32", **groups.pop("training", {})}
    return parse_config(
        {"preset": "mini", "output": "run", "data": data, "training": training, **groups}, "test"
    )


def said(found: surveying.Survey) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_survey(found, console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.usefixtures("quick")
def test_few_pictures_are_answered_with_the_preset_that_starts_from_a_trained_adapter(tmp_path: Path) -> None:
    source = data_sets.write_folder(tmp_path, count=6)
    assert 'preset = "mini-fine-tune"' in survey_data(config(source)).estimates["advice"]
    started = config(source, adapter={"start": "mini"})
    assert "advice" not in survey_data(started).estimates


@pytest.mark.usefixtures("quick")
def test_a_survey_counts_what_is_there(tmp_path: Path) -> None:
    source = data_sets.write_folder(tmp_path, count=6)
    (tmp_path / "000000.txt").write_text("")
    (tmp_path / "000001.txt").write_text("word " * 100)
    (tmp_path / "000003.png").write_bytes(b"no picture")
    (tmp_path / "000004.txt").unlink()
    for suffix in ("png", "txt"):
        shutil.copy(tmp_path / f"000005.{suffix}", tmp_path / f"000006.{suffix}")
    found = survey_data(config(source))
    assert (found.count, found.examined, found.references, found.duplicates) == (7, 7, 1, 1)
    assert (found.without_caption, found.cut_captions, found.enlarged) == (1, 1, 5)
    assert found.buckets == {(128, 128): 5}
    assert found.sizes == {(32, 31): 1, (41, 31): 1, (50, 31): 3}
    assert [fault.name for fault in found.faults] == [str(tmp_path / f"00000{n}.png") for n in (3, 4)]
    text = said(found)
    assert "at least" in found.estimates["time"]
    assert "2 (28.57%; above 1 % training stops)" in text
    assert "the picture is not a picture: its content is not PNG" in text
    assert "there is no 000004.txt" in text
    assert "32 × 31 to 50 × 31, 3 different ones" in text


@pytest.mark.usefixtures("quick")
def test_buckets_are_counted(tmp_path: Path) -> None:
    found = survey_data(config(data_sets.write_folder(tmp_path), data={"buckets": True, "bucket_step": 8}))
    assert sum(found.buckets.values()) == 5
    assert len(found.buckets) > 1


@pytest.mark.usefixtures("quick")
def test_of_much_data_an_even_share_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "MAX_EXAMINED", 6)
    monkeypatch.setattr(surveying, "PART_SIZE", 2)
    progress: list[tuple[int, int]] = []
    source = data_sets.write_folder(tmp_path, count=20)
    found = survey_data(config(source), lambda done, total: progress.append((done, total)))
    assert (found.count, found.examined) == (20, 6)
    assert progress[-1] == (6, 6)
    assert "20; looked at 6, evenly spread" in said(found)


def test_a_source_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DataError, match="there is no nowhere"):
        survey_data(config("nowhere"))


def test_a_base_that_is_not_here_leaves_the_estimate_open(tmp_path: Path) -> None:
    source = data_sets.write_folder(tmp_path)
    found = survey_data(config(source, base={"model": str(tmp_path), "image_encoder": str(tmp_path)}))
    assert found.cut_captions is None
    assert "not known" in found.estimates["memory, time"]
    assert "the base's tokenizer is not here" in said(found)


FLUX = {
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "pooled_projection_dim": 768,
}
SD35 = {
    "attention_head_dim": 64,
    "caption_projection_dim": 2432,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 38,
    "num_layers": 38,
    "out_channels": 16,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}


def write_transformer_base(folder: Path, transformer: dict[str, Any]) -> dict[str, str]:
    """Write the configuration files of a base and its encoder; return the settings that name them."""
    parts = {
        "base/transformer": transformer,
        "base/vae": {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]},
        "encoder": {"hidden_size": 1152, "image_size": 384, "patch_size": 14, "projection_dim": 1152},
    }
    for name, settings in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(settings))
    return {"model": str(folder / "base"), "image_encoder": str(folder / "encoder")}


@pytest.mark.parametrize(
    ("preset", "transformer", "frozen", "trained"),
    [
        # FLUX.1 [dev] has 11,901,408,320 parameters; XLabs' layers have biases.
        ("flux-xlabs", FLUX, 11_901_408_320, 19 * 2 * 3072 * (4096 + 1)),
        pytest.param("flux-instantx", FLUX, 11_901_408_320, 57 * 2 * 3072 * 4096, marks=pytest.mark.slow),
        # W'_k and W'_v, the linear layer of the timed norm, and three norms over heads.
        ("sd35", SD35, 8_056_627_520, 38 * (2 * 2432 * 2432 + 2 * 2432 * (1280 + 1) + 3 * 64)),
    ],
)
def test_the_work_on_a_transformer_is_counted_on_its_true_shapes(
    tmp_path: Path, preset: str, transformer: dict[str, Any], frozen: int, trained: int
) -> None:
    run = config("x", preset=preset, base=write_transformer_base(tmp_path, transformer))
    work = count_work(run, read_shapes(run))
    assert (work.frozen, work.trained) == (frozen, trained)
    assert work.activations > 10**9


@pytest.mark.usefixtures("quick")
def test_the_estimate_names_the_transformer(tmp_path: Path) -> None:
    small = FLUX | {"num_attention_heads": 1, "num_layers": 1, "num_single_layers": 1}
    base = write_transformer_base(tmp_path / "models", small)
    found = survey_data(config(data_sets.write_folder(tmp_path / "data"), preset="flux-xlabs", base=base))
    assert "for the transformer (" in found.estimates["memory"]
    assert "a sample" in found.estimates["cache"]


@pytest.mark.usefixtures("quick")
def test_missing_faces_are_counted_where_they_are_needed(tmp_path: Path) -> None:
    found = survey_data(config(data_sets.write_folder(tmp_path), adapter={"variant": "faceid"}))
    assert found.without_face == 5


@functools.cache
def work_of(mechanism: str) -> Work:
    run = config("x", adapter={"mechanism": mechanism})
    return count_work(run, read_shapes(run))


def test_the_work_on_the_embedded_base_is_counted_on_its_real_shapes() -> None:
    run = config("x")
    shapes, work = read_shapes(run), work_of("decoupled")
    unet = UNet2DConditionModel.from_pretrained(mini.WEIGHTS / "base" / "unet")
    assert work.frozen == sum(parameter.numel() for parameter in unet.parameters())
    layers = mini.adapter().layers
    assert work.trained == sum(parameter.numel() for parameter in layers.parameters())
    # 2 × 48 × 8 × 8 latents, 40 × 192 of text, 256 of the embedding; 4 bytes each
    assert estimate_sample_bytes(run, shapes) == 4 * (2 * 48 * 8 * 8 + 40 * 192 + 256)
    assert work.activations > 100_000
    one, two = (estimate_memory(config("x", training={"passes": n}), work, on_cpu=True) for n in (1, 2))
    assert one - two == 4 * 32 * work.activations


def test_bfloat16_halves_the_frozen_weights_and_the_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "find_fastest_precision", lambda device: "bf16")
    work = Work(frozen=100, trained=0, activations=10, operations=1)
    wide, narrow = (
        estimate_memory(config("x", training={"precision": name}), work, on_cpu=False)
        for name in ("fp32", "auto")
    )
    assert wide == 2 * narrow


@pytest.mark.parametrize("mechanism", ["two-stream", "concatenated"])
def test_what_learns_of_the_u_net_is_all_or_nothing_beside_the_method(mechanism: str) -> None:
    work, decoupled = work_of(mechanism), work_of("decoupled")
    learns = decoupled.frozen if mechanism == "two-stream" else 0
    assert (work.frozen, work.trained) == (decoupled.frozen - learns, learns)
    assert work.operations * 2 == decoupled.operations * (3 if learns else 2)
    # A trained parameter is there six times: gradient, two moments, average, and as it was before.
    run = config("x", adapter={"mechanism": mechanism})
    taken = estimate_memory(run, work, on_cpu=True) - 4 * 64 * work.activations
    assert taken == 24 * learns + 4 * work.frozen


def test_the_shapes_of_sdxl_are_read_from_its_folder(tmp_path: Path) -> None:
    tiny.xl_pipeline().save_pretrained(tmp_path / "base")
    tiny.vision_model().save_pretrained(tmp_path / "encoder")
    base = {"model": str(tmp_path / "base"), "image_encoder": str(tmp_path / "encoder")}
    run = config("x", base=base, data={"size": 16}, adapter={"variant": "plus", "tokens": 16})
    shapes = read_shapes(run)
    assert (shapes.text_width, shapes.pooled_width, shapes.shrink) == (28, 16, 2)
    assert shapes.inputs == 5 * 24  # (28 / 14)² patches and the class token, 24 wide
    assert count_work(run, shapes).operations > 0


def test_amounts_are_said_in_few_digits() -> None:
    assert [size_in_words(n) for n in (0, 35840, 2.5e12)] == ["0 bytes", "35.8 kB", "2.5 TB"]
    assert [time_in_words(n) for n in (5, 90, 7200, 864000)] == [
        "5 seconds",
        "1.5 minutes",
        "2 hours",
        "10 days",
    ]
