"""Builds Debian roots, each with the Slurm of its Debian release. A root is built once and then kept in a cache."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

#: Debian's release for each version of Slurm.
SUITES = {"22.05": "bookworm", "24.11": "trixie", "26.05": "sid"}
#: Python is installed for the libraries that it depends on: the tests' own Python is bound into the root.
_PACKAGES = (
    "slurmctld", "slurmd", "slurmdbd", "slurm-client", "munge", "mariadb-server", "mariadb-client", "util-linux",
    "python3", "ca-certificates", "git", "procps",
)  # fmt: skip
_CONTAINER_PACKAGES = ("apptainer", "squashfs-tools", "fakeroot")
#: Debian 12's libmariadb. With Debian 13's (11.8.9) slurmdbd ends at its start: "Number of columns in result set".
_LIBMARIADB = "libmariadb3=1:10.11.*"


class CannotBuild(Exception):
    """The root cannot be built on this machine."""


def cache() -> Path:
    """The folder that keeps the roots: LAUNCHER_TEST_ROOTS, or a folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LAUNCHER_TEST_ROOTS") or Path(base) / "launcher-test-roots")


def host_suite() -> str:
    """The code name of this machine's own Debian release; empty if it is no Debian."""
    release = Path("/etc/os-release")
    pairs = (line.partition("=") for line in release.read_text().splitlines()) if release.exists() else ()
    values = {name: value.strip('"') for name, _, value in pairs}
    return values.get("VERSION_CODENAME", "") if values.get("ID") == "debian" else ""


Progress = Callable[[str], None]


def build(suite: str, progress: Progress) -> Path:
    """The root of a Debian release, built if it is not there yet (2 minutes). Raises CannotBuild."""

    def make(folder: Path) -> None:
        packages = [*_PACKAGES, *(_CONTAINER_PACKAGES if suite == "sid" else ())]
        debian(suite, folder, packages, after=() if suite == "bookworm" else (_LIBMARIADB,))

    return once(suite, f"Debian {suite} with Slurm (about 2 minutes, 1 GB)", make, progress)


def once(name: str, what: str, make: Callable[[Path], None], progress: Progress) -> Path:
    """A folder of the cache, made if it is not there yet; one whose making was interrupted is made again."""
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise CannotBuild("it needs root and apt-get")
    folder = cache() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            began = time.monotonic()
            progress(f"building {folder}: {what}")
            unfinished = folder.with_name(f"{name}.unfinished")
            if unfinished.exists():
                shutil.rmtree(unfinished)
            make(unfinished)
            unfinished.rename(folder)
            progress(f"built in {time.monotonic() - began:.0f} s")
    return folder


def debian(suite: str, folder: Path, packages: Sequence[str], after: Sequence[str] = ()) -> None:
    """A Debian release with `packages`, and then `after`, which may be older versions from Debian 12."""
    _bootstrap(suite, folder)
    _install(suite, folder, packages, after)


def _bootstrap(suite: str, folder: Path) -> None:
    if not shutil.which("debootstrap"):
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", "debootstrap")
    run("debootstrap", "--variant=minbase", suite, str(folder), mirror())


def _install(suite: str, folder: Path, packages: Sequence[str], after: Sequence[str]) -> None:
    """Installs the packages in namespaces of their own, so that no mount and no process is left behind."""
    debian_mirror = mirror()
    sources = [f"deb {debian_mirror} {suite} main"]
    if suite not in ("bookworm", "trixie"):
        sources.append(f"deb {debian_mirror} trixie main")
    if suite != "bookworm":
        sources.append(f"deb {debian_mirror} bookworm main")
    (folder / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
    (folder / "etc/apt/apt.conf.d/90release").write_text(f'APT::Default-Release "{suite}";\n')
    # How this machine reaches its mirror holds for the root, too.
    (folder / "etc/apt/apt.conf.d/90acquire").write_text(_acquire())
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    policy = folder / "usr/sbin/policy-rc.d"  # Debian asks it before it starts a newly installed daemon; 101 means no
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    install = "apt-get install -y -qq --no-install-recommends --allow-downgrades"
    script = f"""
    mount -t proc proc "$1/proc"; mount --bind /dev "$1/dev"
    export DEBIAN_FRONTEND=noninteractive
    chroot "$1" apt-get update -qq
    chroot "$1" {install} {" ".join(packages)}
    {f'chroot "$1" {install} {shlex.join(after)}' if after else ""}
    chroot "$1" apt-get clean
    """
    run("unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", script, "bash", str(folder))


def _acquire() -> str:
    """apt's settings for proxies, certificates and dates on this machine."""
    kept = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries")
    return "".join(f"{line}\n" for line in _output("apt-config", "dump").splitlines() if line.startswith(kept))


def mirror() -> str:
    """The address of Debian's packages, as apt is configured on this machine."""
    for update in (False, True):
        if update:
            _apt("update", "-qq")
        lines = _output(
            "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"
        ).split()
        if lines:
            return lines[0]
    raise CannotBuild("apt has no source with Debian's packages on this machine")


def _apt(*words: str) -> None:
    run("apt-get", *words)


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def run(*words: str, cwd: Path | None = None) -> None:
    """Run a command that prints nothing. Raises CannotBuild with its last lines."""
    done = subprocess.run(
        words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise CannotBuild(f"{words[0]} ended with code {done.returncode}:\n{_last(done.stdout.splitlines())}")


def _last(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines[-15:])
