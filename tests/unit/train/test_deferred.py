"""Packages that are imported when they are used, not when somebody imports them."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.train.nemo_aligner.standins import deferred


@pytest.fixture
def plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of this name that is deferred, with a class in its module `draw` and a bare folder `data` in it."""
    name = "plots_that_nobody_draws"
    (tmp_path / name / "data").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("colour = 'red'\n")
    (tmp_path / name / "draw.py").write_text("class Figure:\n    def area(self):\n        return 12\n")
    info = tmp_path / f"{name}-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(deferred, "PACKAGES", (name,))
    finders = list(sys.meta_path)
    with deferred.importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    yield name
    sys.meta_path[:] = finders
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def figure(plots: str) -> Any:
    names: dict[str, Any] = {}
    exec(f"import {plots}\nfrom {plots}.draw import Figure", names)
    return names["Figure"]


def executed(plots: str) -> bool:
    return "colour" in vars(sys.modules[plots])


def test_importing_a_name_imports_nothing(plots):
    placeholder = figure(plots)
    assert sys.modules[plots].__version__ == "1.2.3"
    assert importlib.util.find_spec(plots) is not None
    assert not isinstance(3, placeholder)
    assert not executed(plots)


def test_whoever_uses_a_name_gets_the_real_thing(plots):
    placeholder, before = figure(plots), sys.modules[plots]
    assert placeholder().area() == 12
    assert executed(plots)
    assert before.colour == sys.modules[plots].colour == "red"
    assert isinstance(figure(plots)(), placeholder)
    assert figure(plots).__module__ == f"{plots}.draw"


def test_a_class_may_derive_from_it(plots):
    class Round(figure(plots)):  # type: ignore[misc]
        pass

    assert issubclass(Round, sys.modules[f"{plots}.draw"].Figure)


def test_what_is_not_there_is_missing(plots):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{plots}.nothing")
    with pytest.raises(ImportError):
        _ = sys.modules[plots].no_such_colour.shade
    with pytest.raises(AttributeError):
        _ = sys.modules[plots].no_such_colour
