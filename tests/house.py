"""Measure how tidy the source is: python tests/house.py [FOLDER ...], one column a checkout; or `make house`."""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("launcher", "data_prep")
# One concept had several words, or a word was no help to a reader; see CONTRIBUTING.md, "Words".
NAMES = frozenset(["found", "one", "each", "said", "told", "how", "alone", "hasten", "obstacle", "settle", "asked"])
WORDS = re.compile(r"\b(attempts?|nobody|told|hasten\w*|obstacles?|whoever|alone)\b", re.IGNORECASE)


class House:
    """The Python of one checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def files(self) -> dict[str, Path]:
        """{module: its file}"""
        paths = [path for package in PACKAGES for path in sorted((self.root / package).rglob("*.py"))]
        return {self._module(path): path for path in paths}

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {module: ast.parse(path.read_text()) for module, path in self.files.items()}

    def _module(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """{module: modules of this project that it imports, inside functions too}"""
        return {module: set(self._imported(tree)) - {module} for module, tree in self.trees.items()}

    def _imported(self, tree: ast.Module) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in self.files)
            elif isinstance(node, ast.ImportFrom) and node.module in self.files:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                inside = [name for name in names if name in self.files]
                yield from inside
                if len(inside) < len(names):
                    yield node.module

    def rooms(self) -> dict[str, set[str]]:
        """{package: packages it imports from}; a module at launcher's root is a room of its own."""
        edges: dict[str, set[str]] = {}
        for module, imported in self.imports.items():
            edges.setdefault(_room(module), set()).update(_room(other) for other in imported)
        return {room: others - {room} for room, others in edges.items()}

    def public_classes(self) -> Counter[str]:
        nodes = [node for tree in self.trees.values() for node in tree.body if isinstance(node, ast.ClassDef)]
        return Counter(node.name for node in nodes if not node.name.startswith("_"))

    def any_in_signatures(self) -> int:
        """Annotations of arguments and results that contain Any."""
        count = 0
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    arguments = node.args
                    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                    every += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
                    annotations = [*(argument.annotation for argument in every), node.returns]
                    count += sum(_has_any(annotation) for annotation in annotations if annotation)
        return count

    def odd_names(self) -> int:
        """Definitions of variables, arguments and functions whose name is in NAMES."""
        count = 0
        for tree in self.trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    count += node.id in NAMES
                elif isinstance(node, ast.arg):
                    count += node.arg in NAMES
                elif isinstance(node, ast.FunctionDef):
                    count += node.name.lstrip("_") in NAMES
        return count

    def odd_words(self) -> int:
        """Occurrences of WORDS in comments and strings, docstrings included."""
        count = 0
        for path in self.files.values():
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            prose = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
            count += sum(len(WORDS.findall(token.string)) for token in tokens if token.type in prose)
        return count

    def lines(self, package: str) -> int:
        return sum(len(path.read_text().splitlines()) for path in sorted((self.root / package).rglob("*.py")))

    def contracts(self) -> str:
        lint = Path(sys.executable).with_name("lint-imports")
        if "[tool.importlinter]" not in (self.root / "pyproject.toml").read_text():
            return "none"
        done = subprocess.run([lint], cwd=self.root, capture_output=True, text=True)
        kept, broken = re.findall(r"Contracts: (\d+) kept, (\d+) broken", done.stdout)[0]
        ignored = max((int(number) for number in re.findall(r"\((\d+) ignored import", done.stdout)), default=0)
        return f"{kept} of {int(kept) + int(broken)}, {ignored} imports ignored"

    def test_cases(self) -> str:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        counted = re.search(r"(\d+)(?:/\d+)? tests? collected", done.stdout)
        return counted[1] if counted else f"not collected (exit code {done.returncode})"


def _room(module: str) -> str:
    return module if module.count(".") < 1 or module.startswith("data_prep") else ".".join(module.split(".")[:2])


def _has_any(annotation: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(annotation))


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Import circles, found one by one: each is cut at its last import, and the search goes on."""
    left = {node: set(others) for node, others in edges.items()}
    result: list[list[str]] = []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            circle = error.args[1]  # each imports the one before it
            result.append(circle)
            left[circle[1]].discard(circle[0])
        else:
            return result


def measure(root: Path) -> dict[str, str]:
    house = House(root)
    doubled = [name for name, count in house.public_classes().items() if count > 1]
    sizes = [len(path.read_text().splitlines()) for path in house.files.values()]
    return {
        "files at launcher's root": str(len(list((root / "launcher").glob("*.py")))),
        "files in the fullest folder": str(max(Counter(path.parent for path in house.files.values()).values())),
        "import circles between modules": str(len(circles(house.imports))),
        "import circles between folders": str(len(circles(house.rooms()))),
        "contracts kept": house.contracts(),
        "public classes of one name": str(len(doubled)),
        "`Any` in signatures": str(house.any_in_signatures()),
        "lines in launcher/": str(house.lines("launcher")),
        "lines in data_prep/": str(house.lines("data_prep")),
        "files above 300 lines": str(sum(size > 300 for size in sizes)),
        "odd names": str(house.odd_names()),
        "odd words in comments and texts": str(house.odd_words()),
        "test cases": house.test_cases(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument(
        "folders", metavar="FOLDER", type=Path, nargs="*", default=[here], help="default: this checkout"
    )
    columns = [measure(folder) for folder in parser.parse_args().folders]
    for name in columns[0]:
        print(f"{name:<34}" + "".join(f"{column[name]:>30}" for column in columns))


if __name__ == "__main__":
    main()
