"""What README and docs tell people to type works: Python blocks run, `imprompt` lines run, scripts exist."""

import os
import re
import shlex
from pathlib import Path

import pytest

from imprompt import cli
from imprompt.mini import WEIGHTS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [WEIGHTS / "README.md"]


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, text) of every fenced block in that language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(path.name, text) for path in DOCUMENTS for text in fence.findall(path.read_text())]


def commands() -> list[tuple[str, str]]:
    """(document, line) of every command in a shell block, without its comment."""
    lines = [(name, line.split("#")[0].strip()) for name, text in blocks("sh") for line in text.splitlines()]
    return [(name, line) for name, line in lines if line]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has the project's docs in it and nothing else, as the place to run things in."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("document", "code"), blocks("python"))
def test_python_blocks_run(document: str, code: str, elsewhere: Path) -> None:
    exec(compile(code, document, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("document", "line"), [c for c in commands() if c[1].startswith("imprompt ")])
def test_imprompt_commands_run(document: str, line: str, elsewhere: Path) -> None:
    assert cli.main(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize(("document", "line"), [c for c in commands() if not c[1].startswith("imprompt ")])
def test_scripts_are_there(document: str, line: str) -> None:
    script = ROOT / shlex.split(line)[0]
    assert script.is_file()
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_are_there(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing
