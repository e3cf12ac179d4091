"""examples:
  python -m launcher report                            the last sweep, into its own folder report/
  python -m launcher report 4711 --format html,md      the sweep that array 4711 belongs to
  python -m launcher report runs/tune --out /tmp/tune  into another folder
  python -m launcher report --evaluate                 first compute the exact KL and samples that are missing;
                                                       loads the models on this machine
The report of a sweep that is not done shows what is known and names what is missing.
exit codes: 0 the report was written, 1 an evaluation failed (the report was written nevertheless), 2 usage.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from launcher import whole_file
from launcher.dotted_keys import at
from launcher.findings import Finding, Refused
from launcher.report import gather, markdown, recorded, table_csv, text, trial_files
from launcher.status import states
from launcher.sweep import find
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

FORMATS = ("html", "md", "csv", "png")
_DRAWN = ("html", "png")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", default=find.LAST, help="folder, array id, name or `last`")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, help="where to write (default: SWEEP/report)")
    words = "some of html,md,csv,png (default: all; without matplotlib, which the first and last need, md,csv)"
    parser.add_argument("--format", metavar="LIST", help=words)
    parser.add_argument("--evaluate", action="store_true", help="compute the exact KL and samples that are missing")


def run(args: argparse.Namespace) -> int:
    sweep = find.sweep(args.sweep)
    formats = _formats(args.format) if args.format is not None else _possible()
    out = folder(sweep, args.out)
    failed = evaluate(sweep) if args.evaluate else []
    look = states.look(sweep)
    report = gather.gather(sweep, look.trials, look.answers.troubles)
    for path in write(report, out, formats):
        print(path)
    for warning in text.warnings(report):
        print(f"! {warning}", file=sys.stderr)
    for trial in failed:
        print(f"! trial {trial.name} could not be evaluated; see the messages above", file=sys.stderr)
    return 1 if failed else 0


def folder(sweep: Sweep, out_option: Path | None) -> Path:
    """Where the report is written. Raises Refused for somebody else's sweep: others may read its folder."""
    if out_option is not None:
        return out_option.expanduser()
    out = sweep.folder / "report"
    if not sweep.own:
        raise Refused([Finding(str(sweep.folder), "", "belongs to somebody else", "choose a folder with --out")])
    if out.is_symlink():
        raise Refused([Finding(str(out), "", "is a link", "remove it, or choose a folder with --out")])
    return out


def write(report: gather.Report, out: Path, formats: list[str]) -> list[Path]:
    """Write report.html and the other formats, each file whole or not at all. Raises Refused."""
    contents: dict[str, bytes] = {}
    if set(_DRAWN) & set(formats):
        from launcher.report import page, plots

        plots.check()
        if "html" in formats:
            contents["html"] = page.render(report).encode()
        if "png" in formats:
            contents["png"] = plots.png(report)
    if "md" in formats:
        contents["md"] = markdown.render(report, "report.png" if "png" in formats else None).encode()
    if "csv" in formats:
        contents["csv"] = table_csv.render(report).encode()
    paths = {form: out / f"report.{form}" for form in formats}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for form, path in paths.items():
            whole_file.write_bytes(path, contents[form])
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise Refused([Finding(str(out), "", why, "choose another folder with --out")]) from error
    return list(paths.values())


def evaluate(sweep: Sweep) -> list[Trial]:
    """Evaluate the trials that are done, but have no evaluation or a failed one. Returns those that failed again.

    Raises Refused for somebody else's sweep: loading its adapters could run its code.
    """
    if not sweep.own:
        why = "belongs to somebody else: evaluating it would load their files and write into their folder"
        raise Refused([Finding(str(sweep.folder), "--evaluate", why, "ask them to evaluate it")])
    todo = [trial for trial in sweep.trials if _lacks_evaluation(trial_files.read_result(trial))]
    failed = []
    for place, trial in enumerate(todo, 1):
        print(f"evaluating trial {trial.name}, {place} of {len(todo)}", flush=True)
        config = trial_files.read_config(trial)
        ranks = recorded.integer(at(config, "model.tensor_model_parallel_size")) or 1
        command = [sys.executable, "-m", "launcher.train.nemo_aligner.evaluate", str(trial.folder)]
        if ranks > 1:
            run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            command = [sys.executable, *run, *command[1:]]
        if subprocess.run(command, check=False).returncode:
            failed.append(trial)
    return failed


def _lacks_evaluation(result: Mapping[str, object] | None) -> bool:
    """Whether a trial is done and was not evaluated, or its evaluation failed."""
    return result is not None and bool(at(result, "evaluation.failed") or "evaluation" not in result)


def _possible() -> list[str]:
    """All formats; those that are text where matplotlib is missing, as in a light installation on a login node."""
    if importlib.util.find_spec("matplotlib"):
        return list(FORMATS)
    print("! report.html and report.png need matplotlib: pip install matplotlib", file=sys.stderr)
    return [form for form in FORMATS if form not in _DRAWN]


def _formats(option: str) -> list[str]:
    formats = list(dict.fromkeys(part.strip() for part in option.split(",") if part.strip()))
    unknown = [part for part in formats if part not in FORMATS]
    if unknown or not formats:
        raise Refused([Finding("--format", option, "is not a list of formats", f"choose from {','.join(FORMATS)}")])
    return formats
