"""What the doctor says of machines: one without Slurm, a real cluster as it was recorded, broken ones."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.check import disk, doctor_slurm
from launcher.check import doctor as health
from launcher.check.cluster_limits import Site
from launcher.check.doctor import Line
from launcher.commands import doctor
from tests.unit.slurm.test_slurm import RECORDED, said
from tests.unit.slurm.test_slurm_commands import Fakes, fakes  # noqa: F401

PLACES = {"/usr/bin", "/bin"}


@pytest.fixture
def bench(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> Fakes:  # noqa: F811
    """A PATH with nothing but what a test puts there and the shell's own tools."""
    tools = fakes.folder.parent / "tools"
    tools.mkdir()
    for name in ("sh", "env", "cat", "touch", "sleep"):
        (tools / name).symlink_to(next(f"{place}/{name}" for place in PLACES if os.path.exists(f"{place}/{name}")))
    monkeypatch.setenv("PATH", f"{fakes.folder}:{tools}")
    return fakes


@pytest.fixture
def cluster(bench: Fakes) -> Fakes:
    """Slurm 22.05.8 as it answered; scontrol is asked for two things."""
    for label in ("version", "cluster 2", "associations"):
        bench.add_recorded(label)
    bench.add("scontrol", said("cluster"))
    ping = RECORDED["ping"]["stdout"].strip()
    bench.add("scontrol", said("cluster"), first=f'[ "$1" = ping ] && {{ echo "{ping}"; exit 0; }}')
    bench.add("srun", "usage: srun [-N nodes]\n")
    return bench


def lines(runs: Path, topic: str, deep: bool = False) -> list[tuple[str, str]]:
    return [(line.state, line.what) for line in doctor.checks(runs, deep) if line.topic == topic]


def test_a_machine_without_slurm(bench: Fakes, tmp_path: Path) -> None:
    said_of = {line.topic: line for line in doctor.checks(tmp_path / "runs", False)}
    assert said_of["Slurm"].state == "warning" and "cluster=local" in said_of["Slurm"].what
    assert not {"partitions", "accounts", "containers"} & set(said_of)
    assert (said_of["runs"].state, said_of["clock"].state) == ("ok", "ok")
    assert not (tmp_path / "runs").exists()  # looking changes nothing


def test_a_cluster(cluster: Fakes, tmp_path: Path) -> None:
    assert lines(tmp_path, "Slurm") == [
        ("ok", "version 22.05.8"),
        ("ok", "controllers: head1 up"),
        ("ok", "cluster lab; sweeps of over 1001 trials become several arrays (MaxArraySize)"),
    ]
    assert lines(tmp_path, "partitions") == [
        ("ok", "main (default): 2 of 2 nodes usable, 2 GPUs a node, at most 7 d"),
        ("ok", "short: 2 of 2 nodes usable, 2 GPUs a node, at most 5 min"),
        ("warning", "dead: 2 of 2 nodes usable, 2 GPUs a node, no time limit; is DOWN: jobs wait until it is up"),
        ("ok", "wide: 2 of 2 nodes usable, 2 GPUs a node, no time limit"),
    ]
    assert lines(tmp_path, "accounts") == [("ok", "research (default), QoS high/normal"), ("ok", "root, QoS normal")]
    assert lines(tmp_path, "containers")[0][1].startswith("neither pyxis nor apptainer")


def test_limits_of_accounts_are_shown(cluster: Fakes, tmp_path: Path) -> None:
    cluster.add("sacctmgr", "lab|ml|main|ml|normal||10|1-00:00:00|gres/gpu=8|node=4\nfar|x||x|normal|||||\n")
    limits = "at most 1 d a job, at most 10 jobs at once, 8 gres/gpu a job, 4 node in all"
    assert lines(tmp_path, "accounts") == [("ok", f"ml (default) in partition main, QoS normal: {limits}")]
    cluster.add("sacctmgr", "")
    assert lines(tmp_path, "accounts")[0][0] == "missing"
    cluster.add("sacctmgr", stderr="You are not running a supported accounting_storage plugin\n", code=1)
    assert lines(tmp_path, "accounts") == [
        ("ok", "this cluster uses no accounts: cluster.account and cluster.qos need not be set")
    ]
    cluster.add("sacctmgr", stderr="sacctmgr: error: Unable to contact slurmdbd\n", code=1)
    assert lines(tmp_path, "accounts")[0][0] == "warning"


