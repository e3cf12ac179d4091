"""What Slurm's commands printed on a real 22.05.8 (slurm_22_05.jsonl, recorded by slurm_command.recorded), as rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.slurm import reasons, site, state_words
from launcher.slurm import rows as slurm_rows

RECORDED = {
    answer["label"]: answer
    for answer in map(json.loads, Path(__file__).with_name("slurm_22_05.jsonl").read_text().splitlines())
}


def said(label: str) -> str:
    text: str = RECORDED[label]["stdout"]
    return text


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_queue_with_an_array_that_runs_two_at_a_time() -> None:
    rows = slurm_rows.queue_rows(said("one array"))
    assert {(row.name, row.job_id, row.state.word, row.reason) for row in rows} == {
        ("12_0", 15, "RUNNING", ""),
        ("12_50", 16, "RUNNING", ""),
        ("12_100", 12, "PENDING", "JobArrayTaskLimit"),
        ("12_150", 12, "PENDING", "JobArrayTaskLimit"),
        ("12_200", 12, "PENDING", "JobArrayTaskLimit"),
    }
    runs = next(row for row in rows if row.task_id == 50)
    assert (runs.array_id, runs.nodes, runs.node_count, runs.partition) == (12, "node[1-2]", 2, "main")
    assert (runs.submitted, runs.started, runs.elapsed, runs.limit) == (1795365960, 1795365960, 4, 1800)
    waits = next(row for row in rows if row.task_id == 100)
    assert (waits.started, waits.nodes, waits.restarts) == (None, "", 0)


def test_a_queue_of_all_sorts() -> None:
    rows = {row.name: row for row in slurm_rows.queue_rows(said("queue"))}
    assert len(rows) == len(said("queue").strip().splitlines())
    assert rows["20"].reason == "Job's account not permitted to use this partition (wide allows vip not research)"
    assert {name: rows[name].reason for name in ("21", "23", "19", "22", "17")} == {
        "21": "PartitionTimeLimit",
        "23": "PartitionNodeLimit",
        "19": "Dependency",
        "22": "BeginTime",
        "17": "JobHeldUser",
    }
    assert (rows["22"].limit, rows["22"].task_id, rows["22"].array_id) == (math.inf, None, None)
    again = rows["10_5"]
    assert (again.state.phase, again.restarts, again.reason) == ("waiting", 1, "BeginTime")


def test_a_preempted_job_is_on_its_way_back() -> None:
    low, high = slurm_rows.queue_rows(said("preempted"))
    assert (low.state.word, low.state.phase, low.restarts) == ("COMPLETING", "running", 1)
    assert high.state.phase == "waiting"


def test_ended_jobs_of_the_queue() -> None:
    states = {row.name: (row.state.word, row.state.phase) for row in slurm_rows.queue_rows(said("ended"))}
    assert states == {
        "9": ("CANCELLED", "failed"),
        "3": ("TIMEOUT", "failed"),
        "2_0": ("COMPLETED", "done"),
        "2_1": ("FAILED", "failed"),
        "2_2": ("FAILED", "failed"),
        "2_3": ("COMPLETED", "done"),
        "2_4": ("COMPLETED", "done"),
    }


def test_accounts() -> None:
    rows = {row.name: row for row in slurm_rows.account_rows(said("accounts"))}
    codes = ("exit_code", "exit_signal", "derived_exit_code", "derived_signal")
    assert {name: tuple(getattr(rows[name], code) for code in codes) for name in ("2_0", "2_1", "2_2", "2_3", "4")} == {
        "2_0": (0, 0, 0, 0),
        "2_1": (3, 0, 0, 0),
        "2_2": (0, 11, 0, 0),
        "2_3": (0, 0, 7, 0),  # a step failed, and the script went on
        "4": (9, 0, 0, 9),  # out of memory, as 22.05 says it
    }
    assert rows["9"].state.word == "CANCELLED"
    assert (rows["26"].state.word, rows["26"].state.ended) == ("NODE_FAIL", True)
    assert (rows["3"].started, rows["3"].ended, rows["3"].elapsed, rows["3"].limit) == (1795365948, 1795366036, 88, 60)
    assert (rows["22"].limit, rows["20"].limit, rows["22"].started, rows["22"].nodes) == (math.inf, None, None, "")
    assert rows["2_0"].allocated == {"billing": 1, "cpu": 1, "mem": 4000, "node": 1}
    assert (rows["27"].account, rows["27"].qos, rows["27"].partition, rows["27"].ended) == (
        "research",
        "normal",
        "main",
        None,
    )


def test_waiting_elements_of_an_array_share_a_line_and_become_rows() -> None:
    rows = [row for row in slurm_rows.account_rows(said("accounts")) if row.array_id in (13, 18)]
    few = [row for row in rows if row.array_id == 18]
    assert [(row.name, row.job_id, row.state.word) for row in few] == [(f"18_{n}", 18, "CANCELLED") for n in range(3)]
    many = [row.task_id for row in rows if row.array_id == 13]
    assert len(many) == 39 and many[:6] == [0, 2, 5, 7, 8, 9] and many[-1] == 98  # longer than Slurm writes by itself


def test_every_run_of_a_requeued_job_is_a_row() -> None:
    runs = [(row.name, row.state.word) for row in slurm_rows.account_rows(said("every run"))]
    assert [state for name, state in runs if name == "24"] == ["PREEMPTED", "CANCELLED"]
    assert [state for name, state in runs if name == "27"] == ["NODE_FAIL", "RUNNING"]
    assert [state for name, state in runs if name == "10_5"] == ["REQUEUED", "CANCELLED"]


def test_reasons_may_hold_the_separator_and_sinfos_header_is_skipped() -> None:
    line = said("one array").splitlines()[0].replace("JobArrayTaskLimit", "a|b c")
    assert [row.reason for row in slurm_rows.queue_rows(f"CLUSTER: lab\n{line}\n\n")] == ["a|b c"]
    with pytest.raises(ValueError, match="13 fields expected: 'slurm says hello'"):
        slurm_rows.queue_rows("slurm says hello\n")


@pytest.mark.parametrize(
    ("error", "key", "remedy"),
    [
        ("AssocMaxSubmitJobLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit limit, "
         "user's size and/or time limits)", "cluster.account", "cluster.trials_per_node"),
        ("Batch job submission failed: Invalid qos specification", "cluster.qos", "name one"),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
         "cluster.time", "lower"),
        ("Batch job submission failed: Memory required by task is not available", "cluster.mem_gb", "mem_per_cpu"),
        ("Batch job submission failed: Requested node configuration is not available",
         "cluster.gpus_per_node", "sinfo"),
        ("Batch job submission failed: Invalid account or account/partition combination specified",
         "cluster.account", "sacctmgr"),
        ("something that a site's plugin says", "cluster", "correct the keys"),
    ],
)  # fmt: skip
def test_what_to_do_where_sbatch_refuses(error: str, key: str, remedy: str) -> None:
    """The texts are slurm_errno.c's (22.05)."""
    found = reasons.refused(error)
    assert found[0] == key and remedy in found[1]


