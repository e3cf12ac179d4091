"""Who starts a sweep, from which commit, with which versions."""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import os
import subprocess

from launcher.sweep.records import GitState

_DISTRIBUTIONS = ("dpo-launcher", "hydra-core", "hydra-submitit-launcher", "submitit", "nemo-aligner", "nemo_toolkit")


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # in a container: an id without a name


def git_state() -> GitState | None:
    """Commit of the current folder, and whether tracked files were changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here, or the work tree is too large to wait for
    if done.returncode != 0:
        return None
    commit, dirty, _ = done.stdout.strip().partition("-dirty")
    return {"commit": commit, "dirty": bool(dirty)}


def versions() -> dict[str, str]:
    installed = {}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
