"""Names of a package that are imported when they are first used, so that importing the package is quick.

The package imports them for type checkers only, in a block `if TYPE_CHECKING:`. That block is the only list.
"""

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_lazy_names(file: str) -> dict[str, str]:
    """Return name → module of everything that is imported in the first `if` block of a package's file."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def import_lazy_name(package: str, modules: Mapping[str, str], name: str) -> Any:
    """Return a name of a package: a submodule if its module is the package itself, else an object in it.

    Raises:
        AttributeError: the package has no such name
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    if modules[name] == package:
        return importlib.import_module(f"{package}.{name}")
    return getattr(importlib.import_module(modules[name]), name)
