"""What a run says of itself: log, terminal, page and card."""

import io
import json
import math
import re
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from imprompt.errors import ConfigError, MissingExtra, OutputError, TrainingError
from imprompt.training.config import parse_config
from imprompt.training.watching import Display, RunLog, write_card, write_environment, write_page
from imprompt.training.watching.history import format_duration, read_history, strip_folders
from imprompt.training.watching.verdict import judge_adapter
from page_reading import read_page


def run_folder(
    folder: Path,
    figures: Mapping[str, Sequence[float]],
    *,
    every: int = 10,
    finished: bool = False,
    told: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of a run as the trainer leaves it, with given figures at steps 0, every, ..."""
    (folder / "samples").mkdir(parents=True)
    count = max(map(len, figures.values()), default=1)
    steps = (count - 1) * every
    settings = {"preset": "mini", "output": "runs/cats", "training": {"steps": max(steps, 1)}}
    config = parse_config({**settings, **(told or {})}, "a test")
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    lines = [{"step": 0, "time": 100.0, "event": "started"}]
    for index in range(count):
        at = {name: values[index] for name, values in figures.items() if index < len(values)}
        lines.append({"step": index * every, "time": 100.0 + index, **at})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        save_file({"image_proj.proj.weight": torch.zeros(3, 5)}, folder / "adapter.safetensors")
    return folder


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# The log


@settings(max_examples=15)
@given(figure=st.floats(allow_subnormal=False), step=st.integers(0, 10**9))
def test_a_figure_is_logged_with_six_digits_or_as_null(
    tmp_path_factory: pytest.TempPathFactory, figure: float, step: int
) -> None:
    with RunLog(tmp_path_factory.mktemp("run"), config={}) as log:
        log.write_figures(step, {"loss": figure})
    (line,) = read_log(log.folder)
    assert line["step"] == step
    if math.isfinite(figure):
        assert line["loss"] == pytest.approx(figure, rel=1e-5, abs=0)
        assert len(f"{line['loss']:.15g}".lstrip("-0.").split("e")[0].replace(".", "").rstrip("0")) <= 6
    else:
        assert line["loss"] is None


@settings(max_examples=10)
@given(steps=st.lists(st.integers(0, 40), min_size=1), at=st.integers(1, 40))
def test_a_resumed_run_forgets_what_was_said_of_later_steps(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], at: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with RunLog(folder, config={}) as log:
        for step in sorted(steps):
            log.write_figures(step, {"loss": step / 7})
            log.write_picture(step, Image.new("RGB", (4, 4)), "")
    before = read_log(folder)
    RunLog(folder, config={}, from_step=at).close()
    assert read_log(folder) == [line for line in before if line["step"] <= at]
    drawn = {int(path.stem) for path in (folder / "samples").iterdir()}
    assert drawn == {step for step in steps if step <= at}


def test_a_new_run_in_an_old_folder_begins_a_new_log(tmp_path: Path) -> None:
    with RunLog(tmp_path, config={}) as log:
        log.write_event(0, "started")
    with RunLog(tmp_path, config={}) as log:
        log.write_event(0, "started anew")
    assert [line["event"] for line in read_log(tmp_path)] == ["started anew"]


def test_the_line_that_a_killed_run_left_unfinished_is_dropped_at_resume(tmp_path: Path) -> None:
    with RunLog(tmp_path, config={}) as log:
        log.write_figures(10, {"loss": 0.5})
    with log.path.open("a") as file:
        file.write('{"step": 20, "ti')
    assert read_history(tmp_path).finite("loss") == [(10, 0.5)]
    with RunLog(tmp_path, config={}, from_step=10) as log:
        log.write_figures(20, {"loss": 0.25})
    assert [line["loss"] for line in read_log(tmp_path)] == [0.5, 0.25]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with RunLog(tmp_path, config={}) as log:
        log.path.symlink_to("/dev/full")
        with pytest.raises(OutputError, match=r"log\.jsonl cannot be written: No space left"):
            log.write_event(1, "started")


def test_a_grid_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunLog(tmp_path, config={}) as log:
        path = log.write_picture(300, Image.new("RGB", (8, 8), "red"), "λ = 1")
        before = path.read_bytes()

        def half(self: Image.Image, file: Path, *args: Any, **options: Any) -> None:
            file.write_bytes(before[:20])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", half)
        with pytest.raises(OutputError, match="No space left"):
            log.write_picture(300, Image.new("RGB", (8, 8), "blue"), "")
    assert path == tmp_path / "samples" / "000300.png"
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["000300.png"]
    with Image.open(path) as picture:
        assert picture.info["Description"] == "λ = 1"


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (10, 2.0)):
        with RunLog(tmp_path, config={}, from_step=start) as log:
            for step in (10, 20, 30)[start // 10 :]:
                log.write_figures(step, {"loss": value})
            log.write_picture(30, Image.new("RGB", (4, 4)), "")
            log.write_event(30, "finished")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(seen.step, seen.value) for seen in board.Scalars("loss")] == [(10, 1.0), (20, 2.0), (30, 2.0)]
    assert board.Tags()["images"] == ["samples"]


def test_without_tensorboard_the_command_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"imprompt\[train\]"):
        RunLog(tmp_path, config={})


class StandIn(types.ModuleType):
    """In place of the package of Weights & Biases: remembers what it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told: list[Any] = []

    def init(self, **options: Any) -> "StandIn":
        self.told.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.told.append((name, step_metric))

    def log(self, figures: Mapping[str, Any]) -> None:
        self.told.append(dict(figures))

    def Image(self, picture: Image.Image, caption: str) -> tuple[tuple[int, int], str]:
        return picture.size, caption

    def finish(self) -> None:
        self.told.append("finished")


def test_weights_and_biases_gets_configuration_figures_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", module := StandIn())
    with RunLog(tmp_path / "cats", config={"preset": "mini"}, wandb="adapters") as log:
        log.write_figures(20, {"loss": 0.5})
        log.write_picture(20, Image.new("RGB", (4, 2)), "step 20")
    begun, metric, *reported = module.told
    assert (begun["project"], begun["name"], begun["config"]) == ("adapters", "cats", {"preset": "mini"})
    assert metric == ("*", "step")
    assert reported == [
        {"step": 20, "loss": 0.5},
        {"step": 20, "samples": ((4, 2), "step 20")},
        "finished",
    ]


def test_a_project_without_its_package_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        RunLog(tmp_path, config={}, wandb="adapters")


def test_the_environment_says_what_ran_and_not_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "/opt/x/bin/imprompt",
        "train",
        f"{tmp_path}/a b.toml",
        "--set",
        "data.root=/home/eve/pictures",
    ]
    monkeypatch.setattr(sys, "argv", command)
    text = write_environment(tmp_path).read_text()
    facts = json.loads(text)
    assert facts["command"] == "imprompt train 'a b.toml' --set data.root=pictures"
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert "/home" not in text
    assert str(tmp_path) not in text


