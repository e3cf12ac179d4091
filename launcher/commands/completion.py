"""examples:
  eval "$(dpo-launcher completion bash)"     in ~/.bashrc
  eval "$(dpo-launcher completion zsh)"      in ~/.zshrc, below compinit
  dpo-launcher completion fish > ~/.config/fish/completions/dpo-launcher.fish

The shell calls this command at every press of TAB, so it completes the sweeps and configs that exist at that moment.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from launcher.commands import COMMANDS, load
from launcher.compose import config_files
from launcher.sweep import find

_SCRIPTS = {
    "bash": """_dpo_launcher() {
    mapfile -t COMPREPLY < <(dpo-launcher completion bash --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace
}
complete -o default -F _dpo_launcher dpo-launcher""",
    "zsh": """_dpo_launcher() {
    local -a candidates
    candidates=(${(f)"$(dpo-launcher completion zsh --line "$LBUFFER" 2>/dev/null)"})
    compadd -S '' -a candidates || _files
}
compdef _dpo_launcher dpo-launcher""",
    "fish": "complete -c dpo-launcher -a '(dpo-launcher completion fish --line (commandline -cp) 2>/dev/null)'",
}
_HYDRA_OPTIONS = ("--cfg", "--config-dir", "--help", "--info", "--multirun")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=_SCRIPTS, help=", ".join(_SCRIPTS))
    parser.add_argument("--line", metavar="TEXT", help="print the completions of TEXT, a line up to the cursor")


def run(args: argparse.Namespace) -> int:
    if args.line is None:
        print(_SCRIPTS[args.shell])
        return 0
    *before, last = args.line.split(" ")
    # Bash splits words at = and : too, and replaces only what follows.
    kept = max(last.rfind("="), last.rfind(":")) + 1 if args.shell == "bash" else 0
    for word in candidates([word for word in before if word][1:], last):
        print(word[kept:])
    return 0


def candidates(before: list[str], last: str) -> list[str]:
    """The completions of `last`, if the words `before` stand between it and the program's name."""
    return sorted({word for word in _words(before, last) if word.startswith(last)})


def _words(before: list[str], last: str) -> Iterator[str]:
    if not before:
        yield from COMMANDS
    elif before[0] == "sweep":
        yield from _HYDRA_OPTIONS if last.startswith("-") else _overrides(last)
    elif before[0] in COMMANDS:
        yield from _words_of_command(before[0], last)


def _words_of_command(name: str, last: str) -> Iterator[str]:
    for action in load(name).parser._actions:
        if last.startswith("-"):
            yield from action.option_strings
        elif not action.option_strings:
            yield from action.choices or ()
            if action.metavar == "OVERRIDE":
                yield from _overrides(last)
            elif action.metavar == "SWEEP":
                yield from (find.LAST, *(os.path.relpath(folder) for folder in find.folders()))


def _overrides(last: str) -> Iterator[str]:
    group, is_value, _ = last.partition("=")
    groups = config_files.groups()
    if is_value:
        yield from (f"{group}={choice}" for choice in groups.get(group, ()))
    else:
        yield from (f"{key}=" for key in (*groups, *config_files.keys()))
