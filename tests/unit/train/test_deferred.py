"""Packages that are imported when they are used, not when somebody imports them."""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import pickle
import sys
import typing
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
    (tmp_path / name / "__init__.py").write_text(
        "colour = 'red'\nsizes = [3, 4]\nimport threading\nlock = threading.Lock()\n"
    )
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


def test_a_copied_name_stands_for_the_same_thing(plots):
    for copied in (copy.deepcopy(figure(plots)), pickle.loads(pickle.dumps(figure(plots)))):
        assert not executed(plots)
        assert isinstance(copied, deferred._Name)
    assert copied().area() == 12


def test_all_is_imported_at_once_where_that_is_asked_for(plots, monkeypatch):
    monkeypatch.setenv(deferred.AT_ONCE, "1")
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, deferred._Finder)]
    with deferred.importing():
        assert isinstance(figure(plots), type)


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


USES = {
    "a union": ("Figure | None", "typing.Optional[draw.Figure]"),
    "a union, the other way": ("None | Figure", "typing.Optional[draw.Figure]"),
    "a parameter": ("typing.List[Figure].__args__[0]().area()", "12"),
    "iteration": ("list(sizes)", "[3, 4]"),
    "length, item, membership": ("(len(sizes), sizes[1], 3 in sizes)", "(2, 4, True)"),
    "equality": ("(colour == 'red', 'red' == colour, colour != 'red')", "(True, True, False)"),
    "arithmetic": ("(colour + 's', 'dark' + colour, 2 * colour)", "('reds', 'darkred', 'redred')"),
    "truth and text": ("(bool(colour), str(colour))", "(True, 'red')"),
    "its names": ("'area' in dir(Figure)", "True"),
    "a context": ("contextlib.ExitStack().enter_context(lock) is True", "True"),
}


@pytest.mark.parametrize("use", USES)
def test_whatever_a_module_does_with_a_name(plots, use):
    written, expected = USES[use]
    header = f"import contextlib, typing\nfrom {plots} import colour, sizes, lock\nfrom {plots}.draw import Figure\n"
    names: dict[str, Any] = {}
    exec(f"{header}found = {written}", names)
    assert executed(plots)
    assert names["found"] == eval(expected, {"typing": typing, "draw": importlib.import_module(f"{plots}.draw")})


def test_all_names_of_a_module_are_the_real_ones(plots):
    names: dict[str, Any] = {}
    exec(f"from {plots} import *", names)
    assert names["colour"] == "red"


def test_what_is_set_in_a_module_is_set_in_the_real_one(plots):
    exec(f"import {plots}.draw\n{plots}.colour = 'blue'\n{plots}.draw.Figure.shade = 7")
    assert vars(sys.modules[plots])["colour"] == "blue"
    assert figure(plots).shade == 7


def test_what_is_set_in_a_deferred_name_is_set_once_it_is_there(plots):
    exec(f"import {plots}.draw\n{plots}.draw.Figure.shade = 7")
    assert not executed(plots)
    assert figure(plots)().shade == 7 and executed(plots)


def test_what_is_not_there_is_missing(plots):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{plots}.nothing")
    with pytest.raises(ImportError):
        _ = sys.modules[plots].no_such_colour.shade
    with pytest.raises(AttributeError):
        _ = sys.modules[plots].no_such_colour
