"""The Hydra plugins: the sweepers and launchers that `hydra/sweeper` and `hydra/launcher` name.

Hydra scans this package at every start, so it imports nothing heavy before a launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

from launcher.findings import Finding, Refused

if TYPE_CHECKING:
    from launcher.sweep.folder import Sweep

_HERE = "hydra_plugins.preference_launcher"


class PreferenceSweeper(BasicSweeper):
    """Hydra's grid sweeper, but it does not write files or compose each trial twice before the trials are checked."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size, params)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        launcher = str(self.config.hydra.launcher._target_)
        if not launcher.startswith(_HERE):  # a config file may choose one of Hydra's own
            why = "would train nothing"
            raise Refused([Finding("hydra/launcher", launcher, why, "choose cluster=local or cluster=slurm instead")])
        # Written like the keys from launcher.compose.command_line, so the command line overrides an experiment's.
        chosen = [f"++{key.lstrip('+')}={values}" for key, values in self.params.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = self.split_arguments(parser.parse_overrides([*chosen, *arguments]), self.max_batch_size)
        returns = []
        first = 0
        for batch in batches:
            returns.append(self.launcher.launch(batch, initial_job_idx=first))
            first += len(batch)
        return returns


class PreferenceSingle(PreferenceSweeper):
    """The sweeper without -m: runs one trial, whatever sweep an experiment defines."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size, None)


class _Trials(BaseSubmititLauncher):
    """A launcher of one sweep, whose trials may come in several batches."""

    _EXECUTOR = "slurm"
    sweep: Sweep | None = None


class LocalTrials(_Trials):
    """Runs the trials on this machine through submitit's local executor, as many at once as it has room for."""

    _EXECUTOR = "local"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from launcher.submit.to_local import launch

        return launch(self, job_overrides)


class SlurmTrials(_Trials):
    """Submits the trials to Slurm as one array through submitit's executor, and returns."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from launcher.submit.to_slurm import launch

        return launch(self, job_overrides)


class WrittenTrials(_Trials):
    """Checks the trials and writes the sweep's folder; starts nothing. The plain scripts in sbatch/ use it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from launcher.submit.to_folder import launch

        return launch(self, job_overrides)


class HandedOverTrials(_Trials):
    """Passes the trials to the command that had Hydra compose them: `python -m launcher render` or `pipeline`."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from launcher.compose import hydra_state

        assert hydra_state.take is not None, "preference_handover is for launcher/submit/compose_only.py"
        return hydra_state.take(self, job_overrides)


# Plain dicts, not dataclasses: Hydra's scanner runs this module before it is in sys.modules.
_SWEEPER: dict[str, object] = {"max_batch_size": None, "params": {}}
for group, name, node in (
    ("hydra/sweeper", "preference", {"_target_": f"{_HERE}.PreferenceSweeper", **_SWEEPER}),
    ("hydra/sweeper", "preference_single", {"_target_": f"{_HERE}.PreferenceSingle", **_SWEEPER}),
    ("hydra/launcher", "preference_local", {"_target_": f"{_HERE}.LocalTrials"}),
    ("hydra/launcher", "preference_slurm", {"_target_": f"{_HERE}.SlurmTrials"}),
    ("hydra/launcher", "preference_write", {"_target_": f"{_HERE}.WrittenTrials"}),
    ("hydra/launcher", "preference_handover", {"_target_": f"{_HERE}.HandedOverTrials"}),
):
    ConfigStore.instance().store(group=group, name=name, node=node, provider="preference_launcher")
