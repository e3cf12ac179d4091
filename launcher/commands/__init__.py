"""The subcommands. Each is a module here with add(parser) and run(args) -> exit code; its docstring ends its --help."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

COMMANDS = {
    "sweep": "start a sweep: check its trials, submit them to Slurm or run them here (as launcher/main.py does)",
    "status": "how each trial is, in one table (or --json)",
    "watch": "the same, live, with progress bars; keys open a log, cancel or retry a trial",
    "logs": "what a trial printed; of a failed one, the lines that say why",
    "cancel": "stop trials, waiting or running",
    "retry": "run again what failed, from its last checkpoint",
    "report": "compare the trials: table, plots, verdicts",
    "export": "a trained adapter as peft and vLLM load it, or merged into its base model",
    "render": "print the sbatch script of a stage, without submitting it",
    "pipeline": "conversion, data, sweep and report as Slurm jobs, in one command",
    "doctor": "check what this machine has for running sweeps",
    "completion": "make the shell complete commands, options, configs, keys and sweeps",
}


class Command(NamedTuple):
    """A subcommand, ready to parse its words and run."""

    parser: argparse.ArgumentParser
    run: Callable[[argparse.Namespace], int]


def program() -> str:
    """How the user called this program: `dpo-launcher`, or `python -m launcher` where it is not installed."""
    return "dpo-launcher" if Path(sys.argv[0]).name == "dpo-launcher" else "python -m launcher"


def load(name: str) -> Command:
    """Import one subcommand and no other, so that each answers fast. `sweep` has none: Hydra parses its words."""
    module = importlib.import_module(f"launcher.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=f"{program()} {name}",
        description=COMMANDS[name],
        epilog=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add(parser)
    return Command(parser, module.run)
