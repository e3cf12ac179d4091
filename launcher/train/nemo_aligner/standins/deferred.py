"""Packages that NeMo's import reaches but training does not use: they are imported when something of them is used.

torchmetrics, transformers and NeMo's collections for speech and text import them for plots and scores, which costs a
start a third of its import. A deferred module gives a placeholder for every name that is taken from it. Whoever calls
a placeholder, subclasses it or asks it for anything gets the real thing. Only modules that are there are deferred, so
that `except ImportError` works as ever.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import operator
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

PACKAGES = ("datasets", "nltk", "pandas", "scipy", "sklearn")

AT_ONCE = "LAUNCHER_IMPORT_AT_ONCE"
"""Environment variable: where it is set, nothing is deferred. For an image in which a placeholder is in the way."""
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
_lock = threading.RLock()
_set: list[tuple[_Name, str, object]] = []
"""(placeholder, name, value): what was set on placeholders of packages that are still deferred."""
_MODULE_OWN = frozenset({"__path__", "__file__", "__spec__", "__loader__", "__package__", "__name__", "__cached__"})


@contextmanager
def importing() -> Iterator[None]:
    """Inside this context NeMo's import takes half of the time. PACKAGES stay deferred afterwards.

    Collecting garbage looks at all of the two million objects again and again, while hardly any of them is garbage.
    """
    packages = {name for name in PACKAGES if name not in sys.modules and not os.environ.get(AT_ONCE)}
    if _finder() is None:
        sys.meta_path.insert(0, _Finder(packages))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        real = PathFinder.find_spec(name, path)
        if real is None or real.origin is None:  # not there, or a folder of another package's
            return None
        spec = importlib.util.spec_from_loader(name, _Loader(), origin=real.origin, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = list(real.submodule_search_locations or [])
        return spec


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: that is what is deferred."""


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name in _MODULE_OWN and (name != "__file__" or _deferred(self.__name__)):
            raise AttributeError(name)
        if _deferred(self.__name__):
            if name == "__version__":
                package = self.__name__.partition(".")[0]
                return importlib.metadata.version(_DISTRIBUTIONS.get(package, package))
            if not name.startswith("__"):
                return _Name(self.__name__, name)
        real = _real(self.__name__)
        if name == "__all__" and not hasattr(real, name):
            return [public for public in vars(real) if not public.startswith("_")]
        return getattr(real, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in _MODULE_OWN or isinstance(value, _Module):  # by Python's import
            super().__setattr__(name, value)
        else:
            setattr(_real(self.__name__), name, value)

    def __dir__(self) -> list[str]:
        return dir(_real(self.__name__))


class _Name:
    """What `module.name` gives before the module is imported."""

    __hash__ = object.__hash__  # equal things meet in `==`, which asks the real one

    def __init__(self, module: str, name: str) -> None:
        self.__dict__.update(_module=module, _name=name)

    def _real(self) -> Any:
        found = _real(self._module)
        if not hasattr(found, self._name):
            importlib.import_module(f"{self._module}.{self._name}")
        return getattr(found, self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set on the real thing as soon as there is one: NeMo sets a function of `datasets` while it is imported."""
        if _deferred(self._module):
            _set.append((self, name, value))
        else:
            setattr(self._real(), name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __mro_entries__(self, bases: Any) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: object) -> bool:
        """Nothing can be an instance of a class that nobody has imported."""
        return not _deferred(self._module) and isinstance(instance, self._real())

    def __subclasscheck__(self, some: type) -> bool:
        return not _deferred(self._module) and issubclass(some, self._real())

    def __reduce__(self) -> tuple[Any, ...]:
        return _Name, (self._module, self._name)

    def __deepcopy__(self, memo: object) -> _Name:
        return self

    def __enter__(self) -> Any:
        return self._real().__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._real().__exit__(*error)


def _asks_the_real_one(operation: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def method(name: _Name, *others: Any) -> Any:
        values = [each._real() if isinstance(each, _Name) else each for each in (name, *others)]
        return operation(*reversed(values)) if swapped else operation(*values)

    return method


for _operation in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    _found, _plain = getattr(operator, _operation), _operation.strip("_")
    setattr(_Name, f"__{_plain}__", _asks_the_real_one(_found))
    setattr(_Name, f"__r{_plain}__", _asks_the_real_one(_found, swapped=True))
for _operation in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "index", "contains", "getitem", "setitem", "delitem"):
    setattr(_Name, f"__{_operation}__", _asks_the_real_one(getattr(operator, _operation)))
for _builtin in (iter, next, len, bool, int, float, str, reversed, dir):
    setattr(_Name, f"__{_builtin.__name__}__", _asks_the_real_one(_builtin))


def _finder() -> _Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)


def _deferred(module: str) -> bool:
    finder = _finder()
    return finder is not None and module.partition(".")[0] in finder.packages


def _real(module: str) -> types.ModuleType:
    """The real module; its whole package is not deferred any longer."""
    package, finder = module.partition(".")[0], _finder()
    with _lock:
        if finder is None or package not in finder.packages:
            return importlib.import_module(module)
        finder.packages.discard(package)
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]
        real = importlib.import_module(module)
        for placeholder, attribute, value in _set:
            if placeholder._module.partition(".")[0] == package:
                setattr(placeholder._real(), attribute, value)
        return real
