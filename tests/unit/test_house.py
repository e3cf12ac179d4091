"""tests/house.py measures what it says."""

from pathlib import Path

from tests.house import PACKAGES, House, circles

ROOT = Path(__file__).resolve().parents[2]


def test_an_installation_has_every_package() -> None:
    """pyproject.toml lists the packages one by one: a new folder would be missing where no clone is."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = text.partition("\npackages = [")[2].partition("]")[0]
    folders = [path.parent.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")]
    assert folders
    for folder in folders:
        name = ".".join(folder.parts).removeprefix("launcher.plugins.")
        assert f'"{name}"' in listed, f"{name} is not among the packages of pyproject.toml"


def test_circles() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert len(circles({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c", "a"}})) == 2


def test_a_checkout_is_measured(tmp_path: Path) -> None:
    room = tmp_path / "launcher" / "room"
    room.mkdir(parents=True)
    (tmp_path / "launcher" / "main.py").write_text("from launcher.room import one\n")
    (tmp_path / "launcher" / "__init__.py").write_text("")
    (room / "__init__.py").write_text("")
    (room / "one.py").write_text(
        "from typing import Any\n\n\nclass Both:\n    pass\n\n\n"
        "def make(found: dict[str, Any]) -> Any:  # nobody is told\n    from launcher import main\n\n    return main\n"
    )
    (room / "two.py").write_text("class Both:\n    pass\n")
    house = House(tmp_path)
    assert house.imports["launcher.main"] == {"launcher.room.one"}
    assert len(circles(house.imports)) == len(circles(house.rooms())) == 1
    assert house.any_in_signatures() == 2
    assert house.public_classes()["Both"] == 2
    assert (house.odd_names(), house.odd_words()) == (1, 2)
    assert house.lines("launcher") == 14


def test_a_name_is_one_thing() -> None:
    """No two public classes of launcher/ and data_prep/ have one name."""
    classes = House(Path(__file__).resolve().parents[2]).public_classes()
    assert [name for name, count in classes.items() if count > 1] == []
