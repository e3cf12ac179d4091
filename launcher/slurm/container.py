"""How a rank is run inside a container: pyxis takes srun options, Apptainer goes in front of Python.

The launcher needs nothing installed in NVIDIA's NeMo container but what is there (NeMo, omegaconf): the rank's entry
is standard library only. So it is enough to mount the clone, read-only, and to put it on PYTHONPATH.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.findings import Finding


@dataclass(frozen=True)
class Inside:
    """What puts a rank into its container."""

    srun_args: Sequence[str] = ()
    prefix: Sequence[str] = ()
    """Shell words before Python's, quoted."""
    mounted: bool = False


def findings(config: dict[str, Any], sweep: Path, root: str) -> list[Finding]:
    """A container without an image, and folders that cannot be mounted."""
    container = config["cluster"].get("container") or {}
    runtime = container.get("runtime")
    if not runtime:
        return []
    found = []
    if not container.get("image"):
        remedy = "name one: cluster.container.image=/shared/nemo.sqsh" if runtime == "pyxis" else "name a .sif file"
        found.append(Finding("cluster.container.image", "", f"has no value, and {runtime} needs one", remedy))
    for folder in (root, str(sweep), *_read(config)):
        if "," in folder or ":" in folder:
            why = f"{runtime} takes a comma or colon for the end of a mount's path"
            found.append(Finding("cluster.container", folder, why, "choose a folder without"))
    return found


def words(config: dict[str, Any], sweep: Path, root: str) -> Inside:
    """Sweep, cache, model and data are mounted where they are outside, so that the config's paths hold; home is not."""
    container = config["cluster"].get("container") or {}
    written = [str(sweep), *([cache] if (cache := config["paths"].get("cache")) else [])]
    mounts = [f"{root}:{root}:ro", *(f"{folder}:{folder}" for folder in written)]
    mounts += [f"{folder}:{folder}:ro" for folder in _read(config)]
    return inside(container, mounts)


def inside(container: Mapping[str, Any], folders: Sequence[str]) -> Inside:
    """What puts a command into a container, if any. `folders` are OUTSIDE:INSIDE[:ro]; its own mounts follow."""
    runtime, image = container.get("runtime"), str(container.get("image") or "")
    if not runtime:
        return Inside()
    mounts = [*folders, *(mount if ":" in mount else f"{mount}:{mount}" for mount in container.get("mounts") or [])]
    if runtime == "pyxis":
        arguments = [
            f"--container-image={image}",
            f"--container-mounts={','.join(mounts)}",
            "--no-container-mount-home",
        ]
        return Inside(srun_args=[*arguments, "--container-workdir=/tmp"], mounted=True)
    binds = [word for mount in mounts for word in ("--bind", shlex.quote(mount))]
    prefix = ["apptainer", "exec", "--nv", "--no-home", "--pwd", "/tmp", *binds, shlex.quote(image)]
    return Inside(prefix=prefix, mounted=True)


def _read(config: dict[str, Any]) -> list[str]:
    """The folders that a trial reads its model and its pairs from."""
    model = Path(config["pretrained_checkpoint"]["restore_from_path"]).parent
    files = [name for names in config["model"]["data"]["data_prefix"].values() for name in names]
    return sorted({str(folder) for folder in (model, *(Path(name).parent for name in files if name.startswith("/")))})
