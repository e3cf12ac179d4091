"""The sets of NeMo-Aligner, NeMo and Megatron-core that this engine supports, checked before any of them is imported.

The three are developed together. A wrong set fails minutes later, with errors that do not name the cause:
NeMo-Aligner 0.6's DPOTrainer lacks a parameter, NeMo 2.3's LoRA does not work with the Megatron-core it ships with.
Standard library only.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.findings import Finding, Refused

#: The packages of a set: name on PyPI -> folder of their code.
PACKAGES = {"nemo-aligner": "nemo_aligner", "nemo_toolkit": "nemo", "megatron-core": "megatron/core"}
REMEDY = (
    "use NVIDIA's image nvcr.io/nvidia/nemo:25.02, or pip install -e '.[train]' in the clone; in the image 24.12 put "
    "NeMo-Aligner 0.7.0 first on PYTHONPATH (pip install --no-deps --target DIR nemo-aligner==0.7.0)"
)


@dataclass(frozen=True)
class Set:
    """A set of versions (first two numbers of each), and where it was tested."""

    aligner: tuple[int, int]
    nemo: tuple[int, int]
    megatron: tuple[int, int]
    source: str

    @property
    def versions(self) -> tuple[tuple[int, int], ...]:
        """In the order of PACKAGES."""
        return self.aligner, self.nemo, self.megatron


#: Supported sets: each trains `tiny` to the same validation loss.
WORKING = (
    Set((0, 7), (2, 1), (0, 10), "the pip packages of pyproject.toml; image 24.12 with NeMo-Aligner 0.7.0 added"),
    Set((0, 7), (2, 2), (0, 11), "image 25.02"),
)
#: Tag of NVIDIA's image nvcr.io/nvidia/nemo -> what it holds (docs/gpu.md, "Sets of versions").
IMAGES = {
    tag: dict(zip(PACKAGES, numbers, strict=True))
    for tag, numbers in {
        "24.09": ("0.5.0", "2.0.0", "0.9.0"),
        "24.12": ("0.6.0", "2.1.0", "0.10.0"),
        "25.02": ("0.7.0", "2.2.0", "0.11.0"),
        "25.04": ("0.7.0", "2.3.0", "0.12.0"),
    }.items()
}
#: (package, first version that fails, first later one that works or None): the reason, printed instead of a list.
_KNOWN_FAILURES = (
    ("nemo-aligner", (0, 0), (0, 7), "its DPOTrainer has no pad_length_to_multiple_of, and its labels differ"),
    ("megatron-core", (0, 12), None, "NeMo's LoRA layers do not take its argument inference_context"),
    ("nemo_toolkit", (0, 0), (2, 1), "it imports pytorch_lightning, where NeMo-Aligner 0.7 uses lightning"),
)


def installed() -> dict[str, str]:
    """Package -> version, for those of PACKAGES that are present. The first match on sys.path counts.

    An image may have a source tree on the path that was never installed. Its package_info.py is then read.
    """
    present = {}
    for name in PACKAGES:
        try:
            present[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            places = (_in_source(Path(entry or "."), name) for entry in sys.path)
            if found := next(filter(None, places), ""):
                present[name] = found
    return present


def distributions(folder: Path) -> dict[str, str]:
    """Package -> version, of those of PACKAGES that are installed in a folder, which need not be on this Python's path.

    The names of their .dist-info folders have both (packaging.python.org, "Recording installed projects").
    """
    present = {}
    for name in PACKAGES:
        escaped = name.replace("-", "_")
        for found in folder.glob(f"{escaped}-*.dist-info"):
            present[name] = found.name.removeprefix(f"{escaped}-").removesuffix(".dist-info")
    return present


def sources(folder: Path) -> dict[str, str]:
    """The same of source trees in the folder."""
    return {name: found for name in PACKAGES if (found := _in_source(folder, name))}


def _in_source(folder: Path, name: str) -> str:
    """The version that a package's source tree in this folder names, or ""."""
    file = folder / PACKAGES[name] / "package_info.py"
    text = file.read_text(errors="replace") if file.is_file() else ""
    numbers = dict(re.findall(r"^(MAJOR|MINOR|PATCH) = (\d+)$", text, flags=re.MULTILINE))
    return ".".join(numbers.get(part, "0") for part in ("MAJOR", "MINOR", "PATCH")) if numbers else ""


def unsupported_reason(versions: dict[str, str]) -> str:
    """Why a set of versions (as from installed()) is not supported; "" if it is supported."""
    absent = [name for name in PACKAGES if name not in versions]
    if absent:
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"
    known = {name: numbers(version) for name, version in versions.items()}
    if tuple(known[name] for name in PACKAGES) in [pins.versions for pins in WORKING]:
        return ""
    for name, first, fixed, why in _KNOWN_FAILURES:
        if first <= known[name] and (fixed is None or known[name] < fixed):
            return f"{name} {versions[name]} does not work: {why}"
    return f"{', '.join(f'{name} {versions[name]}' for name in PACKAGES)} were not tried together"


def check() -> None:
    """Raise Refused if this process would import an unsupported set."""
    why = unsupported_reason(installed())
    if why:
        raise Refused([Finding("versions", "", f"{why}; sets that work: {described()}", REMEDY)])


def described() -> str:
    """The supported sets, in one line."""
    sets = []
    for pins in WORKING:
        numbers = ", ".join(f"{name} {a}.{b}" for name, (a, b) in zip(PACKAGES, pins.versions, strict=True))
        sets.append(f"{numbers} ({pins.source})")
    return "; ".join(sets)


def numbers(version: str) -> tuple[int, int]:
    """The first two numbers of a version: (0, 11) for 0.11.0rc1+791b70e."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
