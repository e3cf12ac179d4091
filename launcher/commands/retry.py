"""examples:
  python -m launcher retry                   all trials of the last sweep that failed or were cancelled
  python -m launcher retry --failed          only those that failed
  python -m launcher retry 1 3 runs/tune     these trials, if they have ended without a result
  python -m launcher retry --code current    with the launcher's current code, not the copy that the sweep keeps
The trials go on from their last checkpoints, on Slurm as one new array of the same sweep. Trials that are done, wait or
run are not touched; if the evaluation of one that is done has ended early, it is evaluated again. Trials that ran on
this machine run here again, and the command waits for them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launcher.commands.cancel import agreed
from launcher.findings import Refused
from launcher.slurm.rows import array_spec
from launcher.status import states
from launcher.submit import actions
from launcher.sweep import find
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="TRIAL|SWEEP", nargs="*", help="trials (0, 2-4); a sweep's folder or name")
    parser.add_argument("-s", "--sweep", metavar="SWEEP", help="folder, array id, name or `last`")
    parser.add_argument("--failed", action="store_true", help="only failed trials, not cancelled ones")
    parser.add_argument(
        "--code",
        choices=("kept", "current"),
        default="kept",
        help="kept (default): the launcher's code that each trial ran last; current: today's, kept from then on",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")


def run(args: argparse.Namespace) -> int:
    sweep, wanted = find.trials_and_sweep(args.words, args.sweep)
    with actions.one_retry(sweep):
        look = states.look(sweep)
        selection = actions.to_retry(look, wanted, args.failed)
        evaluations = actions.to_evaluate(look, wanted)
        left = [(state, why) for state, why in selection.left if state.trial not in evaluations]
        for state, why in left:
            print(f"trial {state.trial.name} {why}: not started again", file=sys.stderr)
        if not selection.chosen and not evaluations:
            print(f"no trial of {sweep.folder} to start again")
            return 1 if left else 0
        trials = [state.trial for state in selection.chosen]
        here = [trial for trial in trials if actions.of_local(sweep, trial)]
        on_slurm = [trial for trial in trials if trial not in here]
        started, evaluated = ([trial.number for trial in some] for some in (trials, evaluations))
        what = " and ".join(filter(None, [_named("", started), _named("the evaluation of ", evaluated)]))
        what += f" of {sweep.folder}"
        if not args.yes and not agreed(f"start {what} again?"):
            print("nothing was started")
            return 0
        from launcher.submit.resubmit import code_to_run, evaluate_again, submit_again

        status = 0
        try:
            submitted = evaluate_again(sweep, evaluations) if evaluations else []
        except Refused as error:
            if not trials:
                raise
            print(f"error: {error}", file=sys.stderr)  # the trials that failed are started all the same
            submitted, status = [], 1
        for array, part in submitted:
            if array is None:
                status = 1
            else:
                print(f"array {array}: {_named('the evaluation of ', part)}", flush=True)
        if not trials:
            return status
        code = code_to_run(sweep, trials, args.code == "current")
        if on_slurm:
            ids = submit_again(sweep, on_slurm, code)
            many, numbers = "s" if len(ids) > 1 else "", [trial.number for trial in on_slurm]
            print(f"array{many} {', '.join(ids)}: trial {array_spec(numbers)}")
            print(f"  status:  python -m launcher status {sweep.folder}", flush=True)
        return max(status, run_here(sweep, here, code)) if here else status


def _named(what: str, numbers: Sequence[int]) -> str:
    """`the evaluation of trials 0,2`; "" for none."""
    return f"{what}trial{'s' if len(numbers) > 1 else ''} {array_spec(numbers)}" if numbers else ""


def run_here(sweep: Sweep, trials: Sequence[Trial], code: int | None) -> int:
    """Run trials on this machine and wait for them. Returns 0: all done, 1: one failed, 128 + signal: stopped."""
    from launcher.local import run as local
    from launcher.status.live import live_view

    try:
        with live_view(trials) as view:
            states = local.run(sweep, trials, on_update=view, code=code)
    except local.RunStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    failed = [state for state in states if state.state != "DONE"]
    for state in failed:
        print(f"error: trial {state.trial.name} failed: {state.remark}; log: {state.log}", file=sys.stderr)
    return 1 if failed else 0
