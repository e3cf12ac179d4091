"""The subcommands. Each is a module with add(parser) and run(args) -> exit code; its docstring is the end of --help."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

COMMANDS = {
    "sweep": "start a sweep: check its trials, submit them to Slurm or run them here (as launcher/main.py does)",
    "status": "the state of each trial, in one table (or --json)",
    "watch": "the same table, live, with progress bars; keys open a log, cancel or retry a trial",
    "logs": "the output of a trial; if it failed, the lines with the error",
    "cancel": "cancel waiting trials, stop running ones",
    "retry": "start failed trials again, from their last checkpoints",
    "evaluate": "have the trained policies answer prompts, and measure what they say",
    "report": "compare the trials: table, plots, verdicts",
    "export": "write a trained adapter for peft and vLLM, or merged into its base model",
    "render": "print the sbatch script of a stage, without submitting it",
    "pipeline": "submit conversion, data, sweep and report as Slurm jobs that depend on each other",
    "doctor": "check whether sweeps can run on this machine",
    "completion": "make the shell complete commands, options, configs, keys and sweeps",
}


class Command(NamedTuple):
    """A subcommand: its parser and the function that runs it."""

    parser: argparse.ArgumentParser
    run: Callable[[argparse.Namespace], int]


def program() -> str:
    """The name by which the user called this program: `dpo-launcher`, or `python -m launcher` if not installed."""
    return "dpo-launcher" if Path(sys.argv[0]).name == "dpo-launcher" else "python -m launcher"


def load(name: str) -> Command:
    """Import one subcommand only, so that it starts fast. `sweep` has no module: Hydra parses its arguments."""
    module = importlib.import_module(f"launcher.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=f"{program()} {name}",
        description=COMMANDS[name],
        epilog=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add(parser)
    return Command(parser, module.run)
