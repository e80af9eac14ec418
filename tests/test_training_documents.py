"""What the pages on training say is so: settings, configurations, commands, messages."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from settings_tables import BEGIN, END, build_tables, insert_tables

from imprompt import cli
from imprompt.training.config import parse_config
from imprompt.training.objectives import image_prompting
from imprompt.training.presets import merge_settings
from imprompt.training.synonyms import COUNTERPARTS

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "training.md").read_text()
SETTINGS = (ROOT / "docs" / "training-settings.md").read_text()
MESSAGES = (ROOT / "docs" / "training-messages.md").read_text()
PAGES = [GUIDE, (ROOT / "docs" / "scale.md").read_text(), (ROOT / "README.md").read_text()]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_page_of_settings_is_current() -> None:
    command = "python scripts/settings_tables.py docs/training-settings.md"
    assert insert_tables(SETTINGS) == SETTINGS, command


def test_the_table_replaces_what_stands_between_the_marks_only() -> None:
    page = insert_tables(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert page == f"before\n{BEGIN}\n\n{build_tables()}\n{END}\nafter\n"


def test_every_setting_says_what_it_is() -> None:
    rows = [line for line in build_tables().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_page_has_the_words_of_other_trainers_right() -> None:
    table = SETTINGS.partition("## In the words")[2]
    rows = re.findall(r"^\| (`.+`) \| (`.+`) \|$", table, re.MULTILINE)
    assert len(rows) > 20
    for ours, theirs in rows:
        keys = re.findall(r"`([\w.]+)`", ours)
        assert all(COUNTERPARTS[word] in keys for word in re.findall(r"`(\w+)`", theirs)), theirs


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "toml")])
def test_configurations_in_documents_are_sound(text: str) -> None:
    least = {"preset": "sd15", "output": "run", "data": {"source": "pictures"}}
    parse_config(merge_settings(least, tomllib.loads(text)), "a document")


@pytest.mark.slow
def test_the_quick_start_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("docs", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_prompting, "BANDS", (0.5,))  # how a look is taken is tested elsewhere
    (block,) = blocks(GUIDE, "shell")
    for line in block.splitlines():
        assert cli.main(shlex.split(line)[1:]) == 0, line
    assert (tmp_path / "blue-hair.png").exists()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["cache", "examples"]
    made = {path.name for path in (tmp_path / "runs" / "examples").iterdir()}
    listed = re.findall(r"^ {4}runs/cats/([\w.]+)", GUIDE, re.MULTILINE)
    assert made == set(listed)
    assert (tmp_path / "runs" / "examples" / "checkpoints" / "000035").is_dir()


def sentences() -> Iterator[str]:
    """Every string in the code, "…" for what is put into it."""
    for path in (ROOT / "src" / "imprompt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
                )


def test_messages_that_their_page_explains_are_those_of_the_code() -> None:
    said = list(sentences())
    messages = re.findall(r"^\| `([^`]+)` \|", MESSAGES, re.MULTILINE)
    assert len(messages) > 10
    missing = [m for m in messages if not any(words_in_order(m, sentence) for sentence in said)]
    assert not missing


def words_in_order(message: str, sentence: str) -> bool:
    """Whether a sentence has the message's fixed parts, one after another."""
    at = 0
    for part in (part.strip(" '`") for part in message.split("…")):
        at = sentence.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True