def test_nodes_that_are_down(cluster: Fakes, tmp_path: Path) -> None:
    cluster.add_recorded("cluster with a node drained 2")
    assert lines(tmp_path, "partitions")[0][1].startswith("main (default): 1 of 2 nodes usable")
    cluster.add("sinfo", said("cluster 2").replace("idle", "down*"))
    assert lines(tmp_path, "partitions")[0][0] == "warning"


@pytest.mark.parametrize(
    ("answer", "state", "what"),
    [
        (
            {"stdout": "Slurmctld(primary) at head1 is DOWN\n", "code": 1},
            "missing",
            "no controller answers (head1 DOWN)",
        ),
        ({"stderr": "scontrol: error: Zero Bytes were transmitted\n", "code": 1}, "missing", "Zero Bytes"),
        ({"stderr": "Could not establish a configuration source\n", "code": 1}, "warning", "no cluster's slurm.conf"),
        ({"first": "sleep 30"}, "missing", "no answer in 3 s"),
    ],
)
def test_a_cluster_that_does_not_answer(
    cluster: Fakes, tmp_path: Path, answer: dict[str, Any], state: str, what: str
) -> None:
    cluster.add("scontrol", **answer)
    found = lines(tmp_path, "Slurm")
    assert (found[-1][0], what in found[-1][1]) == (state, True), found


def test_an_old_slurm(cluster: Fakes, tmp_path: Path) -> None:
    cluster.add("sbatch", "slurm 20.11.9\n")
    assert lines(tmp_path, "Slurm")[0] == ("warning", "version 20.11.9: the launcher needs 22.05 or newer")


def test_containers(cluster: Fakes, tmp_path: Path) -> None:
    cluster.add("srun", "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH\n")
    cluster.add("apptainer", "apptainer version 1.3.4\n")
    assert lines(tmp_path, "containers") == [
        ("ok", "srun knows pyxis' --container-image: cluster=slurm_pyxis; no enroot on this machine, which nodes need"),
        ("ok", "apptainer version 1.3.4: cluster=slurm_apptainer"),
    ]
    cluster.add("enroot")
    assert lines(tmp_path, "containers")[0][1].endswith("cluster=slurm_pyxis")
    (cluster.folder / "apptainer").rename(cluster.folder / "singularity")
    assert lines(tmp_path, "containers")[1][0] == "warning"


def test_a_python_without_nemo_matters_where_nothing_else_could_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "_IMPORTED", ("torch_of_nowhere",))
    (alone,) = health.nemo(deep=True, needed=True)
    (beside,) = health.nemo(deep=True, needed=False)
    assert (alone.state, beside.state) == ("missing", "warning")
    assert "torch_of_nowhere" in alone.what and "pip install" in alone.remedy and "container" in beside.what


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    (good,) = health._packages("x", {"submitit": "1.5.4"}, "missing", "")
    assert (good.state, good.what) == ("ok", "submitit 1.5.4")
    (other,) = health._packages("x", {"submitit": "9.9"}, "missing", "pip")
    assert other.state == "warning" and "submitit 1.5.4 (known to work: 9.9)" in other.what
    (none,) = health._packages("x", {"no-such-package-of-ours": "1"}, "missing", "pip")
    assert (none.state, none.what) == ("missing", "no-such-package-of-ours is not installed")


@pytest.mark.parametrize(
    ("program", "state", "what"),
    [
        (
            'print("noise"); print(\'{"seconds": 14.2, "torch": "2.13.0", "gaps": ["cuda"], "cuda": 0}\')',
            "ok",
            "in 14 s",
        ),
        ('print(\'{"seconds": 200, "torch": "2", "gaps": [], "cuda": 8}\')', "warning", "8 CUDA devices"),
        ("import no_such_module", "missing", "No module named 'no_such_module'"),
        ("import time; time.sleep(9)", "warning", "takes over 1 s"),
    ],
)
def test_the_deep_import(monkeypatch: pytest.MonkeyPatch, program: str, state: str, what: str) -> None:
    monkeypatch.setattr(health, "_IMPORT", program)
    monkeypatch.setattr(health, "_IMPORT_PATIENCE_S", 1.0)
    line = health._import()
    assert (line.state, what in line.what) == (state, True), line


