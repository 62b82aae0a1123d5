"""Import-only stand-ins for packages that SGLang imports and a CPU has no use for.

Any name can be imported from them, however deep, and used as a decorator, a base class or a type; nothing computes:
launching a kernel raises.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any


class _Named(type):
    """A class whose missing attributes are strings: members of enumerations, dtypes."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Stub(types.ModuleType):
    """A module, function, decorator or namespace, as the importer has it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__package__, self.__file__ = name, __file__
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if name[0].isupper():
            value: Any = _Named(name, (), {"__module__": self.__name__, "__init__": lambda *_, **__: None})
        else:
            value = sys.modules.setdefault(full, Stub(full))
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a decorator, with or without arguments."""
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else lambda function: function

    def __getitem__(self, grid: Any) -> Any:
        raise RuntimeError(f"{self.__name__} was launched, and is not there")

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bool__(self) -> bool:
        return False


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Submodules of a root, whatever their name."""

    def __init__(self, root: str) -> None:
        self._prefix = root + "."

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith(self._prefix) else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return sys.modules.get(spec.name) or Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        parent, _, name = module.__name__.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], name, module)


def install(root: str, **attributes: Any) -> None:
    """Put a stub in the place of the package that is being imported."""
    module = Stub(root)
    for name, value in attributes.items():
        setattr(module, name, value)
    sys.modules[root] = module
    sys.meta_path.append(_Finder(root))
