"""The evaluation behind the training of local trials: a stand-in module in the place of launcher.evaluate."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.local.run import RunStopped
from launcher.status.trial_state import TrialState
from launcher.sweep import evaluation
from launcher.sweep.folder import Sweep
from tests.unit.local.test_local import STAND_IN, make, processes_of, run, until

# Evaluates as EVALUATE says: "well", "badly" (an error is noted), "die", "hang". Notes what it was called with.
EVALUATE = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "calls.jsonl").open("a") as stream:
    stream.write(json.dumps({"trials": sys.argv[2:], "results": [(folder / n / "result.json").exists() for n in "01"],
                             "threads": os.environ["OMP_NUM_THREADS"]}) + "\\n")
mode = os.environ.get("EVALUATE", "well")
if mode == "hang":
    time.sleep(600)
if mode == "die":
    os._exit(9)
for number in sys.argv[2:]:
    place = folder / number / "evaluation"
    place.mkdir(exist_ok=True)
    name = "scores.json" if mode == "well" else "error.json"
    (place / name).write_text(json.dumps({"error": "OSError: no memory"}))
sys.exit(mode != "well")
"""


@pytest.fixture(autouse=True)
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "standin_train.py").write_text(STAND_IN)
    (tmp_path / "code" / "standin_evaluate.py").write_text(EVALUATE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def evaluated(tmp_path: Path, *behave: dict[str, Any], wanted: bool = True, **more: Any) -> tuple[Sweep, list[Any]]:
    sweep = make(tmp_path, *behave, after_training=wanted)
    states = run(sweep, evaluation="standin_evaluate", **more)
    return sweep, states


def calls(sweep: Sweep) -> list[dict[str, Any]]:
    path = sweep.folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_one_process_evaluates_what_is_done_once_all_have_trained(tmp_path):
    sweep, states = evaluated(tmp_path, {}, {}, {"all": "raise"})
    assert [state.state for state in states] == ["DONE", "DONE", "FAILED"]
    assert [state.error for state in states[:2]] == ["", ""]
    assert calls(sweep) == [{"trials": ["0", "1"], "results": [True, True], "threads": calls(sweep)[0]["threads"]}]
    assert evaluation.read(sweep.trials[0].folder).text == "evaluated"


def test_off(tmp_path):
    sweep, states = evaluated(tmp_path, {}, wanted=False)
    assert [state.state for state in states] == ["DONE"]
    assert calls(sweep) == []


@pytest.mark.parametrize(("mode", "said"), [("badly", "OSError: no memory"), ("die", "exit code 9")])
def test_a_failed_evaluation_fails_no_trial(tmp_path, monkeypatch, mode, said):
    monkeypatch.setenv("EVALUATE", mode)
    _, states = evaluated(tmp_path, {}, {})
    assert [state.state for state in states] == ["DONE", "DONE"]
    assert all(said in state.error and not state.evaluating for state in states)


def test_a_signal_ends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EVALUATE", "hang")
    seen: list[list[TrialState]] = []

    def stop_then(states: list[TrialState]) -> None:
        seen.append(states)
        if states[0].evaluating and (states[0].trial.folder.parent / "calls.jsonl").exists() and len(seen[-1]) == 1:
            os.kill(os.getpid(), 15)

    sweep = make(tmp_path, {}, after_training=True)
    with pytest.raises(RunStopped) as stopped:
        run(sweep, evaluation="standin_evaluate", on_update=stop_then)
    (state,) = stopped.value.states
    assert state.state == "DONE" and not state.evaluating and "stopped" in state.error
    until(lambda: not processes_of(sweep))
