"""python -m launcher COMMAND: watch, act on and compare the sweeps that launcher/main.py has started.

Each command is a module launcher/commands/<name>.py with add(parser) and run(args) -> exit code; only the one that is
asked for is imported, so that each answers fast.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from pathlib import Path

if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a script: the package lies one folder above

from launcher.findings import LauncherError

COMMANDS = {
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
}
_HELP = """usage: python -m launcher COMMAND [...]

{commands}

SWEEP is a sweep's folder, the id of one of its Slurm arrays, a name (of the experiment or the folder), or `last`, the
default. Names are looked up under `runs` in this folder and under the folders in $LAUNCHER_RUNS.

  python -m launcher status                      the last sweep
  python -m launcher status runs/tune --json     for scripts
  python -m launcher logs 1 -f                   what trial 1 prints
  python -m launcher COMMAND --help              options and examples of a command

Start a sweep with launcher/main.py. Exit codes: 0 well, 1 something failed, 2 refused or misused; status also 3: not
all trials have ended."""


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items())
        print(_HELP.format(commands=listed))
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: {name}: no such command; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return _run(name, rest)
    except LauncherError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 141


def _run(name: str, words: list[str]) -> int:
    module = importlib.import_module(f"launcher.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m launcher {name}",
        description=COMMANDS[name],
        epilog=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add(parser)
    args = parser.parse_args(words)
    with contextlib.suppress(AttributeError):  # not the real stdout, in a test
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # LANG=C knows no "…"
    code: int = module.run(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