# The terminal


@settings(max_examples=40)
@given(width=st.integers(1, 200), step=st.integers(0, 900), loss=st.floats(allow_nan=True))
def test_the_bar_fits_into_any_terminal(width: int, step: int, loss: float) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    display = Display(900, 0, console)
    display.show_figures(step, {"loss": loss, "samples/s": 94.2, "waiting": 0.02, "skipped steps": 3})
    lines = console.render_lines(display.line, pad=False)
    assert len(lines) == 1
    assert sum(segment.cell_length for segment in lines[0]) < max(width, 2)


def test_a_wide_terminal_says_everything() -> None:
    file = io.StringIO()
    with Display(900, 300, Console(file=file, width=150, force_terminal=True)) as display:
        display.show_figures(600, {"loss": 0.1234, "samples/s": 94.2, "waiting": 0.02, "skipped steps": 3})
    said = file.getvalue()
    for word in ("600/900", "left", "loss 0.1234", "94.2 samples/s", "waiting 2 %", "3 skipped", "━"):
        assert word in said


def test_without_a_terminal_there_is_a_plain_line_for_every_log() -> None:
    file = io.StringIO()
    with Display(900, 0, Console(file=file, width=20)) as display:
        display.show_event(0, "started [down.0]")
        for step in range(1, 50):
            display.advance(step)
        display.show_figures(50, {"loss": 0.25, "waiting": 0.5})
        display.show_figures(50, {"held-out loss": 0.125, "gap to shuffled": -0.001})
    started, training, looked = file.getvalue().splitlines()
    assert started == "step 0  started [down.0]"
    assert re.fullmatch(r"step 50/900  \d:\d\d:\d\d left  loss 0\.2500  waiting 50 %", training)
    assert looked == "step 50  held-out loss 0.125  gap to shuffled -0.001"


# Reading a run


