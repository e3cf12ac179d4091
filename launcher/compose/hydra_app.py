"""Runs Hydra on a command line: for launcher/main.py and for the commands that have Hydra compose their trials."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from launcher import terminal
from launcher.compose import hydra_state
from launcher.compose.config_files import config_root
from launcher.findings import LauncherError, Refused

# Hydra finds plugins only in the namespace hydra_plugins.
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "plugins"))


def main(argv: list[str] | None = None, program: str = "") -> int:
    """Run the words of a command line. `program` is how sweep.json names this program, by default the script."""
    from launcher.compose import command_line

    words = sys.argv[1:] if argv is None else argv
    _let_hydra_name_its_options()
    terminal.prepare_streams()
    try:
        terminal.refuse_deleted_folder()
        line = command_line.prepare(words, config_root())
        hydra_state.forced, hydra_state.names_folder = line.forced, line.names_folder
        hydra_state.command = [*(program.split() or [Path(sys.argv[0]).name]), *words]
        if line.note:
            print(line.note, file=sys.stderr)
        return _run_hydra(line.argv)
    except Refused as refused:
        return _refuse(refused)
    except BrokenPipeError:
        return terminal.after_broken_pipe()


def _let_hydra_name_its_options() -> None:
    """Turn off a check in argparse of Python 3.14 and newer, which Hydra up to 1.3.8 fails.

    It refuses a help text that is no string, such as Hydra's for --shell-completion (facebookresearch/hydra#3121).
    """
    if hasattr(argparse.ArgumentParser, "_check_help"):
        argparse.ArgumentParser._check_help = lambda self, action: None


def _run_hydra(argv: list[str]) -> int:
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from launcher.compose.resolvers import register_resolvers

    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here unchanged, and are printed in one line
    sys.argv = [sys.argv[0], *argv]
    app = hydra.main(version_base="1.3", config_path=str(config_root()), config_name="config")(_never)
    try:
        app()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_interrupted(hydra_state.folder), file=sys.stderr)
        return 130
    except Refused:
        raise
    except LauncherError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        print(f"error: {error}", file=sys.stderr)
        if hydra_state.folder:
            print(_what_was_started(hydra_state.folder), file=sys.stderr)
        return 1
    return hydra_state.exit_code


def _what_was_started(folder: Path) -> str:
    return f"see what was started: python -m launcher status {shlex.quote(str(folder))}"


def _interrupted(folder: Path | None) -> str:
    """What Ctrl-C left: nothing, or a sweep whose trials may have been submitted by then."""
    if folder is None:
        return "interrupted, nothing was started"
    return f"interrupted; {_what_was_started(folder)}"


def _never(config: object) -> None:
    raise AssertionError("trials are started by the Hydra launchers in launcher/plugins, never by Hydra's own")


def _refuse(refused: Refused) -> int:
    for finding in refused.findings:
        print(f"error: {finding}", file=sys.stderr)
    count = len(refused.findings)
    print(f"refused: {count} finding{'s' if count != 1 else ''}, nothing was started", file=sys.stderr)
    return Refused.exit_code
