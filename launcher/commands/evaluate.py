"""examples:
  python -m launcher evaluate                        all trials of the last sweep that are done
  python -m launcher evaluate runs/tune 1            trial 1 of this sweep
  python -m launcher evaluate --beside my_adapter    another peft adapter or Hugging Face folder as well
  python -m launcher evaluate --suite ifeval,truthfulqa_mc1 --lm-eval lm/bin/lm_eval    standard suites as well
  python -m launcher evaluate --prompts mine.jsonl --samples 8 --max-tokens 512
The trained policies answer prompts (transformers and peft, or vLLM; no NeMo): greedily once, and some samples a prompt.
Answers and scores go to evaluation/ in each trial's folder, and from there into the report. What is there is not made
again; an evaluation that was interrupted goes on. The reference policy's answers are generated once, and kept in
paths.cache.
exit codes: 0 evaluated, 1 a trial could not be, 2 refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TypeVar

from launcher import machine
from launcher.check import installed
from launcher.findings import Finding, Refused
from launcher.sweep import find

Number = TypeVar("Number", int, float)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="TRIAL|SWEEP", nargs="*", help="trials (0, 2-4); a sweep's folder or name")
    parser.add_argument("-s", "--sweep", metavar="SWEEP", help="folder, array id, name or `last`")
    parser.add_argument("--beside", metavar="PATH", action="append", default=[], help="another adapter or model folder")
    parser.add_argument("--prompts", metavar="FILE", help='JSONL, {"prompt": ...} or {"messages": [...]} a line')
    parser.add_argument("--ifeval", metavar="FILE", help="IFEval's input_data.jsonl")
    parser.add_argument("--samples", type=_count, metavar="N", help="samples a prompt, beside the greedy answer")
    parser.add_argument("--temperature", type=_positive, metavar="T", help="of the samples")
    parser.add_argument("--max-tokens", type=_one_or_more, metavar="N", help="the longest answer")
    parser.add_argument("--seed", type=int, metavar="N", help="of the samples")
    parser.add_argument("--engine", choices=("auto", "transformers", "vllm"), help="who generates")
    parser.add_argument("--vllm-python", metavar="PYTHON", help="the Python that has vLLM, where it is not this one")
    parser.add_argument("--vllm-memory", type=_share, metavar="SHARE", help="of the GPU's memory, for vLLM")
    parser.add_argument(
        "--suite", metavar="TASKS", help="also run these tasks of lm-eval, such as ifeval,truthfulqa_mc1"
    )
    parser.add_argument("--lm-eval", metavar="PROGRAM", help="lm-eval, where it is not lm_eval on the PATH")
    parser.add_argument("--checkpoints", action="store_true", help="also what trials kept before their last step")
    parser.add_argument("--again", action="store_true", help="generate anew what is there")


def run(args: argparse.Namespace) -> int:
    sweep, named = find.trials_and_sweep(args.words, args.sweep)
    sweep.refuse_foreign("evaluate")
    trials = named or [trial for trial in sweep.trials if trial.has_result()]
    if not trials and not args.beside:
        why = "no trial is done yet"
        raise Refused([Finding("SWEEP", str(sweep.folder), why, "wait for the trials (see `status`)")])
    if missing := installed.missing(installed.FOR_EVALUATION):
        remedy = "pip install -e '.[train]', or run this where the trials run"
        raise Refused([Finding("evaluate", "", f"needs {' and '.join(missing)}, not installed here", remedy)])
    machine.share_cores(os.environ)
    from launcher.evaluate.run import evaluate
    from launcher.evaluate.suites import Suites

    suites = Suites.of(args.suite, args.lm_eval) if args.suite else None

    names = ["prompts", "ifeval", "samples", "temperature", "max_tokens", "seed"]
    names += ["engine", "vllm_python", "vllm_memory"]
    changes = {name: getattr(args, name) for name in names}
    failed = evaluate(sweep, trials, args.beside, changes, again=args.again, suites=suites, kept=args.checkpoints)
    for title, error in failed.items():
        print(f"error: {title} could not be evaluated: {error}", file=sys.stderr)
    return 1 if failed else 0


def _count(word: str) -> int:
    return _number(word, int, 0)


def _one_or_more(word: str) -> int:
    return _number(word, int, 1)


def _positive(word: str) -> float:
    return _number(word, float, 1e-3)


def _share(word: str) -> float:
    value = _number(word, float, 0.01)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{word} is no share below 1")
    return value


def _number(word: str, kind: type[Number], least: float) -> Number:
    try:
        value = kind(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no number") from None
    if not value >= least or value == float("inf"):
        raise argparse.ArgumentTypeError(f"{word} is below {least:g}, or infinite")
    return value
