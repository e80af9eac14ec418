"""What `--help` prints on a terminal of 80 columns can be copied: configurations, and words in brackets."""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.main import get_command

from conftest import Result
from imprompt.cli import app
from imprompt.training.config import parse_config

Imprompt = Callable[..., Result]
COLUMNS = 80
INDENT = "     "
"""In front of an example that stands apart: the paragraph's one space and four more."""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, and those below it, with what is typed for it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands(get_command(app)))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("TERMINAL_WIDTH", str(COLUMNS))


def examples(text: str) -> Iterator[str]:
    """Blocks of the help that look like TOML; a line that wraps is part of none, and so cuts its block."""
    blocks = re.findall(rf"(?:^(?:{INDENT}.*| *)\n)+", text, flags=re.MULTILINE)
    yield from (block for block in blocks if re.search(r"^\s*[\w.]+ = ", block, flags=re.MULTILINE))


def example_commands(text: str) -> Iterator[list[str]]:
    """The lines of a command's help that show how it is called, as words."""
    for line in text.splitlines():
        if line.strip().startswith("imprompt "):
            yield shlex.split(line)[1:]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words call, and the words after its name."""
    command: Any = COMMANDS[()]
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def words_in_brackets(command: Any) -> Iterator[str]:
    """What stands in square brackets in a command's help and its options', markup left out."""
    texts = [command.help or "", *(getattr(option, "help", "") or "" for option in command.params)]
    for text in texts:
        yield from re.findall(r"\[(?!/?bold\])[^\[\]]*\]", text)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_fits_the_terminal_and_every_configuration_in_it_is_toml(
    imprompt: Imprompt, path: tuple[str, ...]
) -> None:
    output = imprompt(*path, "--help").output
    assert max(map(len, output.splitlines())) <= COLUMNS
    for example in examples(output):
        assert tomllib.loads(example), example
    for word in words_in_brackets(COMMANDS[path]):
        assert word in output, f"{word} is taken for markup; write \\{word}"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_example_in_a_help_is_understood(path: tuple[str, ...]) -> None:
    for words in example_commands(COMMANDS[path].help or ""):
        command, rest = find_command(words)
        assert command.make_context("imprompt", rest)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_title_of_a_group_of_options_is_cut(imprompt: Imprompt, path: tuple[str, ...]) -> None:
    output = imprompt(*path, "--help").output
    for title in {getattr(option, "rich_help_panel", None) or "Options" for option in COMMANDS[path].params}:
        assert f"╭─ {title} ─" in output or title == "Options"


@pytest.mark.parametrize("words", ["-h", "generate -h", "mini draw -h"])
def test_the_short_option_shows_the_same_help(imprompt: Imprompt, words: str) -> None:
    assert imprompt(*words.split()) == imprompt(*words.replace("-h", "--help").split())


@pytest.mark.parametrize("words", ["variants", "train --presets"])
def test_tables_fit_the_terminal_and_lose_no_word(
    imprompt: Imprompt, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = imprompt(*words.split()).output
    assert max(map(len, narrow.splitlines())) <= COLUMNS
    monkeypatch.delenv("COLUMNS")
    wide = imprompt(*words.split()).output
    names = [line.split()[0] for line in wide.splitlines()]
    assert all(name in narrow for name in names)
    letters = [sorted("".join(text.split())) for text in (narrow, wide)]
    assert letters[0] == letters[1]


def test_the_configuration_in_the_help_of_train_is_accepted_as_it_is_printed(imprompt: Imprompt) -> None:
    (example,) = examples(imprompt("train", "--help").output)
    made = parse_config(tomllib.loads(example), "help")
    assert (made.preset, made.output, made.data.source) == ("sd15", "runs/cats", "pictures")
