"""The evaluation of trials on a site with several clusters: a job id of one is another job's on the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.slurm import client
from launcher.status import states
from launcher.status.answers import ask
from launcher.submit import actions, evaluation
from tests import configs
from tests.unit.status.test_states import answers, done, make, queued

EVALUATION = 71


@pytest.mark.parametrize(("cluster", "ours"), [("", True), ("lab", True), ("far", False)])
def test_an_evaluation_on_another_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, ours: bool
) -> None:
    sweep = make(tmp_path / "s", trials=1)
    done(sweep, 0)
    (sweep.folder / "slurm" / "evaluate0.id").write_text(f"{EVALUATION};{cluster}\n" if cluster else f"{EVALUATION}\n")
    sweep.record_job("evaluation", str(EVALUATION), [0], script="evaluate0.sbatch", name="tune-evaluate")
    row = queued(0, "RUNNING", array_id=EVALUATION, job_id=EVALUATION)
    look = states.join(sweep, replace(answers([row]), cluster="lab"))
    (state,) = look.trials
    assert state.evaluation_job == f"{EVALUATION}_0{'' if ours else ';far'}", "`cancel` refuses what is there"
    assert "ended early" not in state.evaluation
    assert actions.to_evaluate(look, []) == [], "it may be running there"
    asked: list[list[int]] = []
    monkeypatch.setattr(client, "cluster_name", lambda: "lab")
    monkeypatch.setattr(client, "squeue", lambda ids, **_: asked.append(ids) or [])
    monkeypatch.setattr(client, "sacct", lambda ids, **_: [])
    ask(sweep)
    assert asked == ([[EVALUATION]] if ours else [])


def test_an_evaluation_that_sbatch_may_have_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make(tmp_path / "s", trials=1)
    monkeypatch.setattr(evaluation, "load", lambda folder: configs.typed(("cluster=slurm", "model=tiny"), {}))
    monkeypatch.setattr(evaluation, "text", lambda *args, **_: "#!/bin/bash\n")
    for error, said in (("Socket timed out", "not known whether"), ("Invalid qos", "did not take the evaluation")):

        def refuse(path: Path, receipt: Path, error: str = error) -> int:
            raise client.SlurmError(client.Answer(("sbatch",), 1, "", error, 0.0))

        monkeypatch.setattr(client, "submit", refuse)
        assert evaluation.submit(sweep, [0]) is None
        note = capsys.readouterr().err
        assert said in note and (f"squeue --me --name=dpo-evaluate-{sweep.data['id']}" in note) == (said[0] == "n")
