"""How to run a command inside a container: pyxis adds options to srun, Apptainer is a prefix of the command.

NVIDIA's NeMo container already has all that the launcher needs (NeMo, omegaconf); the rank's entry point uses only the
standard library. So it is enough to mount the launcher's code and to put it on PYTHONPATH. A trial's code lies in the
sweep's folder; a stage of a pipeline uses the clone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.findings import Finding
from launcher.trial_config.cluster import Cluster, Container
from launcher.trial_config.config import TrialConfig


@dataclass(frozen=True)
class Inside:
    """The srun options and the prefix that run a command in a container. No runtime: it runs on the node."""

    runtime: str = ""
    srun_args: Sequence[str] = ()
    prefix: Sequence[str] = ()
    """Words before the command."""


def findings(config: TrialConfig, sweep: Path) -> list[Finding]:
    """Reports a container without an image, and folders that cannot be mounted."""
    container = config.cluster.container
    runtime = container.runtime
    if not runtime:
        return []
    problems = []
    if not container.image:
        remedy = "name one: cluster.container.image=/shared/nemo.sqsh" if runtime == "pyxis" else "name a .sif file"
        problems.append(Finding("cluster.container.image", "", f"has no value, and {runtime} needs one", remedy))
    for folder in (str(sweep), *_read(config)):
        if "," in folder or ":" in folder:
            why = f"{runtime} takes a comma or colon for the end of a mount's path"
            problems.append(Finding("cluster.container", folder, why, "choose a folder without"))
    return problems


def of_trials(config: TrialConfig, sweep: Path, in_container: str, more: Sequence[str] = ()) -> Inside:
    """The container of a trial's ranks: sweep, cache, model, data and packages brought along keep their paths; home is
    not mounted.

    `in_container` is the path of in_container.sh; `more` are further folders to read.
    """
    written, read = [str(sweep), config.paths.cache], [*more, *_read(config)]
    return inside(config.cluster.container, in_container, read=read, written=written, folder=str(sweep))


def inside(
    container: Container, in_container: str, *, read: Sequence[str], written: Sequence[str], folder: str
) -> Inside:
    """What runs a command inside the configured container, if there is one.

    `in_container` is the path of in_container.sh. `read` (read-only) and `written` (writable) are mounted under their
    own paths; the config's own mounts are used unchanged. `folder` is the working directory: never /tmp, from which
    Python would import anybody's files.
    """
    runtime, image = container.runtime, container.image or ""
    if runtime is None:
        return Inside()
    own = [mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts]
    mounts = ordered([*(f"{path}:{path}:ro" for path in read), *(f"{path}:{path}" for path in written), *own])
    # sbatch/in_container.sh sets the job's variables again, because the image's own would override them
    start = ["bash", in_container]
    if runtime == "pyxis":
        arguments = [
            f"--container-image={image}",
            f"--container-mounts={','.join(mounts)}",
            "--no-container-mount-home",
            f"--container-workdir={folder}",
        ]
        return Inside(runtime, arguments, start)
    binds = [word for mount in mounts for word in ("--bind", mount)]
    return Inside(runtime, [], ["apptainer", "exec", "--nv", "--no-home", "--pwd", folder, *binds, image, *start])


def ordered(mounts: Sequence[str]) -> list[str]:
    """Sort mounts (OUTSIDE:INSIDE[:FLAGS]) so that none hides another: parents first, then read-only before writable.

    A mount is dropped if the mount of a parent folder already gives the same files with the same rights.
    """

    parsed = sorted((_Mount.parse(mount) for mount in mounts), key=lambda mount: (mount.depth, not mount.writable))
    kept: list[_Mount] = []
    for mount in parsed:
        if not any(other.covers(mount) for other in kept):
            kept.append(mount)
    return [mount.text for mount in sorted(kept, key=lambda mount: (mount.depth, mount.writable, mount.text))]


@dataclass(frozen=True)
class _Mount:
    text: str
    outside: Path
    inside: Path
    writable: bool

    @classmethod
    def parse(cls, text: str) -> _Mount:
        outside, inside, *flags = text.split(":", 2)
        return cls(text, Path(outside), Path(inside), "ro" not in "".join(flags).replace("+", ",").split(","))

    @property
    def depth(self) -> int:
        return len(self.inside.parts)

    def covers(self, other: _Mount) -> bool:
        """Whether this mount already gives the files of `other`, with at least its rights."""
        if self.inside not in (other.inside, *other.inside.parents):
            return False
        same = self.outside / other.inside.relative_to(self.inside) == other.outside
        return same and (self.writable or not other.writable)


def _read(config: TrialConfig) -> list[str]:
    """The folders from which a trial reads its model, its pairs, and packages that it brings along."""
    files = {str(path.parent) for path in (config.base_model, *config.data_files.values())}
    return sorted({*files, *packages(config.cluster)})


def packages(cluster: Cluster) -> list[str]:
    """The folders of `brought_along` that can be mounted: those that are here."""
    return [str(folder) for folder in brought_along(cluster) if folder.is_dir()]


def brought_along(cluster: Cluster) -> list[Path]:
    """The folders of `cluster.environment.PYTHONPATH`, whose packages come before the image's own."""
    parts = map(Path, str(cluster.environment.get("PYTHONPATH") or "").split(":"))
    return [folder for folder in parts if folder.is_absolute()]
