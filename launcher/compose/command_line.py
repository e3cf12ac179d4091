"""Checks the command line before Hydra reads it: which words are options, which are overrides, and what is wrong.

Hydra stops at the first unknown key with exit code 1. So this module passes every `key=value` to Hydra as
`++key=value`. Then all of them compose, and launcher/trial_config/ reports everything that is wrong at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.compose import config_files
from launcher.findings import Finding, Refused
from launcher.slurm import client

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: The Hydra launchers of launcher/plugins.
LAUNCHERS = ("preference_local", "preference_slurm", "preference_write", "preference_handover")


@dataclass(frozen=True)
class CommandLine:
    """The words for Hydra, and what else the user's words say."""

    argv: list[str]
    forced: frozenset[str]
    """The keys that the user wrote with `+` or `++`."""
    note: str
    """One line to print."""
    names_folder: bool
    """Whether the user chose the sweep's folder."""


def prepare(argv: Sequence[str], config_root: Path) -> CommandLine:
    """Check and rewrite the words after `launcher/main.py`. Raises Refused with every finding in them."""
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_intermixed_args(list(argv))  # options may stand between overrides
    roots = [config_root] + [Path(d) for d in (args.config_dir,) if d]
    overrides = list(args.overrides)
    options = _without(list(argv), overrides)

    findings = config_files.base_60_numbers(roots)
    if args.multirun and (args.cfg or args.info):
        findings.append(
            Finding("-m", "", "cannot be combined with --cfg or --info", "drop it, and give one value a key")
        )
    if args.shell_completion:
        why, remedy = "completes no commands of the launcher", 'run: eval "$(dpo-launcher completion bash)"'
        findings.append(Finding("--shell-completion", "", why, remedy))
    rewritten: list[str] = []
    forced: set[str] = set()
    for word in overrides:
        rewritten.append(_rewrite(word, roots, args.multirun, forced, findings))
    if findings:
        raise Refused(findings)

    note = ""
    if args.hydra_help:  # Hydra composes its own config alone, in which the launcher's keys do not exist
        rewritten = [word for word in rewritten if word.startswith(("hydra.", "hydra/"))]
    elif not any(word.lstrip("+").startswith("cluster=") for word in overrides):
        cluster, why = default_cluster()
        rewritten.append(f"cluster={cluster}")
        note = f"cluster={cluster} ({why})"
    shows = args.help or args.hydra_help or args.cfg or args.info
    if not shows and not args.multirun:  # one trial is a sweep of one: same folder, checks and launcher
        rewritten.append("hydra/sweeper=preference_single")
        options = [*options, "--multirun"]
    names_folder = any(word.lstrip("+").startswith(("hydra.sweep.dir=", "hydra.run.dir=")) for word in overrides)
    return CommandLine([*options, *rewritten], frozenset(forced), note, names_folder)


def default_cluster() -> tuple[str, str]:
    """(config of the group `cluster`, why): Slurm if its commands find a cluster, else this machine.

    A machine may have the commands but no cluster (a laptop with the client packages). If only the controller is
    down, there is a cluster, and nothing is run on this machine by default.
    """
    if not client.available():
        return "local", "no sbatch on the PATH"
    if not client.configured():
        return "local", "sbatch is here, but no Slurm configuration"
    return "slurm", "sbatch found a cluster; cluster=local runs here"


def plain(override: str) -> str:
    """An override as the user wrote it (without Hydra's `++`), for folder names and tables."""
    return override.lstrip("+")


def _rewrite(word: str, roots: list[Path], multirun: bool, forced: set[str], findings: list[Finding]) -> str:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        findings.append(Finding(word, "", f"cannot be read ({reason})", "write key=value, and quote it: 'key=\"a b\"'"))
        return word
    key = override.key_or_group
    if override.is_sweep_override() and not multirun:
        findings.append(Finding(key, word.partition("=")[2], "several values", "add -m to run one trial for each"))
    if key.startswith(("hydra.", "hydra/")):
        findings += _of_hydra(key, word.partition("=")[2])
        return word
    options = _options(key, roots)
    if options is not None:
        for choice in _choices(override):
            findings += _check_group(key, choice, options)
        return word.removeprefix("++")  # Hydra has no `++` for a group
    if override.is_delete():
        return word
    if key.startswith("cluster.") and override.value_type is ValueType.SIMPLE_CHOICE_SWEEP and multirun:
        value = word.partition("=")[2]
        why = "with a comma is a sweep: a trial for each value"
        remedy = f"""as one value: '{key}="{value}"'; if a sweep is meant: '{key}=choice({value})'"""
        findings.append(Finding(key, value, why, remedy))
    if override.is_add() or override.is_force_add():
        forced.add(key)
    return "++" + word.lstrip("+")


def _of_hydra(key: str, value: str) -> list[Finding]:
    """Keys of Hydra that its own launchers read, and ours do not."""
    if key == "hydra/launcher" and value not in LAUNCHERS:
        why = "is a launcher of Hydra's, which would train nothing"
        return [Finding(key, value, why, "drop it: cluster=local runs trials here, cluster=slurm submits them")]
    if key.startswith("hydra.launcher."):
        name = key.removeprefix("hydra.launcher.")
        remedy = f"write cluster.{name}={value}, or cluster.sbatch.{name}={value} if cluster has no such key"
        return [Finding(key, value, "is an option of Hydra's own launchers and not read here", remedy)]
    if key == "hydra.sweep.subdir":
        return [Finding(key, value, "is not read: a trial's folder is its number", "drop it")]
    return []


def _choices(override: Override) -> list[str]:
    """The names that an override of a config group chooses; none if it gives a pattern."""
    from hydra.core.override_parser.types import ChoiceSweep

    value = override.value()
    if override.is_sweep_override() and not isinstance(value, ChoiceSweep):
        return []
    chosen = value.list if isinstance(value, ChoiceSweep) else [value]
    flat = [name for item in chosen for name in (item if isinstance(item, list) else [item])]
    return [str(name) for name in flat if name is not None]


def _options(group: str, roots: list[Path]) -> list[str] | None:
    """The choices of a config group, or None if there is no such group."""
    folders = [root / group for root in roots if (root / group).is_dir()]
    if "." in group or not folders:
        return None
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def _check_group(group: str, name: str, options: list[str]) -> list[Finding]:
    if name in options:
        return []
    near = difflib.get_close_matches(name, options, n=1)
    remedy = (f"did you mean {near[0]}? " if near else "") + f"there are: {', '.join(options)}"
    return [Finding(group, name, f"no such {group}", remedy)]


def _without(argv: list[str], overrides: list[str]) -> list[str]:
    left = list(argv)
    for word in overrides:
        left.remove(word)
    return left
