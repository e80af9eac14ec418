"""The import order is the flow: a stage knows earlier stages only, and the layers above not each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "imprompt"

FLOW = (
    "errors",
    "runtime",
    "files",
    "output",
    "environment",
    "settings",
    "workers",
    "progress",
    "hub",
    "pipeline_results",
    "pages",
    "image",
    "crop",
    "encoder",
    "faces",
    "projection",
    "embeddings",
    "attention",
    "layers",
    "layer_weights",
    "running",
    "laying",
    "callers",
    "hooks",
    "attachment",
    "reference",
    "encoding",
    "conditions",
    "matrices",
    "adapter",
    "checkpoint",
    "injection",
    "job",
    "generation",
    "mini",
)
"""Each may import those before it, and itself."""

LAYERS = {
    "training": FLOW,
    "evaluation": FLOW,
    "serving": FLOW,
    "lab": (*FLOW, "training", "evaluation"),
    "cli": (*FLOW, "training", "evaluation", "serving", "lab"),
}
"""What stands on the flow, and what each may import beside itself."""


def part(path: Path) -> str:
    """The stage or layer that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The parts of imprompt that a file imports anywhere, in functions too, by statement or by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "imprompt" else [f"imprompt.{x.name}" for x in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["imprompt.relative"]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("imprompt."))


def allowed(name: str) -> set[str]:
    before = LAYERS[name] if name in LAYERS else FLOW[: FLOW.index(name)]
    return {*before, name}


def forbidden(source: Path) -> list[str]:
    return [
        f"{path.relative_to(source)} imports {name}"
        for path in sorted(source.rglob("*.py"))
        if part(path) != "__init__"
        for name in imported(path)
        if name not in allowed(part(path))
    ]


def test_every_file_has_its_place_in_the_flow() -> None:
    parts = {part(path) for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert parts <= {*FLOW, *LAYERS}
    assert len(parts) > 12


def test_imports_follow_the_flow() -> None:
    assert forbidden(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("image.py", "from imprompt.adapter import ImagePromptAdapter"),
        ("image.py", "def f():\n    import imprompt.mini"),
        ("training/loop.py", "from imprompt import evaluation"),
        ("mini/__init__.py", "from imprompt.training.loop import train"),
        ("image.py", "from . import errors"),
    ],
)
def test_a_planted_violation_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, line: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    monkeypatch.setattr("test_layering.SOURCE", tmp_path)
    assert len(forbidden(tmp_path)) == 1


def test_no_file_is_named_after_nothing() -> None:
    empty = {"utils", "helpers", "helper", "common", "manager", "wrapper", "misc"}
    assert not {path.stem for path in SOURCE.rglob("*.py")} & empty
