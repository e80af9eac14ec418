"""What `--help` prints on a terminal of 80 columns can be copied: configurations, and words in brackets."""

import re
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


def test_the_configuration_in_the_help_of_train_is_accepted_as_it_is_printed(imprompt: Imprompt) -> None:
    (example,) = examples(imprompt("train", "--help").output)
    made = parse_config(tomllib.loads(example), "help")
    assert (made.preset, made.output, made.data.source) == ("sd15", "runs/cats", "pictures")
