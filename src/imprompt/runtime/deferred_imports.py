"""Modules that are imported when they are first used, though other libraries import them at once.

diffusers and transformers import parts of SciPy, where it is installed, for samplers and losses that imprompt
rarely needs. That is a seventh of the time in which `imprompt serve` starts.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any


def defer_import(name: str, functions: Collection[str] = ()) -> None:
    """Let the import of a module take place when something of it is used; without the module, do nothing.

    Args:
        name: the module
        functions: functions of it; `from module import function` loads nothing, and a call does
    """
    if name in sys.modules or importlib.util.find_spec(name.partition(".")[0]) is None:
        return
    if (spec := importlib.util.find_spec(name)) is not None:
        sys.modules[name] = module = _DeferredModule(name)
        module.__spec__, module.__file__ = spec, spec.origin
        module.__path__ = spec.submodule_search_locations or []
        module.functions = functions


class _DeferredModule(ModuleType):
    """Stands for a module until something of it is used."""

    functions: Collection[str] = ()

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__all__":  # `inspect` looks at those of all modules
            raise AttributeError(attribute)
        if attribute in self.functions:
            return self._defer_call(attribute)
        return getattr(self._load(), attribute)

    def _defer_call(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._load(), name)(*args, **kwargs)

        return call

    def _load(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)
