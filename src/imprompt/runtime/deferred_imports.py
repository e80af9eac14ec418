"""Modules that are imported when they are first used, though other libraries import them at once.

diffusers imports `scipy.stats`, where it is installed, for samplers that imprompt rarely needs. Without it
`imprompt serve` starts about a second earlier.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def defer_import(name: str) -> None:
    """Let the import of a module take place when something of it is used; without the module, do nothing.

    Args:
        name: the module
    """
    if name in sys.modules or importlib.util.find_spec(name.partition(".")[0]) is None:
        return
    if (spec := importlib.util.find_spec(name)) is not None:
        sys.modules[name] = module = _DeferredModule(name)
        module.__spec__, module.__file__ = spec, spec.origin
        module.__path__ = spec.submodule_search_locations or []


class _DeferredModule(ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__all__":  # `inspect` looks at those of all modules
            raise AttributeError(attribute)
        return getattr(self._load(), attribute)

    def _load(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)
