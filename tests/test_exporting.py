"""The embedded model's drawings as files: every layout holds the same samples, which match their captions."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imprompt.errors import ConfigError, OutputError
from imprompt.training.config import DataSettings
from imprompt.training.data import EmojiPictures
from imprompt.training.exporting import Layout, export_pictures
from imprompt.training.samples import Sample, open_source, writing
from toy_pictures import COLOURS, write_toy_data

SOURCES: dict[Layout, str] = {"folder": "", "official": "data.json", "webdataset": "*.tar"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("data") / "toy", size=16)


def exported(
    toy: Path, folder: Path, layout: Layout, *, seed: int = 0, held_out: bool = False
) -> list[Sample]:
    if not folder.exists():
        export_pictures(toy, folder, layout=layout, variants=3, seed=seed)
    place = folder.with_name(f"{folder.name}-held-out") if held_out else folder
    parts = open_source(str(place / SOURCES[layout]), DataSettings(size=16), 7)
    samples = [sample for part in parts for sample in part.samples()]
    assert all(isinstance(sample, Sample) for sample in samples)
    return [sample for sample in samples if isinstance(sample, Sample)]


@pytest.mark.parametrize("held_out", [False, True])
def test_every_layout_holds_the_same_samples_in_the_same_order(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: bool
) -> None:
    monkeypatch.setattr(writing, "TAR_SAMPLES", 50)
    keys = {
        layout: [sample.key for sample in exported(toy, tmp_path / layout, layout, held_out=held_out)]
        for layout in SOURCES
    }
    assert keys["folder"] == keys["official"] == keys["webdataset"]
    assert len(keys["folder"]) == len(EmojiPictures(toy, held_out=held_out)) * (1 if held_out else 3)
    assert len(list((tmp_path / "webdataset").glob("*.tar"))) > 1


def test_a_seed_is_one_set_of_pictures(toy: Path, tmp_path: Path) -> None:
    one, same, other = (
        [sample.key for sample in exported(toy, tmp_path / name, "folder", seed=seed)]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == same
    assert one != other


def test_a_caption_names_what_its_picture_shows(toy: Path, tmp_path: Path) -> None:
    """The middle of a disc is of the colour that the caption names; a reference shows it too."""
    checked = 0
    for sample in exported(toy, tmp_path / "out", "folder"):
        colour = sample.text.partition(" ")[0]
        if (
            not sample.text.startswith(f"{colour} disc")
            or " disc and" in sample.text
            or "next" in sample.text
        ):
            continue
        if colour not in COLOURS or "to the left" in sample.text:
            continue
        for picture in (sample.image, *sample.references):
            middle = np.asarray(Image.open(io.BytesIO(picture)))[8, 8]
            assert np.abs(middle.astype(int) - COLOURS[colour]).max() <= 1
        checked += 1
    assert checked > 3


def test_a_reference_is_on_another_ground(toy: Path, tmp_path: Path) -> None:
    samples = exported(toy, tmp_path / "out", "folder")
    with_reference = [sample for sample in samples if sample.references]
    assert 0.1 < len(with_reference) / len(samples) < 0.5
    assert all(sample.references[0] != sample.image for sample in with_reference)
    assert all("background" in sample.text for sample in with_reference)


def test_the_official_list_has_the_official_keys(toy: Path, tmp_path: Path) -> None:
    export_pictures(toy, tmp_path / "out", layout="official", variants=1, seed=0)
    rows: list[dict[str, Any]] = json.loads((tmp_path / "out" / "data.json").read_text())
    assert all({"image_file", "text"} <= row.keys() <= {"image_file", "text", "reference"} for row in rows)


def test_nothing_is_written_over_or_left_behind(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out-held-out").mkdir()
    with pytest.raises(OutputError, match="out-held-out cannot be written: it is there already"):
        export_pictures(toy, tmp_path / "out", layout="folder", variants=1, seed=0)
    with pytest.raises(ConfigError, match="variants is 0"):
        export_pictures(toy, tmp_path / "other", layout="folder", variants=0, seed=0)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write_pictures", full)
    with pytest.raises(OutputError, match="other cannot be written: No space left on device"):
        export_pictures(toy, tmp_path / "other", layout="folder", variants=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out-held-out"]


def test_the_command_writes_both_sides(toy: Path, tmp_path: Path, imprompt: Callable[..., Any]) -> None:
    output = tmp_path / "out"
    result = imprompt("mini", "export", output, "--data", toy, "--variants", "1", "--layout", "webdataset")
    assert (result.code, result.error) == (0, "")
    assert result.output == f"wrote {len(EmojiPictures(toy))} pictures to {output}\n"
    assert sorted(path.name for path in tmp_path.rglob("*.tar")) == ["00000.tar", "00000.tar"]
