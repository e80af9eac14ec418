"""Measure the rooms of src/imprompt: their lines, the imports between them, circles, names.

    python scripts/rooms.py                    print the figures of this tree
    python scripts/rooms.py --write            write the list of rooms into CONTRIBUTING.md

The list of rooms and their order stands in scripts/rooms.toml, and nowhere else.
"""

import argparse
import ast
import re
import statistics
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "imprompt"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"(<!-- rooms -->\n).*?(<!-- /rooms -->\n)", re.DOTALL)

PARTICIPLES = re.compile(
    r"_?(asked|built|called|chosen|drawn|dumped|explained|fitted|found|given|kept|known|laid|laying|left|loaded"
    r"|made|measured|moved|named|painted|placed|put|read_out|said|seen|shown|shortened|styled|taken|told|written"
    r"|untold|finished|settled|doubts|silence|seat|crew|lost)(_\w+)?"
)
"""The rule for names of functions and classes: they do not begin with one of these words."""


def read_rooms() -> tuple[dict[str, str], dict[str, str]]:
    """Return the rooms of the flow and those on top of it, each with its description, in their order."""
    table = tomllib.loads((ROOT / "scripts" / "rooms.toml").read_text())
    return table["flow"], table["on_top"]


def room_of(path: Path, source: Path) -> str:
    """Return the room that a file belongs to: its first folder or its own name; `__main__` is of the cli."""
    name = path.relative_to(source).parts[0].removesuffix(".py")
    return "cli" if name == "__main__" else name


def list_imports(path: Path) -> Iterator[str]:
    """Yield the modules of imprompt that a file imports anywhere, by statement or by a literal name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "imprompt.relative"
        elif isinstance(node, ast.ImportFrom) and node.module == "imprompt":
            yield from (f"imprompt.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from (str(argument.value) for argument in node.args if is_text(argument))


def list_rooms(path: Path) -> set[str]:
    """Return the rooms that a file imports."""
    return {name.split(".")[1] for name in list_imports(path) if name.startswith("imprompt.")}


def arrows(source: Path) -> set[tuple[str, str]]:
    """Return (importer, imported) for every two rooms of which one imports the other."""
    return {
        (room_of(path, source), other)
        for path in source.rglob("*.py")
        for other in list_rooms(path)
        if other != room_of(path, source) and room_of(path, source) != "__init__"
    }


def circles(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs of rooms that reach each other."""
    reach: dict[str, set[str]] = defaultdict(set)
    for start, end in pairs:
        reach[start].add(end)
    for _ in reach:
        for start in list(reach):
            reach[start] |= set().union(*(reach[end] for end in list(reach[start]) if end in reach), set())
    return sorted((a, b) for a in reach for b in reach[a] if a < b and a in reach.get(b, set()))


def longest_chain(pairs: set[tuple[str, str]]) -> list[str]:
    """Return the longest chain of imports between rooms without a circle."""

    def chain(room: str, above: tuple[str, ...]) -> list[str]:
        ends = [end for start, end in pairs if start == room and end not in above]
        return [room, *max((chain(end, (*above, room)) for end in ends), key=len, default=[])]

    return max((chain(start, ()) for start, _ in pairs), key=len, default=[])


def definitions(source: Path) -> Iterator[tuple[Path, ast.AST]]:
    """Yield every function and class with its file."""
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield path, node


def is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    """Whether an expression is a literal text."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def count_lines(texts: Sequence[str]) -> int:
    """Count the lines of all texts together."""
    return sum(text.count("\n") for text in texts)


def count_code_lines(text: str) -> int:
    """Count the lines that are neither blank nor comment nor docstring."""
    docstring_lines = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and is_text(node.value)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = ((i, line.strip()) for i, line in enumerate(text.splitlines(), 1))
    return sum(bool(line) and line[0] != "#" and i not in docstring_lines for i, line in lines)


def double_classes(source: Path) -> dict[str, int]:
    """Return the public class names that stand in more than one place, with their number."""
    names = Counter(
        node.name
        for _, node in definitions(source)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return {name: count for name, count in sorted(names.items()) if count > 1}


def participle_names(source: Path) -> list[str]:
    """Return the functions and classes whose name begins with a participle or a private word."""
    return [
        f"{path.relative_to(source)}: {node.name}"
        for path, node in definitions(source)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and PARTICIPLES.fullmatch(node.name.lower())
    ]


def figures(source: Path) -> str:
    """Describe the tree: lines by room, arrows, circles, chain, functions, names."""
    files: dict[str, list[str]] = defaultdict(list)
    for path in sorted(source.rglob("*.py")):
        files[room_of(path, source)].append(path.read_text())
    texts = [text for group in files.values() for text in group]
    pairs, names = arrows(source), participle_names(source)
    chain = longest_chain(pairs)
    functions = [node for _, node in definitions(source) if isinstance(node, ast.FunctionDef)]
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for node in functions)
    median, p90 = statistics.median(lengths), lengths[len(lengths) * 9 // 10]
    lines = [
        f"rooms {len(files) - 1} · arrows {len(pairs)} · circles {circles(pairs) or 0}",
        f"longest chain {len(chain)}: {' → '.join(chain)}",
        f"lines {count_lines(texts)}, code {sum(map(count_code_lines, texts))}",
        *(f"  {room:12} {len(group):4} files {count_lines(group):6} lines" for room, group in files.items()),
        f"functions {len(lengths)}: median {median:g}, p90 {p90}",
        f"classes of one name: {double_classes(source) or 0}",
        f"names that begin with a participle: {len(names)}",
        *(f"  {name}" for name in names),
    ]
    return "\n".join(lines)


def rooms_block() -> str:
    """Return the list of rooms as CONTRIBUTING.md shows it."""
    flow, on_top = read_rooms()
    return "".join(f"    {name:12} {text}\n" for name, text in (flow | on_top).items())


def main() -> None:
    """Print the figures, or write the list of rooms."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--write", action="store_true", help="Write the list of rooms into CONTRIBUTING.md.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="Another tree to measure.")
    options = parser.parse_args()
    if options.write:
        block = rooms_block()
        text = BLOCK.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", CONTRIBUTING.read_text())
        CONTRIBUTING.write_text(text)
    else:
        print(figures(options.source))


if __name__ == "__main__":
    main()
