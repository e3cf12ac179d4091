"""Checks the command line before Hydra reads it: which words are options, which are overrides, and what is wrong.

Hydra stops at the first unknown key with exit code 1. So this module passes every `key=value` to Hydra as
`++key=value`. Then all of them compose, and launcher/trial_config/ reports everything that is wrong at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.findings import Finding, Refused
from launcher.slurm import client


@dataclass(frozen=True)
class CommandLine:
    """`argv` is for Hydra, `forced` are the keys that the user wrote with a `+`, `note` is one line to print."""

    argv: list[str]
    forced: frozenset[str]
    note: str


def prepare(argv: Sequence[str], config_root: Path) -> CommandLine:
    """Check and rewrite the words after `launcher/main.py`. Raises Refused with every finding in them."""
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_args(list(argv))
    roots = [config_root] + [Path(d) for d in (args.config_dir,) if d]
    overrides = list(args.overrides)
    options = _without(list(argv), overrides)

    findings: list[Finding] = []
    rewritten: list[str] = []
    forced: set[str] = set()
    for word in overrides:
        rewritten.append(_rewrite(word, roots, args.multirun, forced, findings))
    if findings:
        raise Refused(findings)

    note = ""
    if not any(word.lstrip("+").startswith("cluster=") for word in overrides):
        cluster, why = default_cluster()
        rewritten.append(f"cluster={cluster}")
        note = f"cluster={cluster} ({why})"
    shows = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    if not shows and not args.multirun:  # one trial is a sweep of one: same folder, checks and launcher
        rewritten.append("hydra/sweeper=preference_single")
        options = [*options, "--multirun"]
    return CommandLine([*options, *rewritten], frozenset(forced), note)


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
        return word
    options = _options(key, roots)
    if options is not None:
        _check_group(key, override.get_value_element_as_str(), options, findings)
        return word
    if override.is_delete():
        return word
    if override.is_add():
        forced.add(key)
        return "++" + word.lstrip("+")
    return "++" + word


def _options(group: str, roots: list[Path]) -> list[str] | None:
    """The choices of a config group, or None if there is no such group."""
    folders = [root / group for root in roots if (root / group).is_dir()]
    if "." in group or not folders:
        return None
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def _check_group(group: str, value: str, options: list[str], findings: list[Finding]) -> None:
    for choice in value.strip("[]").split(","):
        name = choice.strip().strip("'\"")
        if name and name != "null" and name not in options and not name.startswith(("glob(", "choice(")):
            near = difflib.get_close_matches(name, options, n=1)
            remedy = (f"did you mean {near[0]}? " if near else "") + f"there are: {', '.join(options)}"
            findings.append(Finding(group, name, f"no such {group}", remedy))


def _without(argv: list[str], overrides: list[str]) -> list[str]:
    left = list(argv)
    for word in overrides:
        left.remove(word)
    return left
