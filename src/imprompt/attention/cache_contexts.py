"""The names that a pipeline gives to the calls of its transformer: `transformer.cache_context("uncond")`.

Pipelines with true guidance call a transformer twice in a step. Most of diffusers' pipelines name the calls
"cond" and "uncond", for the caches of diffusers (models/cache_utils.py), and so may sampling loops of one's
own. While an adapter is attached, a stand-in notes the name, in each thread, and passes it on.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from imprompt.attention.diffusers_internals import Branch

PLACE = "cache_context"

BRANCH_OF_CONTEXT: dict[str | None, Branch] = {"cond": "positive", "uncond": "negative"}


class NamedContexts:
    """Stands for a transformer's `cache_context`; a plain object, which no `state_dict` contains.

    Args:
        transformer: the transformer; a copy of it has a copy of this, without owners

    Attributes:
        owners: the owners of attached adapters
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer: Any = transformer
        self.owners: list[object] = []
        self._current = threading.local()

    @property
    def name(self) -> str | None:
        """The name of the innermost context in this thread."""
        return getattr(self._current, "name", None)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle contains: the copied transformer alone."""
        return {"transformer": self.transformer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["transformer"])

    @contextmanager
    def __call__(self, name: str, **options: Any) -> Iterator[None]:
        """Name the calls of the transformer inside this context."""
        before, self._current.name = self.name, name
        try:
            with type(self.transformer).cache_context(self.transformer, name, **options):
                yield
        finally:
            self._current.name = before


def watch_contexts(transformer: nn.Module, owner: object) -> None:
    """Note the names of a transformer's contexts, until no owner needs them."""
    if hasattr(type(transformer), PLACE):
        contexts = vars(transformer).setdefault(PLACE, NamedContexts(transformer))
        contexts.owners.append(owner)


def unwatch_contexts(transformer: nn.Module, owner: object) -> None:
    """Undo `watch_contexts`, once no other owner needs it."""
    contexts = vars(transformer).get(PLACE)
    if isinstance(contexts, NamedContexts) and owner in contexts.owners:
        contexts.owners.remove(owner)
        if not contexts.owners:
            del vars(transformer)[PLACE]


def find_context_name(denoiser: nn.Module) -> str | None:
    """Return the name of the context in which a denoiser is being called; None without one."""
    contexts = vars(denoiser).get(PLACE)
    return contexts.name if isinstance(contexts, NamedContexts) else None
