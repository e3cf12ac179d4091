"""examples:
  python -m launcher export 1 --out beta_0.1                trial 1 of the last sweep: a LoRA adapter for peft and vLLM
  python -m launcher export runs/tune --best --out best     the best trial of a sweep, by its accuracy on held-out pairs
  python -m launcher export --best --by margin --out best   by another measure
  python -m launcher export 1 --merge --out merged          merged into the base model: a whole Hugging Face folder
  python -m launcher export --all --out adapters            all trials that are done, to be served side by side
The folder gets the adapter (or the model), the tokenizer and a model card. Needs torch and safetensors, but no GPU.
exit codes: 0 the folder was written, 2 refused: nothing was written.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path

from launcher.findings import Finding, Refused
from launcher.report import gather, judge, measures
from launcher.sweep import find
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

_NEEDED = ("torch", "safetensors", "numpy")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="TRIAL|SWEEP", nargs="*", help="a trial's number; a sweep's folder or name")
    parser.add_argument("-s", "--sweep", metavar="SWEEP", help="folder, array id, name or `last`")
    parser.add_argument("--best", action="store_true", help="export the best of the trials that are done")
    every = "the adapters of all trials that are done, each in a folder in DIR, to be served side by side"
    parser.add_argument("--all", action="store_true", help=every)
    parser.add_argument(
        "--by", choices=[it.key for it in measures.ranked()], help="the measure for --best (default accuracy)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--merge", action="store_true", help="write the whole model, with the adapter merged into it")
    base = "the base model's name in the adapter's config: a hub name or a folder (default: its name in the .nemo)"
    parser.add_argument("--base", metavar="NAME", help=base)
    parser.add_argument("--force", action="store_true", help="replace the files of an earlier export in DIR")


def run(args: argparse.Namespace) -> int:
    sweep, named = find.trials_and_sweep(args.words, args.sweep)
    if args.all:
        return _run_all(args, sweep, named)
    trial = chosen(sweep, named, args.best, args.by)
    check(trial)
    _check_packages()
    from data_prep.models.export import base_name, export

    out = args.out.expanduser()
    export(sweep, trial, out, merge=args.merge, base=args.base, force=args.force)
    kind = "a whole model" if args.merge else "a LoRA adapter"
    print(f"{out}: trial {trial.name}, {kind}, with tokenizer and model card")
    if not args.merge and not args.base:
        _print_base(base_name(Path(trial.config()["pretrained_checkpoint"]["restore_from_path"])))
    return 0


def _run_all(args: argparse.Namespace, sweep: Sweep, named: list[Trial]) -> int:
    clashing = {"--best": args.best, "--by": args.by, "--merge": args.merge, "TRIAL": named}
    findings = [Finding(option, "", "does not go with --all", "leave one out") for option, on in clashing.items() if on]
    if findings:
        raise Refused(findings)
    done = [trial for trial in sweep.trials if trial.result() is not None]
    if not done:
        remedy = "wait for the trials (see `status`)"
        raise Refused([Finding(str(sweep.folder), "", "no trial has a result", remedy)])
    for trial in done:
        check(trial)
    _check_packages()
    from data_prep.models.export import export_all

    out = args.out.expanduser().absolute()
    command = export_all(sweep, done, out, base=args.base, force=args.force)
    left = len(sweep.trials) - len(done)
    missing = f"; {left} more have no result" if left else ""
    print(f"{out}: {len(done)} LoRA adapters, with tokenizer and model card{missing}")
    print(shlex.join(command))
    if not args.base:
        _print_base(command[2])
    return 0


def _check_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "pip install -e '.[train]', or run this command where the trials run"
        raise Refused([Finding("export", "", f"needs {' and '.join(missing)}, not installed here", remedy)])


def _print_base(name: str) -> None:
    print(f"the base model is called {name}; --base sets the name or folder by which others load it")


def chosen(sweep: Sweep, named: list[Trial], best: bool, by: str | None) -> Trial:
    """The one trial to export; with `best`, prints on stderr why it is the best. Raises Refused."""
    if by and not best:
        raise Refused([Finding("--by", by, "works only with --best", "add --best, or leave --by out")])
    if best and named:
        numbers = ",".join(str(trial.number) for trial in named)
        raise Refused([Finding("TRIAL", numbers, "cannot be combined with --best", "give one of the two")])
    if best:
        report = gather.gather(sweep)
        try:
            best_trial, why = judge.best(report, by or "accuracy")
        except ValueError as error:
            remedy = "wait for the trials (see `status`), or choose another measure with --by"
            raise Refused([Finding(str(sweep.folder), "", str(error), remedy)]) from None
        left = len(report.trials) - len(report.done)
        print(f"trial {best_trial.trial.name}: {why}{f'; {left} more have no result' if left else ''}", file=sys.stderr)
        return best_trial.trial
    trials = named or sweep.trials
    if len(trials) != 1:
        numbers = ", ".join(trial.name for trial in trials[:8])
        raise Refused([Finding("TRIAL", "", f"{len(trials)} trials match ({numbers})", "name one, or use --best")])
    return trials[0]


def check(trial: Trial) -> None:
    """Refuse a trial that has nothing to export, before torch is imported. Raises Refused."""
    if trial.result() is None:
        why = "has no result: it is not done"
        raise Refused([Finding(f"trial {trial.name}", "", why, "wait for it, or `retry` it; see `status`")])
    scheme = trial.config()["model"]["peft"]["peft_scheme"]
    if scheme != "lora":
        why = "is not a LoRA trial: all weights were trained and are in one .nemo"
        remedy = "data_prep/convert_checkpoint.py --to hf"
        raise Refused([Finding(f"trial {trial.name}", f"peft_scheme={scheme}", why, remedy)])
