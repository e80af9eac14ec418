"""The public names: in groups, complete, documented, and imported only when they are used."""

import inspect
import subprocess
import sys
import warnings
from operator import attrgetter

import pytest

import imprompt
from imprompt import errors

GROUPS = ["load_adapter", "Reference", "generate", "load_pipeline", "ImpromptError"]


def test_the_names_are_in_groups_and_unique() -> None:
    assert len(set(imprompt.__all__)) == len(imprompt.__all__)
    assert [name for name in imprompt.__all__ if name in GROUPS] == GROUPS


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


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("load_base", "load_pipeline"),
        ("load_job", "Job.from_toml"),
        ("read_job", "Job.from_image"),
    ],
)
def test_a_deprecated_name_warns_once_with_the_new_one(name: str, new: str) -> None:
    imprompt.__dict__.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"imprompt.{name} is deprecated; use imprompt.{new}$"):
        value = getattr(imprompt, name)
    assert value == attrgetter(new)(imprompt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(imprompt, name) == value
    assert name not in imprompt.__all__


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