def test_the_time_between_a_stop_and_the_resume_is_not_counted(tmp_path: Path) -> None:
    with RunLog(tmp_path, config={}):
        pass
    moments = [(0, 0, "started"), (10, 60, "interrupted"), (10, 9000, "resumed at step 10"), (20, 9030, "")]
    lines = [{"step": step, "time": time, "event": event} for step, time, event in moments]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_history(tmp_path).seconds == 90


def test_of_two_lines_on_one_step_the_later_counts(tmp_path: Path) -> None:
    lines = [{"step": 10, "time": 1, "loss": 0.5}, {"step": 10, "time": 2, "loss": 0.25}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_history(tmp_path).series == {"loss": [(10, 0.25)]}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("saved in /home/eve/runs/cats/000500.", "saved in 000500."),
        ("/data/shards/{00..99}.tar", "{00..99}.tar"),
        ("C:\\pictures\\cats", "cats"),
        ("runs/cats", "runs/cats"),
        ("94 samples/s", "94 samples/s"),
        ("h94/IP-Adapter:models/image_encoder", "h94/IP-Adapter:models/image_encoder"),
        ("https://arxiv.org/abs/2308.06721", "https://arxiv.org/abs/2308.06721"),
    ],
)
def test_only_absolute_paths_lose_their_folders(text: str, kept: str) -> None:
    assert strip_folders(text) == kept


@pytest.mark.parametrize(
    ("seconds", "words"), [(42, "42 s"), (1234, "21 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")]
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


# The verdict


@pytest.mark.parametrize(
    ("gaps", "trend", "words"),
    [
        ([], "unknown", "There is no verdict yet"),
        ([0.0, 0.0001, -0.0002, 0.0003], "none", "does not read its reference"),
        ([0.0, 0.01], "early", "too early"),
        ([0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07], "rising", "this gap is rising"),
        ([0.0, 0.03, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05], "level", "no longer rises"),
        ([0.0, 0.03, 0.05, 0.06, 0.06, 0.05, 0.04, 0.03], "falling", "look at earlier checkpoints"),
        ([0.0, 0.01, -0.02, -0.03], "none", "lowers the loss by 0.03 (12.0 % of the held-out loss)"),
    ],
)
def test_the_verdict_follows_the_gap(tmp_path: Path, gaps: list[float], trend: str, words: str) -> None:
    figures = {"held-out loss": [0.25] * max(len(gaps), 1), "gap to shuffled": gaps}
    verdict = judge_adapter(read_history(run_folder(tmp_path / "cats", figures)))
    assert verdict.trend == trend
    assert words in verdict.sentence


def test_the_verdict_on_two_held_out_pictures_ranks_no_adapters(tmp_path: Path) -> None:
    figures = {
        "held-out loss": [0.25],
        "gap to shuffled": [0.01],
        "held-out samples": [2],
        "gap's standard error": [0.02],
    }
    sentence = judge_adapter(read_history(run_folder(tmp_path / "cats", figures))).sentence
    assert "2 held-out samples)" in sentence
    assert "±" not in sentence
    assert "do not rank adapters: compare the pictures" in sentence


def test_the_verdict_has_an_interval_and_the_similarity_of_the_pictures(tmp_path: Path) -> None:
    figures = {
        "held-out loss": [0.25],
        "gap to shuffled": [0.01],
        "held-out samples": [64],
        "gap's standard error": [0.001],
        "similarity to reference": [0.934],
        "similarity to a shuffled reference": [0.044],
    }
    sentence = judge_adapter(read_history(run_folder(tmp_path / "cats", figures))).sentence
    assert "64 held-out samples, ± 0.00196" in sentence
    assert "a similarity of 0.93 to their reference and 0.04 to another one" in sentence
    assert "rank" not in sentence


# The page


FIGURES = {
    "loss": [0.5, 0.25, math.nan, 0.125],
    "held-out loss": [0.5, 0.25, 0.2, 0.125],
    "held-out loss at 100": [0.75, 0.5, 0.25, 0.25],
    "held-out loss at 900": [0.5, 0.25, 0.125, 0.125],
    "gap to shuffled": [0.0, 0.01, 0.02, 0.04],
    "learning rate": [0.0, 1e-4, 1e-4, 0.0],
    "samples/s": [90.0, 91.0, 92.0, 93.0],
    "waiting": [0.0, 0.5, 0.01, 0.0],
    "skipped steps": [0, 0, 1, 1],
    "retrieval": [0.1, 0.2, 0.3, 0.4],
}


def with_grids(folder: Path, count: int, size: tuple[int, int] = (60, 20)) -> Path:
    chance = np.random.default_rng(0)
    for index in range(count):
        noise = chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "samples" / f"{10 * index:06d}.png", compress_level=1)
    return folder


