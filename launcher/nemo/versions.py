"""Which sets of NeMo-Aligner, NeMo and Megatron-core this engine runs on, checked before any of them is imported.

The three are developed together, and a wrong set fails minutes later in ways that do not name it: NeMo-Aligner 0.6's
DPOTrainer lacks a parameter, NeMo 2.3's LoRA does not go with the Megatron-core it ships with. Standard library only.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.findings import Finding, Refused

#: The packages that make up a set, by the names that they have on PyPI, and the folder of their code.
PACKAGES = {"nemo-aligner": "nemo_aligner", "nemo_toolkit": "nemo", "megatron-core": "megatron/core"}
REMEDY = (
    "use NVIDIA's image nvcr.io/nvidia/nemo:25.02, or pip install -e '.[train]' in the clone; in the image 24.12 put "
    "NeMo-Aligner 0.7.0 first on PYTHONPATH (pip install --no-deps --target DIR nemo-aligner==0.7.0)"
)


@dataclass(frozen=True)
class Set:
    """Versions by their first two numbers, and where they were tried."""

    aligner: tuple[int, int]
    nemo: tuple[int, int]
    megatron: tuple[int, int]
    source: str

    @property
    def versions(self) -> tuple[tuple[int, int], ...]:
        """In the order of PACKAGES."""
        return self.aligner, self.nemo, self.megatron


#: Sets that train `tiny` to the same validation loss.
WORKING = (
    Set((0, 7), (2, 1), (0, 10), "the pip packages of pyproject.toml; image 24.12 with NeMo-Aligner 0.7.0 added"),
    Set((0, 7), (2, 2), (0, 11), "image 25.02"),
)
#: (package, first version that fails, first that does not, or None): the reason to print instead of a list.
_KNOWN_FAILURES = (
    ("nemo-aligner", (0, 0), (0, 7), "its DPOTrainer has no pad_length_to_multiple_of, and its labels differ"),
    ("megatron-core", (0, 12), None, "NeMo's LoRA layers do not take its argument inference_context"),
    ("nemo_toolkit", (0, 0), (2, 1), "it imports pytorch_lightning, where NeMo-Aligner 0.7 uses lightning"),
)


def installed() -> dict[str, str]:
    """Versions of PACKAGES, of those that are there. What comes first on sys.path counts.

    An image may put a source tree on the path that was never installed; its package_info.py is read then.
    """
    found = {}
    for name, folder in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            places = (Path(entry or ".", folder, "package_info.py") for entry in sys.path)
            text = next((place.read_text(errors="replace") for place in places if place.is_file()), "")
            numbers = dict(re.findall(r"^(MAJOR|MINOR|PATCH) = (\d+)$", text, flags=re.MULTILINE))
            if numbers:
                found[name] = ".".join(numbers.get(part, "0") for part in ("MAJOR", "MINOR", "PATCH"))
    return found


def unsupported_reason(versions: dict[str, str]) -> str:
    """Why a set of versions (as from installed()) is not known to work, "" where it is."""
    absent = [name for name in PACKAGES if name not in versions]
    if absent:
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"
    numbers = {name: _numbers(version) for name, version in versions.items()}
    if tuple(numbers[name] for name in PACKAGES) in [each.versions for each in WORKING]:
        return ""
    for name, first, fixed, why in _KNOWN_FAILURES:
        if first <= numbers[name] and (fixed is None or numbers[name] < fixed):
            return f"{name} {versions[name]} does not work: {why}"
    return f"{', '.join(f'{name} {versions[name]}' for name in PACKAGES)} were not tried together"


def check() -> None:
    """Raise Refused where this process would import a set that does not work."""
    why = unsupported_reason(installed())
    if why:
        raise Refused([Finding("versions", "", f"{why}; sets that work: {described()}", REMEDY)])


def described() -> str:
    """The sets that work, in one line."""
    sets = []
    for each in WORKING:
        numbers = ", ".join(f"{name} {a}.{b}" for name, (a, b) in zip(PACKAGES, each.versions, strict=True))
        sets.append(f"{numbers} ({each.source})")
    return "; ".join(sets)


def _numbers(version: str) -> tuple[int, int]:
    """(0, 11) of 0.11.0rc1+791b70e."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