def test_gpus(bench: Fakes) -> None:
    cards = "NVIDIA H100 80GB HBM3, 81559, 550.54, 9.0\n" * 2 + "Tesla V100-SXM2-32GB, 32768, 550.54, 7.0\n"
    bench.add("nvidia-smi", cards)
    found = [line for line in health.devices() if line.topic == "GPUs"]
    assert [(line.state, line.what.partition(";")[0]) for line in found] == [
        ("ok", "2 x NVIDIA H100 80GB HBM3, 80 GiB, driver 550.54, bf16 units"),
        ("warning", "1 x Tesla V100-SXM2-32GB, 32 GiB, driver 550.54"),
    ]
    bench.add("nvidia-smi", "NVIDIA-SMI has failed\n", code=9)
    (broken,) = [line for line in health.devices() if line.topic == "GPUs"]
    assert broken.state == "warning" and "NVIDIA-SMI has failed" in broken.what


def states(found: Any) -> dict[str, str]:
    return {line.topic: line.state for line in found}


def test_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda path: disk.FileSystem("tmpfs", "tmpfs", "/tmp"))
    assert states(health.runs_folder(tmp_path, many_nodes=True))["runs"] == "warning"
    assert states(health.runs_folder(tmp_path, many_nodes=False))["runs"] == "ok"
    real = os.statvfs(tmp_path)
    for flag, free, inodes, expected in (
        (os.ST_RDONLY, 10**13, 9, {"runs": "missing"}),
        (0, 10**6, 9, {"runs": "ok", "space": "warning", "clock": "ok", "locks": "ok"}),
        (0, 10**13, 0, {"runs": "ok", "space": "warning", "clock": "ok", "locks": "ok"}),
        (0, 10**13, 9, {"runs": "ok", "space": "ok", "clock": "ok", "locks": "ok"}),
    ):
        room = SimpleNamespace(f_flag=flag, f_bavail=free, f_frsize=1, f_files=real.f_files or 9, f_favail=inodes)
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda path, room=room: room)
            assert states(health.runs_folder(tmp_path, many_nodes=False)) == expected


@pytest.mark.parametrize(("off", "state"), [(0, "ok"), (-30, "warning"), (30, "warning")])
def test_the_clock_against_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, state: str) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + off)
    line = health._clock(tmp_path)
    assert line.state == state and (state == "ok" or "30 s" in line.what)
    assert list(tmp_path.iterdir()) == []


def test_the_answer_for_scripts_and_the_exit_code(
    bench: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    doctor.add(parser)
    code = doctor.run(parser.parse_args(["--json", "--runs", str(tmp_path)]))
    answer = json.loads(capsys.readouterr().out)
    assert (answer["format"], answer["exit_code"], answer["ok"]) == (1, code, code == 0)
    assert {"topic", "state", "what", "remedy"} == set(answer["checks"][0])
    monkeypatch.setattr(doctor, "checks", lambda runs, deep: [Line("runs", "missing", "no\nplace", "make it")])
    assert doctor.run(parser.parse_args([])) == 1
    out = capsys.readouterr().out
    assert "missing  runs        no place; make it\n" in out and "1 missing, 0 warnings" in out


def test_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'nemo', 'hydra', 'transformers', 'numpy'}"
    program = (
        "import sys, argparse; from launcher.commands import doctor; p = argparse.ArgumentParser(); doctor.add(p)\n"
        f"doctor.run(p.parse_args([])); print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_import_path())
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def _import_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def test_containers_are_asked_for_without_a_cluster_too(bench: Fakes) -> None:
    found, usable = doctor_slurm.containers()
    assert len(found) == 1 and not usable
    assert list(doctor_slurm.cluster(Site()))[0].state == "warning"


def test_the_versions_known_to_work_are_those_that_are_installed() -> None:
    pins = set(re.findall(r'"([a-z-]+==[0-9.]+)"', (Path(__file__).parents[3] / "pyproject.toml").read_text()))
    assert {f"{name}=={version}" for name, version in health.LIGHT.items()} <= pins
