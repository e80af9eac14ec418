"""Loading models of other libraries by name: parse the name, quiet the loggers, explain a failure."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imprompt.errors import ImpromptError, UnknownModel

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class ModelSource(NamedTuple):
    """Where a model is: a local folder, or a repository of the hub and a folder in it."""

    name: str
    subfolder: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`."""
        return {"subfolder": self.subfolder} if self.subfolder else {}

    @property
    def is_local(self) -> bool:
        """Whether the model is a local folder."""
        return Path(self.name).is_dir()


def parse_source(source: str | Path) -> ModelSource:
    """Split "owner/name:subfolder" into repository and folder; a local folder is returned as it is."""
    if Path(source).is_dir():
        return ModelSource(str(source))
    repository, _, subfolder = str(source).partition(":")
    return ModelSource(repository, subfolder)


def is_embedded(name: str) -> bool:
    """Whether a base model's name means the embedded one: "mini" or "mini:STYLE"."""
    return name.partition(":")[0] == "mini"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def explain_failure(problem: str, kind: type[ImpromptError] = UnknownModel) -> Iterator[None]:
    """Turn every error inside this context into one sentence: other libraries may raise anything.

    Args:
        problem: what is wrong if loading fails, e.g. "the ControlNet x cannot be loaded"
        kind: the error to raise

    Raises:
        ImpromptError: loading failed, an error of this kind; the message is the problem and the first line
            of the reason
    """
    try:
        yield
    except ImpromptError:
        raise
    except Exception as error:
        raise kind(f"{problem}: {first_line(error)}") from error


@contextlib.contextmanager
def ignore_own_deprecations() -> Iterator[None]:
    """Ignore what other libraries warn about in their own calls of each other, inside this context.

    diffusers 0.42 passes an argument to the hub's client that the client has deprecated.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.* is deprecated")
        yield


@contextlib.contextmanager
def log_errors_only(*libraries: str) -> Iterator[None]:
    """Let the loggers of other libraries report errors only, inside this context.

    Changing a level empties the caches of all loggers, so a level that is high enough stays.
    """
    loggers = [logging.getLogger(name) for name in libraries]
    loggers = [logger for logger in loggers if logger.level < logging.ERROR]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
