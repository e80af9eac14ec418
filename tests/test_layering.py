"""The import order is the flow: a room knows earlier rooms only, and those on top of it not each other."""

from pathlib import Path

import pytest
import rooms

FLOW, ON_TOP = (list(names) for names in rooms.read_rooms())


def allowed(name: str) -> set[str]:
    """The rooms that a room may import: those before it in the flow, and itself."""
    if name not in ON_TOP:
        return {*FLOW[: FLOW.index(name) + 1]}
    beside = {"lab": {"training", "evaluation"}, "cli": set(ON_TOP)}.get(name, set())
    return {*FLOW, name, *beside}


def forbidden(source: Path) -> list[str]:
    return [
        f"{path.relative_to(source)} imports {name}"
        for path in sorted(source.rglob("*.py"))
        if rooms.room_of(path, source) != "__init__"
        for name in sorted(rooms.list_rooms(path))
        if name not in allowed(rooms.room_of(path, source))
    ]


def test_every_file_has_its_room() -> None:
    found = {rooms.room_of(path, rooms.SOURCE) for path in rooms.SOURCE.rglob("*.py")} - {"__init__"}
    assert found == {*FLOW, *ON_TOP}


def test_imports_follow_the_flow() -> None:
    assert forbidden(rooms.SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("inputs/image.py", "from imprompt.adapter.module import ImagePromptAdapter"),
        ("inputs/image.py", "def f():\n    import imprompt.mini"),
        ("inputs/image.py", "import importlib\n\nimportlib.import_module('imprompt.mini').pipeline()"),
        ("training/loop.py", "from imprompt import evaluation"),
        ("mini/__init__.py", "from imprompt.training.loop import train"),
        ("inputs/image.py", "from . import errors"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    assert len(forbidden(tmp_path)) == 1


def test_no_room_reaches_itself_through_another() -> None:
    assert rooms.circles(rooms.arrows(rooms.SOURCE)) == []
    assert rooms.circles({("a", "b"), ("b", "c"), ("c", "a")}) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_no_two_classes_have_one_name_and_no_name_begins_with_a_participle() -> None:
    assert rooms.double_classes(rooms.SOURCE) == {}
    assert rooms.participle_names(rooms.SOURCE) == []


def test_contributing_lists_the_rooms_in_their_order() -> None:
    assert rooms.rooms_block() in (rooms.ROOT / "CONTRIBUTING.md").read_text()


def test_no_file_is_named_after_nothing() -> None:
    empty = {"utils", "helpers", "helper", "common", "manager", "wrapper", "misc"}
    assert not {path.stem for path in rooms.SOURCE.rglob("*.py")} & empty
