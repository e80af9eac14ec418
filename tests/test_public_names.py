"""The public names: sorted, complete, documented, and imported only when they are used."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import imprompt
from imprompt import errors


def test_the_names_are_sorted_and_unique() -> None:
    assert imprompt.__all__ == sorted(set(imprompt.__all__))


@pytest.mark.parametrize("name", imprompt.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(imprompt, name))


def test_every_error_is_public() -> None:
    ours = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert ours <= set(imprompt.__all__)
    assert all(issubclass(getattr(errors, name), errors.ImpromptError) for name in ours)


def test_every_error_is_in_the_tree_of_its_module() -> None:
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in vars(errors) if name[0].isupper())


def test_what_type_checkers_see_is_what_there_is() -> None:
    tree = ast.parse(Path(imprompt.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(imprompt.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'imprompt' has no attribute 'frob'"):
        _ = imprompt.frob


def test_dir_lists_the_names() -> None:
    assert set(imprompt.__all__) <= set(dir(imprompt))


def test_importing_imprompt_alone_imports_nothing_heavy() -> None:
    check = "import sys, imprompt; print({'torch', 'numpy', 'PIL', 'diffusers'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    message = "this needs tokenizers, which is not installed: pip install 'imprompt[mini]'"
    assert str(errors.MissingExtra("tokenizers", "mini")) == message
