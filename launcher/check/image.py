"""Which NeMo a container's image holds: read before anything waits in the queue, where that takes a moment.

NVIDIA's images are known by their tag. Of an image in a file, unsquashfs unpacks a few small files that name versions
(0.01 s from an image of 300,000 files); of a folder (Apptainer's sandbox), they are read where they lie. Where this
finds nothing, nothing is claimed: each rank looks for itself in its first second.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from launcher.engines import ENGINES
from launcher.findings import Finding
from launcher.nemo import versions
from launcher.slurm import container
from launcher.trial_config.config import TrialConfig

_PATIENCE_S = 20.0
#: Where images have Python's packages, and where NVIDIA's have source trees that are on the path without being one.
_PACKAGES = tuple(
    f"{root}/lib/python3*/{kind}"
    for root in ("usr", "usr/local", "opt/*")
    for kind in ("dist-packages", "site-packages")
)
_SOURCES = ("opt/NeMo", "opt/NeMo-Aligner", "opt/megatron-lm", "opt/Megatron-LM")
_NVIDIA = re.compile(r"(?:docker://)?(?:[^@/]*@)?nvcr\.io[#/]nvidia/nemo:([\w.-]+)(?:@sha256:[0-9a-f]+)?$")
_PYTHONS = {None, "python", "python3"}
_REMEDY = f"{versions.REMEDY}: +cluster.environment.PYTHONPATH=DIR"


def findings(config: TrialConfig) -> list[Finding]:
    """The image's set of versions, if it is known to be one on which a rank stops at once."""
    asked = config.cluster.container
    image = asked.image
    if not (asked.runtime and image) or config.engine not in ENGINES or config.cluster.python not in _PYTHONS:
        return []
    if any(mount.split(":")[-1 if mount.count(":") < 2 else 1].startswith(("/opt", "/usr")) for mount in asked.mounts):
        return []  # they may hide what the image has
    try:
        found = versions_in(image)
    except OSError:  # it is not for this user, or damaged
        return []
    for folder in reversed(container.brought_along(config.cluster)):  # the first counts, as on Python's path
        if not folder.is_dir() or versions.sources(folder):
            return []  # it is on the nodes alone, or comes behind what the image has installed
        found |= versions.distributions(folder)
    if set(found) != set(versions.PACKAGES):
        return []
    why = versions.unsupported_reason(found)
    return [Finding("cluster.container.image", image, f"holds a set that ranks refuse: {why}", _REMEDY)] if why else []


def warnings(config: TrialConfig) -> list[Finding]:
    """An image that is a file, and is not here: each trial would wait for its turn to find that out."""
    container = config.cluster.container
    image = container.image or ""
    is_path = image.startswith(("/", "./", "~")) or (container.runtime == "apptainer" and "://" not in image)
    if not (container.runtime and image and is_path) or os.path.lexists(Path(image).expanduser()):
        return []
    why = "is not on this machine: trials fail unless the nodes have it"
    return [Finding("cluster.container.image", image, why, "name a file on the shared disk (docs/gpu.md has how)")]


def versions_in(image: str) -> dict[str, str]:
    """Package -> version, for those of versions.PACKAGES whose version in the image is known. Raises OSError."""
    if tagged := _NVIDIA.match(image):
        return dict(versions.IMAGES.get(tagged[1], {}))
    path = Path(image).expanduser()
    if path.is_dir():
        return _read(path)
    return dict(_of_file(path, path.stat().st_mtime_ns)) if path.is_file() else {}


@functools.cache
def _of_file(image: Path, _changed: int) -> Mapping[str, str]:
    """Of an image of squashfs, such as enroot makes, or of Apptainer's, which has one inside."""
    program = shutil.which("unsquashfs")
    offset = squashfs_at(image)
    if not program or offset is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="image-") as scratch:
        folder = Path(scratch) / "root"
        # -no-xattrs: an ordinary user cannot set all of them
        command = [program, "-n", "-no-xattrs", "-d", str(folder), *(["-o", str(offset)] if offset else [])]
        try:
            subprocess.run([*command, str(image), *_patterns()], capture_output=True, timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return {}
        return _read(folder)


def _patterns() -> list[str]:
    """What is unpacked, as unsquashfs and pathlib both read it."""
    names = [name.replace("-", "_") for name in versions.PACKAGES]
    packages = [f"{place}/{name}-*.dist-info/METADATA" for place in _PACKAGES for name in names]
    places = [*_PACKAGES, *_SOURCES]
    return packages + [f"{place}/{folder}/package_info.py" for place in places for folder in versions.PACKAGES.values()]


def squashfs_at(image: Path) -> int | None:
    """Bytes before the squashfs in a file; None if it has none.

    Of Apptainer's SIF: the header's fields 32 bytes behind the file's first line, and the table of descriptors that it
    points at (github.com/apptainer/sif, pkg/sif/sif.go and descriptor.go). The system partition is of type 0x4004.
    """
    with image.open("rb") as stream:
        head = stream.read(128)
        if head[:4] == b"hsqs":
            return 0
        if head[32:41] != b"SIF_MAGIC" or len(head) < 128:
            return None
        free, total, table = struct.unpack_from("<qqq", head, 80)
        stream.seek(table)
        for _ in range(min(total, 1000)):
            descriptor = stream.read(585)
            if len(descriptor) < 585:
                return None
            kind, used = struct.unpack_from("<i?", descriptor)
            (offset,) = struct.unpack_from("<q", descriptor, 17)
            if used and kind == 0x4004:
                here = stream.tell()
                stream.seek(offset)
                if stream.read(4) == b"hsqs":
                    return int(offset)
                stream.seek(here)
    return None


def _read(root: Path) -> dict[str, str]:
    """What the files under `root` say, where all that say something of a package say the same."""
    found: dict[str, list[str]] = {}
    for place in (*_PACKAGES, *_SOURCES):
        for folder in root.glob(place):
            for name, version in (versions.sources(folder) | versions.distributions(folder)).items():
                found.setdefault(name, []).append(version)
    return {name: said[0] for name, said in found.items() if len(set(map(versions.numbers, said))) == 1}