def test_a_page_shows_figures_curves_grids_settings_and_commands(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "cats", FIGURES, told={"watch": {"prompts": ["", "<script>"]}})
    write_environment(with_grids(folder, 4))
    path = write_page(folder)
    page = read_page(path)
    words = page.words
    assert path == folder / "index.html"
    assert len(page.sources) == 4
    for said in (
        "The adapter reads its reference",
        "Step 30 of 30",
        "samples seen",
        "Gap in held-out loss",
        "t = 900",
        "Waiting for data",
        "retrieval",
        "without a prompt, then with “<script>”",
        "imprompt train CONFIG.toml --resume latest",
        "watch.prompts",
    ):
        assert said in words
    assert "<script>”" not in path.read_text()


def test_a_page_can_be_made_of_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    words = read_page(write_page(tmp_path)).words
    assert "There is no verdict yet" in words


def test_the_page_of_a_finished_run_says_so_and_how_to_draw(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "cats", FIGURES, finished=True)
    words = read_page(write_page(folder)).words
    assert "Finished: step 30 of 30" in words
    assert "imprompt generate REFERENCE.png --adapter runs/cats/adapter.safetensors" in words
    assert "--resume" not in words


def test_the_page_of_a_stopped_run_draws_with_its_newest_checkpoint(tmp_path: Path) -> None:
    base = {"model": "owner/model", "image_encoder": "owner/clip:vision"}
    folder = run_folder(tmp_path / "cats", FIGURES, told={"base": base})
    for step in ("000010", "000020"):
        (folder / "checkpoints" / step).mkdir(parents=True)
        (folder / "checkpoints" / step / "adapter.safetensors").touch()
    assert (
        "imprompt generate REFERENCE.png --base owner/model --image-encoder owner/clip:vision "
        "--adapter runs/cats/checkpoints/000020/adapter.safetensors"
    ) in read_page(write_page(folder)).words


def test_no_absolute_path_gets_into_a_page_or_a_card(tmp_path: Path) -> None:
    told = {"output": "/home/eve/runs/cats", "data": {"source": "/home/eve/pictures"}}
    folder = run_folder(tmp_path / "cats", FIGURES, told=told, finished=True)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 30, "time": 1, "event": "saved in /home/eve/runs/cats/000030"}))
    for path in (write_page(folder), write_card(folder)):
        assert "/home" not in path.read_text()
        assert "eve/" not in path.read_text()
        assert "pictures" in path.read_text()


def test_a_small_page_is_small_whatever_the_grids(tmp_path: Path) -> None:
    folder = with_grids(run_folder(tmp_path / "cats", FIGURES), 12, (500, 300))
    path = write_page(folder, small=True)
    assert path.name == "index-small.html"
    assert path.stat().st_size < 600_000
    page = read_page(path)
    assert len(page.sources) == 8
    assert all(source.startswith("data:image/jpeg") for source in page.sources)
    assert "8 of 12 grids are here" in page.words
    assert 'data-step="0"' in path.read_text()
    assert 'data-step="110"' in path.read_text()


# The card


def test_a_card_is_read_by_the_hub_and_its_code_compiles(tmp_path: Path) -> None:
    base = {"model": "owner/model", "image_encoder": "owner/clip:vision"}
    folder = run_folder(tmp_path / "cats", FIGURES, told={"base": base}, finished=True)
    write_environment(folder)
    text = write_card(folder).read_text()
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "owner/model"
    assert data["library_name"] == "diffusers"
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
    for said in (
        "15 trained parameters",
        '"owner/clip", subfolder="vision"',
        "| held-out loss | 0.125 | 0.125, at step 30 |",
        "30 × 64 = 1,920 samples",
        f"torch {torch.__version__}",
    ):
        assert said in text


def test_a_folder_is_no_base_model_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    told = {"base": {"model": "models/mine"}}
    folder = run_folder(tmp_path / "cats", FIGURES, told=told, finished=True)
    assert "base_model" not in ModelCard(write_card(folder).read_text()).data.to_dict()


def test_there_is_no_card_of_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no adapter\.safetensors"):
        write_card(run_folder(tmp_path / "cats", FIGURES))
    assert not (tmp_path / "cats" / "README.md").exists()
