"""dpo-launcher COMMAND, or python -m launcher COMMAND: start, watch, stop, retry and compare sweeps."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a script: the package is one folder above

from launcher import terminal
from launcher.commands import COMMANDS, load, program
from launcher.findings import LauncherError

_HELP = """usage: {program} COMMAND [...]

{commands}

SWEEP is a sweep's folder, the id of one of its Slurm arrays, a name (of the experiment or the folder), or `last`, the
default. Names are looked up under `runs` in this folder and under the folders in $LAUNCHER_RUNS.

  {program} sweep -m model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5
  {program} status                      the last sweep
  {program} status runs/tune --json     for scripts
  {program} logs 1 -f                   the output of trial 1 as it grows
  {program} COMMAND --help              options and examples of a command

Exit codes: 0 success, 1 something failed, 2 refused or wrong usage; `status` also has 3: not all trials have ended."""


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    terminal.prepare_streams()
    try:
        terminal.refuse_deleted_folder()
        return _run(words)
    except LauncherError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return terminal.after_broken_pipe()
    except OSError as error:  # a full disk, a file that cannot be read
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
        print(_HELP.format(program=program(), commands=listed), flush=True)
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: {name}: no such command; the commands are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if name == "sweep":  # Hydra parses its arguments
        from launcher.compose import hydra_app

        return hydra_app.main(rest, program=f"{program()} sweep")
    command = load(name)
    args = command.parser.parse_args(rest)
    return command.run(args)


if __name__ == "__main__":
    sys.exit(main())
