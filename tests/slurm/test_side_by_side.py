"""Several trials in one element of an array, each a step of its own on the element's node (cluster.trials_per_node)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.findings import Refused
from launcher.status import states
from launcher.submit import actions
from launcher.submit.resubmit import submit_again
from launcher.sweep import starts
from launcher.sweep.folder import Sweep
from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_until
from tests.slurm.existing import Existing
from tests.slurm.sweeps import make, submit, until
from tests.slurm.test_goes_on import DONE, TRAIN, ended, words

ONE = {"ranks": 1}


def said(sweep: Sweep, trial: int) -> str:
    return "".join(log.read_text() for log in sorted(sweep.trials[trial].folder.glob("log/*_0_log.out")))


def test_trials_share_a_node_not_its_gpus(own_cluster: Cluster, cluster: Existing, tmp_path: Path) -> None:
    """Three trials of one GPU on nodes of two: two elements; the two of the first train at the same time."""
    behave = {"starts": [{**TRAIN, "all": "train"}, DONE], **ONE}
    sweep = make(tmp_path / "sweep", behave, behave, behave, gpus_per_node=1, trials_per_node=2)
    submit(sweep)
    look = until(sweep, lambda look: all("gpus" in said(sweep, n) for n in range(3)))
    first, second, third = (state.job for state in look.trials)
    assert first == second and first.endswith("_0") and third.endswith("_1")
    gpus = [re.search(r"gpus (\S*)", said(sweep, n)) for n in range(3)]
    assert sorted(found[1] for found in gpus[:2] if found) == ["0", "1"]
    asked = cluster.run("scontrol", "show", "job", first).stdout
    assert "gres/gpu=2" in asked and "NumNodes=1" in asked
    with pytest.raises(Refused, match="shares its job with trial 1, which would end too"):
        actions.cancel(look, look.trials[:1])
    cluster.run("scancel", "--signal=TERM", first)
    cluster.run("scancel", third)
    look = until(sweep, lambda look: words(look) == ["DONE", "DONE", "CANCELLED"])
    assert [ended(sweep, n) for n in (0, 1)] == [[("asked", "requeued"), ("done", "")]] * 2
    assert [state.restarts for state in look.trials] == [1, 1, 0]
    assert wait_until(lambda: not cluster.queue(), 30), cluster.queue()


def test_each_has_an_end_of_its_own(cluster: Existing, tmp_path: Path) -> None:
    """One is done at once, one fails and goes on, one has a bug: the element is requeued for the second alone."""
    sweep = make(
        tmp_path / "sweep",
        {**DONE, **ONE},
        {"starts": [{"all": "exit", "saves": 2}, {"all": "done", "seconds": 5}], **ONE},
        {"starts": [{"all": "raise"}, DONE], **ONE},
        {"starts": [{"all": "done", "seconds": 12}], **ONE},
        trials_per_node=4,
        max_restarts=1,
    )
    submit(sweep)
    look = until(
        sweep, lambda look: "goes on from step 2, when the trials beside it have ended" in look.trials[1].reason
    )
    look = until(sweep, lambda look: words(look)[2] == "FAILED")
    assert words(look) == ["DONE", "WAITING", "FAILED", "RUNNING"]
    assert look.trials[2].error == "ValueError: the loss is nan"
    look = until(sweep, lambda look: words(look) == ["DONE", "DONE", "FAILED", "DONE"])
    assert [kind for kind, _ in ended(sweep, 1)] == ["failure", "done"]
    assert [len(starts.read(trial.folder)) for trial in sweep.trials] == [1, 2, 1, 1]
    assert wait_until(lambda: not cluster.queue(), 30), cluster.queue()
    until(sweep, lambda look: look.trials[2].slurm == "FAILED" and look.trials[2].exit_code.startswith("1:0"))
    submit_again(sweep, sweep.trials[2:3])
    look = until(sweep, lambda look: words(look) == ["DONE"] * 4)
    assert look.exit_code == 0


def test_those_that_failed_are_retried_together(cluster: Existing, tmp_path: Path) -> None:
    """As they wait again, what they failed of before is no reason to take them for failed."""
    behave = {"starts": [{"all": "raise"}, DONE], **ONE}
    sweep = make(tmp_path / "sweep", behave, behave, trials_per_node=2)
    submit(sweep)
    until(sweep, lambda look: words(look) == ["FAILED"] * 2 and not cluster.queue())
    submit_again(sweep, sweep.trials)
    look = states.look(Sweep.load(sweep.folder))
    assert not {"FAILED", "CANCELLED"} & set(words(look)) and len({state.job for state in look.trials}) == 1
    assert until(sweep, lambda look: words(look) == ["DONE"] * 2).exit_code == 0


def test_without_requeue_they_go_on_in_one_job(cluster: Existing, tmp_path: Path) -> None:
    behave = {"starts": [TRAIN, DONE], **ONE}
    sweep = make(tmp_path / "sweep", behave, behave, trials_per_node=2, requeue=False)
    submit(sweep)
    look = until(sweep, lambda look: all("gpus" in said(sweep, n) for n in range(2)))
    cluster.run("scancel", "--signal=USR2", look.trials[0].job)
    until(sweep, lambda look: words(look) == ["DONE", "DONE"])
    (one, _), (two, _) = (starts.read(trial.folder) for trial in sweep.trials)
    assert one.then == two.then and one.then.startswith("goes on as job")
    assert len(Sweep.load(sweep.folder).submitted()) == 3
