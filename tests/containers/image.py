"""Builds an image that behaves like NVIDIA's NeMo images: a folder that Apptainer and the pyxis stand-in both run.

Like theirs, it has a Python and packages of its own, NeMo and Megatron in folders that only the image's PYTHONPATH
names, no Slurm, no home folder and no launcher, and it belongs to root. The packages are those of the tests' own
Python, hard-linked where the disk allows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.roots.build import Progress, debian, once

#: The variables that the image sets. LAUNCHER_TEST_FROM stands for any that `cluster.environment` sets as well.
ENVIRONMENT = {
    "PYTHONPATH": "/opt/NeMo:/opt/megatron-lm",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LAUNCHER_TEST_FROM": "the image",
}
#: The package that lies in each of the folders on the image's PYTHONPATH.
_APART = {"nemo": "/opt/NeMo", "megatron": "/opt/megatron-lm"}


def build(progress: Progress) -> Path:
    """The image's folder, built if it is not there yet (3 minutes, 1.5 GB besides the packages)."""
    return once("nemo_image", "an image like NVIDIA's (about 3 minutes)", _make, progress)


def _make(folder: Path) -> None:
    debian("trixie", folder, ["python3", "ca-certificates", "libgomp1"])
    python = folder / "opt/python"
    shutil.copytree(
        sys.base_prefix, python, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "__pycache__")
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = python / "lib" / version / "site-packages"
    packages.mkdir()
    for entry in map(Path, sys.path):
        if entry.name == "site-packages" and Path(sys.base_prefix) not in entry.parents:
            _link(entry, packages)
    for name, place in _APART.items():
        (folder / place[1:]).mkdir(parents=True)
        (packages / name).rename(folder / place[1:] / name)
    for name in ("python", "python3"):
        (folder / "usr/local/bin" / name).symlink_to(f"/opt/python/bin/{version}")
    (folder / "etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
    subprocess.run(["ldconfig", "-r", folder], check=True)
    # Where enroot keeps an image's variables, and where Apptainer does.
    lines = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    (folder / "etc/environment").write_text("".join(f"{line}\n" for line in lines))
    scripts = folder / ".singularity.d/env"
    scripts.mkdir(parents=True)
    (scripts / "90-environment.sh").write_text(
        "".join(f'export {name}="{value}"\n' for name, value in ENVIRONMENT.items())
    )
    for name in ("home", "root"):
        shutil.rmtree(folder / name)


def _link(source: Path, target: Path) -> None:
    """The packages of `source`, less what puts this project and other folders on the path."""
    for entry in source.iterdir():
        if entry.suffix == ".pth" or "dpo_launcher" in entry.name or entry.name == "__pycache__":
            continue
        linked = subprocess.run(["cp", "-al", "--", entry, target], capture_output=True)
        if linked.returncode:  # on another disk
            subprocess.run(["cp", "-a", "--", entry, target], check=True)