@pytest.mark.parametrize(
    ("text", "word", "phase"),
    [
        ("RUNNING", "RUNNING", "running"),
        ("CANCELLED by 1000", "CANCELLED", "failed"),
        ("OUT_OF_ME+", "OUT_OF_ME", "running"),
        ("COMPLETED+", "COMPLETED", "done"),
        ("BRAND_NEW", "BRAND_NEW", "running"),
        ("", "(none)", "running"),
    ],
)
def test_state_words(text: str, word: str, phase: str) -> None:
    assert (state_words.state(text).word, state_words.state(text).phase) == (word, phase)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00", 0), ("3:04", 184), ("90", 5400), ("1:00:00", 3600), ("2-12:00:00", 216000), ("2-12", 216000),
        ("1-02:30", 95400), ("00:00.500", 0), ("UNLIMITED", math.inf), ("infinite", math.inf), ("INVALID", None),
        ("Partition_Limit", None), ("NONE", None), ("", None),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert slurm_rows.duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1h", "-5", "1:2:3:4", "1-", "1 000"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        slurm_rows.duration(text)


@given(st.sets(st.integers(0, 5000), min_size=1), st.none() | st.integers(1, 99))
def test_array_spec_and_back(indices: set[int], at_once: int | None) -> None:
    assert slurm_rows.tasks(slurm_rows.array_spec(indices, at_once)) == sorted(indices)


def test_array_specs() -> None:
    assert slurm_rows.array_spec([7, 0, 1, 2], at_once=2) == "0-2,7%2"
    assert slurm_rows.tasks("0-90:30%1") == [0, 30, 60, 90]
    for bad in ("", "a", "1-2-3", "1,", "0,2,5..."):
        with pytest.raises(ValueError, match="is no array specification"):
            slurm_rows.tasks(bad)
    with pytest.raises(ValueError, match="no elements"):
        slurm_rows.array_spec([])


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}), ("gpu:8", {"": 8}), ("gpu:a100:4(S:0-1)", {"a100": 4}), ("gpu:8(S:0,2),shard:16", {"": 8}),
        ("gpu:a100:4(S:0),gpu:v100:2(S:1),craynetwork:4", {"a100": 4, "v100": 2}), ("shard:gpu:2", {}),
    ],
)  # fmt: skip
def test_gpus_of_a_node(gres: str, gpus: dict[str, int]) -> None:
    assert slurm_rows.gpus(gres) == gpus


def test_resources() -> None:
    assert slurm_rows.resources("cpu=32,mem=125G,gres/gpu=4") == {"cpu": 32, "mem": 128000, "gres/gpu": 4}
    assert slurm_rows.resources("mem=62.50G,node=1") == {"mem": 64000, "node": 1}
    assert slurm_rows.resources("") == {}


# -- the cluster -------------------------------------------------------------------------------------------------------


def test_partitions_with_a_drained_node() -> None:
    groups = site.node_groups(said("cluster with a node drained 2"))
    found = {partition.name: partition for partition in site.partitions(said("cluster with a node drained"), groups)}
    assert {name: (p.state, p.default, p.max_time, p.default_time) for name, p in found.items()} == {
        "main": ("UP", True, 604800, 1800),
        "short": ("UP", False, 300, None),
        "dead": ("DOWN", False, math.inf, None),
        "wide": ("UP", False, math.inf, None),
    }
    main, wide = found["main"], found["wide"]
    assert (main.total_nodes, main.max_nodes, main.most_gpus()) == (2, math.inf, 2)
    assert (main.nodes_with(gpus=2), main.nodes_with(gpus=2, usable=True), main.nodes_with(gpus=3)) == (2, 1, 0)
    assert (main.nodes_with(memory=64000, cpus=16), main.nodes_with(memory=64001)) == (2, 0)
    assert main.admits_account("anyone") and main.admits_qos("anything")
    assert wide.admits_account("vip") and not wide.admits_account("research")


def test_partitions_that_deny_and_that_have_unlike_nodes() -> None:
    line = said("cluster").splitlines()[-2].replace("AllowAccounts=vip", "DenyAccounts=guest,trial")
    line = line.replace("AllowQos=ALL", "AllowQos=high").replace("MaxNodes=UNLIMITED", "MaxNodes=4")
    groups = site.node_groups("wide|idle~|3|64|515000+|gpu:h100:8(S:0-1)\nwide|down*|1|64|256000|(null)\n")
    (wide,) = site.partitions(line, groups)
    assert not wide.admits_account("guest") and wide.admits_account("research")
    assert not wide.admits_qos("normal") and wide.admits_qos("high")
    assert (wide.max_nodes, wide.most_gpus()) == (4, 8)
    assert (wide.nodes_with(memory=515000), wide.nodes_with(memory=515001)) == (3, 0)
    assert [(group.state, group.usable, group.gpus) for group in wide.groups] == [
        ("idle", True, {"h100": 8}),
        ("down", False, {}),
    ]


def test_associations() -> None:
    research, root = site.associations(said("associations"))
    assert (research.account, research.default, research.qos) == ("research", True, {"normal", "high"})
    assert (root.account, root.default, root.max_submit, root.group) == ("root", False, math.inf, {})
    (limited,) = site.associations("lab|ml|gpu|ml|normal|normal|100|1-00:00:00|gres/gpu=8,node=4|gres/gpu=64,mem=1T\n")
    assert (limited.partition, limited.max_submit, limited.max_wall) == ("gpu", 100, 86400)
    assert (limited.max_per_job, limited.group) == ({"gres/gpu": 8, "node": 4}, {"gres/gpu": 64, "mem": 1024 * 1024})
