"""What would never run is refused before sbatch is called: exit code 2, all findings at once, nothing left behind."""

from __future__ import annotations

import pytest

from tests.slurm.desk import BETA, Desk

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cluster.partition=nope"], ["cluster.partition=nope: no such partition", "main"]),
        (["cluster.partition=dead"], ["cluster.partition=dead: is DOWN"]),
        (["cluster.account=vip"], ["cluster.account=vip: you have no association", "research"]),
        (["cluster.partition=wide"], ["partition wide does not admit it"]),
        (["cluster.qos=nope"], ["cluster.qos=nope: account research may not use it"]),
        (["cluster.partition=short", "cluster.time=6"], ["cluster.time=6: partition short allows 5 minutes"]),
        (["cluster.time=8-00:00:00"], ["cluster.time=8-00:00:00: partition main allows 10080 minutes"]),
        (
            ["trainer.num_nodes=7", "model.global_batch_size=7"],
            ["trainer.num_nodes=7: partition main gives a job"],
        ),
        (["cluster.gpus_per_node=9"], ["cluster.gpus_per_node=9: partition main has 8 GPUs a node"]),
        (["cluster.mem_gb=63"], ["cluster.mem_gb=63", "its largest have 62.5 GB"]),
        (
            ["cluster.time=99999", "cluster.account=vip", "model.micro_batch_size=3", "cluster.sbatch.array=0-7"],
            ["cluster.time=99999", "cluster.account=vip", "model.global_batch_size=4", "cluster.sbatch.array"],
        ),
    ],
)
def test_refused_before_submission(desk: Desk, words: list[str], expected: list[str]) -> None:
    record = desk.wrap("sbatch", 'record "$@"\nexec REAL "$@"\n')
    done = desk.main("-m", f"{BETA}=0.1,0.2", *words)
    assert done.returncode == 2, done.stderr
    for text in expected:
        assert text in done.stderr
    assert "nothing was started" in done.stderr and "Traceback" not in done.stderr
    assert desk.cluster.queue() == [] and desk.calls(record) == []
    assert not desk.sweep_folder.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cluster.constraint=nonsense"], "Invalid feature specification"),
        (["cluster.nodelist=node99"], "Invalid node name specified"),
        (["cluster.reservation=none"], "reservation"),
        (["cluster.sbatch.no-such-option=1"], "unrecognized option"),
    ],
)
def test_what_sbatch_alone_can_refuse_is_told_in_one_line(desk: Desk, words: list[str], expected: str) -> None:
    done = desk.main(f"{BETA}=0.1", *words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert desk.cluster.queue() == []


def test_a_controller_that_does_not_answer(desk: Desk) -> None:
    desk.wrap("scontrol", 'echo "slurm_load_ctl_conf error: Unable to contact slurm controller" >&2; exit 1\n')
    done = desk.main(f"{BETA}=0.1")
    assert done.returncode == 2
    assert "Slurm does not answer" in done.stderr and "Traceback" not in done.stderr
    assert desk.cluster.queue() == [] and not desk.sweep_folder.exists()
