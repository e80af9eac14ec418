"""What README and docs tell people to type works: Python blocks run, `imprompt` lines run, scripts exist.

A block of Python after a comment that begins "<!-- not run" is only compiled. Lines of a `sh` block run one
by one, a `shell` block runs in order (see test_training_documents.py), and a `text` block does not run.
"""

import functools
import json
import os
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import imprompt
from imprompt import cli, errors
from imprompt.mini import WEIGHTS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ("pipelines.md", "variants.md")
WRITTEN = [ROOT / "CHANGELOG.md", *(path for path in DOCUMENTS if path.name not in GENERATED)]
DOCUMENTS += [WEIGHTS / "README.md"]


def blocks(language: str, *, runs: bool = True) -> list[tuple[str, str]]:
    """(document, text) of every fenced block in that language that the tests run, or that they do not."""
    fence = re.compile(rf"^(<!-- not run.*-->\n)?^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [(path.name, *match) for path in DOCUMENTS for match in fence.findall(path.read_text())]
    return [(name, text) for name, comment, text in found if bool(comment) != runs]


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


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr(imprompt, "generate", functools.partial(imprompt.generate, steps=4))
    cells = json.loads(Path("tour.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)


@pytest.mark.parametrize(("document", "code"), blocks("python", runs=False))
def test_other_python_blocks_name_what_exists(document: str, code: str) -> None:
    compile(code, document, "exec")
    names = set(re.findall(r"\bimprompt\.(\w+)", code))
    assert names <= set(imprompt.__all__)


@pytest.mark.parametrize(("document", "line"), [c for c in commands() if c[1].startswith("imprompt ")])
def test_imprompt_commands_run_and_print_no_noise(
    document: str, line: str, elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(shlex.split(line)[1:]) == 0
    assert [said for said in capfd.readouterr().err.splitlines() if not said.startswith("imprompt: ")] == []


@pytest.mark.parametrize(("document", "line"), [c for c in commands() if not c[1].startswith("imprompt ")])
def test_scripts_are_there(document: str, line: str) -> None:
    script = ROOT / shlex.split(line)[0]
    assert script.is_file()
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_are_there(path: Path) -> None:
    page = re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page)
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


def prose(page: str) -> list[str]:
    """The lines of a page that are neither code nor a table, without the targets of their links."""
    page = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in page.splitlines() if not line.startswith(("|", "    "))]
    return [re.sub(r"\]\([^)]*\)", "]", line) for line in lines]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_no_line_of_prose_is_longer_than_120_characters(path: Path) -> None:
    assert [line for line in prose(path.read_text()) if len(line) > 120] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_badges_are_true() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    badges = {path.stem: path.read_text() for path in (ROOT / "docs" / "badges").iterdir()}
    assert project["requires-python"].removeprefix(">=") + " or newer" in badges["python"]
    assert project["license"] in badges["license"]


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^::: imprompt\.(\w+)$", page, re.MULTILINE))
    assert listed == {*imprompt.__all__} - {*dir(errors)} | {"errors"}


def test_the_files_that_the_method_names_exist() -> None:
    names = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "method.md").read_text())
    assert len(names) > 5
    assert [
        name for name in names if not ((ROOT / name).exists() or (ROOT / "src" / "imprompt" / name).exists())
    ] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name + "/" + path.name)
def test_modules_and_functions_that_documents_name_exist(path: Path) -> None:
    names = re.findall(r"`(imprompt(?:\.\w+)+)", path.read_text())
    for name in names if path.name != "log.md" else []:  # the log is history
        pkgutil.resolve_name(name)
