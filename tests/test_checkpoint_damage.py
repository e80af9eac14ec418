"""Checkpoints that changed on the disk are passed over, and only what the run itself made is deleted."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_training
from imprompt.errors import ConfigError, OutputError, TrainingError
from imprompt.training.adapters import check_folder, train_adapter, write_config
from imprompt.training.checkpoints import Checkpoints
from imprompt.training.integrity import write_json
from imprompt.training.objectives import image_prompting


def write_extra(folder: Path) -> None:
    (folder / "extra.txt").write_text("x" * 100)


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> Checkpoints:
    """Two checkpoints, of the steps 2 and 4."""
    one = Checkpoints(tmp_path / "checkpoints", 3)
    for step in (2, 4):
        state = {"step": step, "weights": [torch.full((3,), float(step))]}
        one.save(step, state, {"held-out loss": 1.5 / step}, write_extra)
    return one


def rest(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is damaged is passed over


@pytest.mark.parametrize("mask", [0x01, 0x10])
@pytest.mark.parametrize("place", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("name", ["checkpoint.json", "state.pt", "extra.txt"])
def test_after_a_flipped_bit_nothing_but_what_was_written_is_loaded(
    two_checkpoints: Checkpoints, name: str, place: float, mask: int
) -> None:
    path = two_checkpoints.folder / "000004" / name
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= mask
    path.write_bytes(data)
    found = two_checkpoints.load_latest()
    assert found is not None
    checkpoint, state, passed = found
    assert state["weights"][0].tolist() == [float(state["step"])] * 3
    assert checkpoint.figures == {"held-out loss": 1.5 / checkpoint.step}
    if checkpoint.step == 2:
        assert len(passed) == 1
        assert passed[0].startswith("passed over the checkpoint 000004: ")
        assert name in passed[0]
    else:  # a bit between two words of JSON
        assert name == "checkpoint.json"
        assert json.loads(data) == json.loads((two_checkpoints.folder / "000004" / name).read_text())


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a list": lambda path: path.write_text("[1, 2]"),
    "a deep array": lambda path: path.write_text("[" * 100_000),
    "other keys": lambda path: path.write_text("{}"),
    "the step a word": lambda path: path.write_text('{"step": "4", "figures": {}, "files": {}}'),
    "a figure a word": lambda path: path.write_text('{"step": 4, "figures": {"a": "b"}, "files": {}}'),
    "5,000 digits": lambda path: path.write_text(f'{{"step": {"4" * 5000}}}'),
    "no state among the files": lambda path: path.write_text('{"step": 4, "figures": {}, "files": {}}'),
    "another step's": lambda path: shutil.copyfile(path.parent.parent / "000002" / path.name, path),
    "no UTF-8": lambda path: path.write_bytes(b"\xff" * 20),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_with_a_damaged_index_is_passed_over_and_said(
    two_checkpoints: Checkpoints, damage: str
) -> None:
    DAMAGES[damage](two_checkpoints.folder / "000004" / "checkpoint.json")
    found = two_checkpoints.load_latest()
    assert found is not None
    assert found[0].step == found[1]["step"] == 2
    assert len(found[2]) == 1
    assert "000004" in found[2][0]


def write_index(folder: Path) -> None:
    """Make an index that fits whatever is there: as somebody would who wants a file to be read."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "checkpoint.json"
    }
    (folder / "checkpoint.json").unlink()
    write_json(folder / "checkpoint.json", {"step": 4, "figures": {}, "files": files})


class Intruder:
    """Unpickling this makes a folder named `trace`."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("trace",)


STATES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda path: torch.save({"a": Intruder()}, path), "more than tensors and plain values"),
    "a plain pickle": (
        lambda path: path.write_bytes(pickle.dumps(Intruder())),
        "nothing in it was run|damaged",
    ),
    "a list": (lambda path: torch.save([1, 2], path), "holds a list, not the state of a run"),
    "a number": (lambda path: torch.save(4, path), "holds a int, not the state of a run"),
    "text": (lambda path: path.write_text("state"), "damaged|nothing in it was run"),
    "nothing": (lambda path: path.write_bytes(b""), "damaged"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_is_none_is_passed_over_and_never_run(
    two_checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = STATES[kind]
    write(two_checkpoints.folder / "000004" / "state.pt")
    write_index(two_checkpoints.folder / "000004")
    found = two_checkpoints.load_latest()
    assert found is not None
    assert found[0].step == 2
    latest = two_checkpoints.find_latest()
    assert latest is not None
    with pytest.raises(TrainingError, match=message):
        two_checkpoints.load(latest)
    assert not Path("trace").exists()


def test_where_every_checkpoint_is_damaged_the_run_is_refused(two_checkpoints: Checkpoints) -> None:
    for folder in two_checkpoints.list_folders():
        (folder / "checkpoint.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"no checkpoint in .* is as it was written.*begin another one"):
        two_checkpoints.load_latest()


def test_a_checkpoint_of_an_earlier_version_has_an_index_without_a_digest_and_is_read(
    two_checkpoints: Checkpoints,
) -> None:
    path = two_checkpoints.folder / "000004" / "checkpoint.json"
    index = json.loads(path.read_text())
    del index["sha256"]
    path.write_text(json.dumps(index))
    found = two_checkpoints.load_latest()
    assert found is not None
    assert (found[0].step, found[2]) == (4, [])


# What the user put there stays

NEIGHBORS = ["000004-keep", "000002 copy", "4", "0002", "000099", ".part", ".keep.part", "best", "000002.bak"]


@pytest.mark.parametrize("name", NEIGHBORS)
def test_a_folder_that_the_user_put_beside_the_checkpoints_stays(
    two_checkpoints: Checkpoints, name: str
) -> None:
    shutil.copytree(two_checkpoints.folder / "000002", two_checkpoints.folder / name)
    before = rest(two_checkpoints.folder / name)
    for step in range(5, 11):
        two_checkpoints.save(step, {"step": step}, {"held-out loss": 0.1 / step}, write_extra)
    assert rest(two_checkpoints.folder / name) == before
    assert [one.step for one in two_checkpoints.list_complete()] == [8, 9, 10]
    assert not (two_checkpoints.folder / "000002").exists()


def test_a_link_among_the_checkpoints_stays_with_what_is_behind_it(two_checkpoints: Checkpoints) -> None:
    elsewhere = two_checkpoints.folder.parent / "elsewhere"
    (two_checkpoints.folder / "000002").rename(elsewhere)
    (two_checkpoints.folder / "000002").symlink_to(elsewhere)
    (two_checkpoints.folder / "000006").symlink_to(elsewhere)
    before = rest(elsewhere)
    for step in range(5, 11):
        two_checkpoints.save(step, {"step": step}, {"held-out loss": 0.1 / step}, write_extra)
    assert rest(elsewhere) == before
    assert (two_checkpoints.folder / "000002").is_symlink()
    assert [path.is_symlink() for path in two_checkpoints.folder.glob("000006-before-*")] == [True]
    assert [one.step for one in two_checkpoints.list_complete()] == [8, 9, 10]


@pytest.mark.parametrize("inside", ["notes.txt", "pictures/a.png", ".hidden"])
def test_what_the_user_put_into_a_checkpoint_stays(two_checkpoints: Checkpoints, inside: str) -> None:
    path = two_checkpoints.folder / "000002" / inside
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    for step in range(5, 11):
        two_checkpoints.save(step, {"step": step}, {"held-out loss": 0.1 / step}, write_extra)
    assert rest(two_checkpoints.folder / "000002") == {inside: b"mine"}
    assert [one.step for one in two_checkpoints.list_complete()] == [8, 9, 10]


@pytest.mark.parametrize(
    "kind", ["a folder without an index", "a file", "a damaged checkpoint", "a note in it"]
)
def test_what_stands_at_the_place_of_a_new_checkpoint_is_moved_aside(
    two_checkpoints: Checkpoints, kind: str
) -> None:
    place = two_checkpoints.folder / "000004"
    if kind == "a note in it":
        (place / "notes.txt").write_text("mine")
    elif kind == "a damaged checkpoint":
        (place / "checkpoint.json").write_text("{}")
    else:
        shutil.rmtree(place)
        place.write_text("mine") if kind == "a file" else shutil.copytree(
            two_checkpoints.folder / "000002", place
        )
        if kind != "a file":
            (place / "checkpoint.json").unlink()
    before = rest(place) if place.is_dir() else place.read_bytes()
    two_checkpoints.save(4, {"step": 4, "new": True}, {}, write_extra)
    (aside,) = two_checkpoints.folder.glob("000004-before-*")
    assert (rest(aside) if aside.is_dir() else aside.read_bytes()) == before
    latest = two_checkpoints.find_latest()
    assert latest is not None
    assert two_checkpoints.load(latest)["new"]


# In a run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_training.write_base(tmp_path_factory.mktemp("models"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_prompting, "BANDS", (0.5,))


def events(output: Path) -> str:
    lines = (json.loads(line) for line in (output / "log.jsonl").read_text().splitlines())
    return "\n".join(line["event"] for line in lines if "event" in line)


@pytest.mark.usefixtures("quick")
def test_a_resumed_run_passes_over_a_damaged_checkpoint_and_says_how_its_data_changed(
    models: Path, tmp_path: Path
) -> None:
    pictures = tiny_training.write_pictures(tmp_path / "pictures")
    short = tiny_training.config(models, pictures, tmp_path / "run", training__steps=4)
    whole = tiny_training.config(models, pictures, tmp_path / "run", training__steps=6)
    train_adapter(short)
    train_adapter(tiny_training.config(models, pictures, tmp_path / "run", training__steps=5), resume=True)
    assert "the data has changed" not in events(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000005" / "checkpoint.json").write_text("{")
    for number in range(6):
        (pictures / f"{number:03d}.png").unlink()
        (pictures / f"{number:03d}.txt").unlink()
    train_adapter(whole, resume=True)
    said = events(tmp_path / "run")
    assert "resumed at step 4" in said
    assert "passed over the checkpoint 000005: " in said
    assert "the data has changed since step 4: 8 samples to train on and 4 held out then, 4 samples" in said


@pytest.mark.parametrize(
    "damage", [name for name in DAMAGES if name not in ("another step's", "no state among the files")]
)
def test_a_damaged_configuration_beside_checkpoints_is_refused_with_the_remedy(
    tmp_path: Path, models: Path, damage: str
) -> None:
    config = tiny_training.config(models, tmp_path, tmp_path / "run")
    write_config(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000002").mkdir(parents=True)
    check_folder(config, resume=True)
    DAMAGES[damage](tmp_path / "run" / "config.json")
    with pytest.raises(ConfigError, match=r"config.json is not as it was written, .*delete it to go on"):
        check_folder(config, resume=True)
    (tmp_path / "run" / "config.json").unlink()
    check_folder(config, resume=True)


@pytest.mark.usefixtures("quick")
def test_data_whose_names_are_no_utf_8_is_trained_on_and_what_is_left_out_is_said(
    models: Path, tmp_path: Path
) -> None:
    pictures = tiny_training.write_pictures(tmp_path / os.fsdecode(b"p\xff"))
    for suffix in (b".png", b".txt"):
        (pictures / os.fsdecode(b"bad\xff" + suffix)).write_bytes(b"no picture")
    for steps in (2, 3):
        config = tiny_training.config(models, pictures, tmp_path / "run", training__steps=steps)
        train_adapter(config, resume=steps == 3)
    assert "bad\\udcff.png: its picture is not a picture" in events(tmp_path / "run")
    assert (tmp_path / "run" / "index.html").is_file()


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\udcff", "/".join(["a" * 200] * 30)])
def test_a_run_cannot_have_a_folder_of_that_name(tmp_path: Path, models: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be the folder of a run: its "):
        check_folder(tiny_training.config(models, tmp_path, tmp_path / name), resume=False)


def test_an_output_folder_that_cannot_be_made_is_named(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    config = tiny_training.config(models, tmp_path, tmp_path / "run")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="cannot be made: Read-only file system"):
        write_config(config, tmp_path / "run")
