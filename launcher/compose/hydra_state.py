"""State that main.py and the Hydra plugins share within one command. Only Hydra can call the plugins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext
    from omegaconf import DictConfig

    from launcher.sweep.folder import Sweep


class HydraLauncher(Protocol):
    """A Hydra launcher of launcher/plugins, as Hydra has set it up."""

    config: DictConfig
    hydra_context: HydraContext
    sweep: Sweep | None
    """The sweep that this launcher has written, once it has."""


#: Takes the launcher and the overrides of each trial.
Take: TypeAlias = "Callable[[HydraLauncher, Sequence[Sequence[str]]], Sequence[JobReturn]]"

#: The command as the user gave it, for sweep.json.
command: list[str] = []
#: Keys that the user added with Hydra's `+` or `++`.
forced: frozenset[str] = frozenset()
#: Whether the user chose the sweep's folder. Otherwise it is named by the time, and a number if that is taken.
names_folder: bool = False
#: The sweep's folder, once this command has written it.
folder: Path | None = None
#: The command's exit code. A launcher sets it, since Hydra does not keep the result of a multirun.
exit_code: int = 0
#: The Hydra launcher `preference_handover` calls take(itself, the trials' overrides) instead of running the trials.
take: Take | None = None
