"""Composes trials with Hydra for other commands, and passes them to a function instead of running them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.compose import hydra_app, hydra_state
from launcher.compose.hydra_state import HydraLauncher, Take
from launcher.findings import Finding, Refused
from launcher.trial_config.config import TrialConfig

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn


def add_words(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of launcher/main.py, for a command that passes them on."""
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="key=value, as launcher/main.py takes them")
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep; `render sweep` and `pipeline` imply it")
    parser.add_argument("--config-dir", metavar="DIR", help="more configs, such as your site's cluster")
    # Without this, argparse refuses overrides after an option.
    parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]


def words(args: argparse.Namespace, *, multirun: bool) -> list[str]:
    """The arguments for launcher/main.py; `multirun` adds -m."""
    options = ["--config-dir", args.config_dir] if args.config_dir else []
    return [*options, *(["--multirun"] if multirun else []), *args.overrides]


def trials(line: Sequence[str], command: Sequence[str], take: Take) -> int:
    """Compose the trials of a command line and call take(launcher, overrides of each). Returns the exit code.

    sweep.json records `command` as the command that was called. Errors are printed as by launcher/main.py.
    """

    def taken(launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        from launcher.submit.to_slurm import needs_values

        if needs_values(launcher):
            why = "chooses trials by the results of earlier ones, so they are not known before submission"
            raise Refused([Finding("hydra/sweeper", "", why, "run it with launcher/main.py")])
        hydra_state.command = list(command)
        return take(launcher, job_overrides)

    hydra_state.take = taken
    try:
        return hydra_app.main([*line, "hydra/launcher=preference_handover"])
    finally:
        hydra_state.take = None


def refuse_without_slurm(config: TrialConfig) -> None:
    """Raises Refused if the config is not for a Slurm cluster."""
    if not config.cluster.is_slurm:
        name = config.cluster.name
        why = "runs on this machine, without Slurm and without sbatch scripts"
        raise Refused([Finding("cluster", name, why, "name a Slurm cluster, such as cluster=slurm")])
