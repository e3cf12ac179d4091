"""How a rank is run inside a container: pyxis takes srun options, Apptainer goes in front of Python.

The launcher needs nothing installed in NVIDIA's NeMo container but what is there (NeMo, omegaconf): the rank's entry
is standard library only. So it is enough to mount the clone, read-only, and to put it on PYTHONPATH.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Inside:
    """What puts a rank into its container."""

    srun_args: Sequence[str] = ()
    prefix: Sequence[str] = ()
    """Shell words before Python's, quoted."""
    mounted: bool = False


def words(config: dict[str, Any], sweep: Path, root: str) -> Inside:
    """Sweep, model and data are mounted where they are outside, so that paths in the config hold; home is not."""
    container = config["cluster"].get("container") or {}
    runtime, image = container.get("runtime"), str(container.get("image") or "")
    if not runtime:
        return Inside()
    mounts = [f"{root}:{root}:ro", f"{sweep}:{sweep}"]
    model = Path(config["pretrained_checkpoint"]["restore_from_path"]).parent
    files = [name for names in config["model"]["data"]["data_prefix"].values() for name in names]
    folders = {model, *(Path(name).parent for name in files if name.startswith("/"))}
    mounts += [f"{folder}:{folder}:ro" for folder in sorted(folders)]
    mounts += [mount if ":" in mount else f"{mount}:{mount}" for mount in container.get("mounts") or []]
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
