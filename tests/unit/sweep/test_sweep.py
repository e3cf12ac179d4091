"""The sweep folder: whole or not there, readable at any moment."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from launcher import whole_file
from launcher.findings import Refused
from launcher.sweep import config_file, metrics
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import labels
from launcher.units import clock
from launcher.whole_file import write_json


def config(beta: float) -> dict[str, Any]:
    return {
        "trainer": {"devices": 1, "dpo": {"max_steps": 10, "val_check_interval": 0.1}},
        "model": {"dpo": {"ref_policy_kl_penalty": beta}, "optim": {"lr": 5e-6, "betas": [0.9, 0.98]}, "tp_size": None},
    }


def create(folder: Path, betas: tuple[float, ...] = (0.05, 0.1, 0.5), **more: Any) -> Sweep:
    trials = [([f"++model.dpo.ref_policy_kl_penalty={beta}", "++model=tiny"], config(beta)) for beta in betas]
    return Sweep.create(folder, command=["main.py", "-m"], experiment={"name": "x"}, trials=trials, **more)


def test_what_is_created_is_what_is_loaded(tmp_path: Path) -> None:
    made = create(tmp_path / "a b" / "sweep")
    sweep = Sweep.load(made.folder)
    assert [trial.beta for trial in sweep.trials] == [0.05, 0.1, 0.5]
    assert sweep.trials[1].folder == made.folder / "1"
    assert sweep.trials[2].config() == config(0.5)
    assert sweep.trials[0].result() is None and sweep.trials[0].metrics_rows() == []
    assert sweep.trials[0].name == "0 (beta 0.05)"
    assert sweep.data["command"] == ["main.py", "-m"] and sweep.data["versions"]["submitit"]
    assert stat.S_IMODE(sweep.folder.stat().st_mode) == 0o700
    assert not list(sweep.folder.parent.glob(".*")), "nothing is left beside the folder"


def test_hydra_may_have_made_the_folder_before(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "multirun.yaml").write_text("a: 1\n")
    create(tmp_path / "s")
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"0", "1", "2", "code", "multirun.yaml", "sweep.json"}
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


def test_a_sweep_is_never_written_over(tmp_path: Path) -> None:
    create(tmp_path / "s")
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    with pytest.raises(Refused, match="holds a sweep already"):
        create(tmp_path / "s", (1.0,))
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before


def test_a_folder_in_the_way_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "s" / "1").mkdir(parents=True)
    (tmp_path / "s" / "1" / "mine").write_text("")
    with pytest.raises(Refused, match="cannot be written"):
        create(tmp_path / "s")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "mine", "s"]


@pytest.mark.parametrize("parent", ["/proc/nowhere", "/dev/null"])
def test_a_parent_that_takes_no_folder(parent: str) -> None:
    with pytest.raises(Refused) as refused:
        create(Path(parent) / "s")
    assert len(refused.value.findings) == 1 and parent in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Refused, match="Permission denied"):
        create(tmp_path / "s")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_a_path_that_submitit_would_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="%t"):
        create(tmp_path / "100%true")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": "1"}'])
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Refused, match="no sweep folder"):
        Sweep.load(tmp_path)
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(Refused):
        Sweep.load(tmp_path)


def test_jobs_of_many_writers_are_all_recorded(tmp_path: Path) -> None:
    folder = create(tmp_path / "s").folder

    def record(number: int) -> None:
        Sweep.load(folder).record_job("slurm", str(number), [number], script=f"{number}.sbatch")

    threads = [threading.Thread(target=record, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs = Sweep.load(folder).jobs
    assert sorted(int(job.id) for job in jobs) == list(range(12))
    assert all(job.script == f"{job.trials[0]}.sbatch" for job in jobs)


def test_more_trials_are_numbered_on(tmp_path: Path) -> None:
    sweep = create(tmp_path / "s")
    before = len(sweep.trials)  # asked for before, as a sweeper's first batch does
    added = sweep.add_trials([(["x=1"], config(0.7))])
    assert len(added) == 1 and sweep.trials[before:] == added
    assert [trial.number for trial in added] == [3]
    assert Sweep.load(sweep.folder).trials[3].config() == config(0.7)


def test_a_thousand_trials_are_noted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sweep.json has a line for each trial: written trial by trial, it would be written a thousand times over."""
    written: list[Path] = []
    monkeypatch.setattr(whole_file, "write_json", lambda path, data: (written.append(path), write_json(path, data)))
    trials = [([f"x={n}"], {**config(0.1), "n": n}) for n in range(1000)]
    sweep = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=trials)
    assert [path.name for path in written] == ["sweep.json"]
    assert sweep.trials[999].config()["n"] == 999


def test_results_and_metrics_are_read_at_any_moment(tmp_path: Path) -> None:
    trial = create(tmp_path / "s").trials[0]
    (trial.folder / "result.json").write_text('{"beta": 0.05, "fi')
    assert trial.result() is None
    (trial.folder / "result.json").write_text('{"beta": 0.05}')
    assert trial.result() == {"beta": 0.05}
    whole = b'{"time": 1.0, "step": 1, "train/loss": 0.6931}\n{"time": 2.0, "step": 2, "train/loss": 0.68}\n'
    for end in range(len(whole) + 1):
        (trial.folder / "metrics.jsonl").write_bytes(whole[:end])
        lines = trial.metrics_rows()
        assert len(lines) == (end >= 46) + (end >= len(whole) - 1), end
        assert trial.progress(now=3.0).step == len(lines)


def test_labels_name_what_differs_besides_beta(tmp_path: Path) -> None:
    trials = [
        (["++model=tiny", f"++model.dpo.ref_policy_kl_penalty={b}", f"++model.optim.lr={lr}"], config(b))
        for b, lr in ((0.1, 1e-4), (0.5, 1e-4), (0.1, 1e-3))
    ]
    sweep = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=trials)
    assert labels(sweep.trials) == {0: "model.optim.lr=0.0001", 1: "model.optim.lr=0.0001", 2: "model.optim.lr=0.001"}
    assert labels([]) == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (61, "1:01"), (3661, "1:01:01"), (450_000, "5 d 5 h")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, launcher.sweep.folder, launcher.local.rank\n"
    code += "print({'torch', 'omegaconf', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "set()", done.stderr


# --- progress ---


def line(at: float, **values: Any) -> str:
    return json.dumps({"time": at, **{key.replace("_", "/", 1): value for key, value in values.items()}}) + "\n"


def train(step: int, at: float, loss: float | None = 0.6) -> str:
    return json.dumps({"time": at, "step": step, "max_steps": 40, "train/loss": loss, "train/acc": 0.5}) + "\n"


def phase(name: str, at: float) -> str:
    return json.dumps({"time": at, "phase": name, "detail": "x"}) + "\n"


def test_progress_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert metrics.read_progress(path).phase == ""
    path.write_text(phase("starting", 0) + phase("loading model", 10) + phase("loading model", 12))
    seen = metrics.read_progress(path, now=15)
    assert (seen.phase, seen.in_phase, seen.silent, seen.eta, seen.loss) == ("loading model", 5, 3, None, None)
    with path.open("a") as stream:
        stream.write(phase("training", 20) + "".join(train(n, 20 + 2 * n) for n in range(1, 11)) + '{"time": 99, "st')
    seen = metrics.read_progress(path, now=41)
    assert (seen.step, seen.max_steps, seen.loss, seen.accuracy) == (10, 40, 0.6, 0.5)
    assert seen.rate == pytest.approx(0.5) and seen.eta == pytest.approx(59) and seen.phase == "training"


def test_a_new_attempt_begins_anew_and_says_so_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(train(7, 5) + '{"time": 6, "step": 8, "tra')  # killed in the middle of a line
    metrics.append_phase(path, metrics.STARTING)
    assert [found.get("step") for found in metrics.read_all(path)] == [7, None]
    seen = metrics.read_progress(path)
    assert (seen.phase, seen.step, seen.loss) == ("starting", 0, None)


def test_a_loss_that_is_none_is_shown_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(train(1, 5) + train(2, 6, loss=None))
    loss = metrics.read_progress(path).loss
    assert loss is not None and math.isnan(loss)


def test_a_long_file_costs_its_ends_only_and_a_pause_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(train(n, n) for n in range(1, 2001)))
    assert path.stat().st_size > 4 * metrics.TAIL
    seen = metrics.read_progress(path, now=2000)
    assert seen.step == 2000 and seen.rate == pytest.approx(1.0)
    path.write_text("".join(train(n, n + (100_000 if n > 1000 else 0)) for n in range(1, 2001)))
    assert metrics.read_progress(path, now=102_000).rate == pytest.approx(1.0)


def test_garbage_is_no_progress(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n[1]\n{}\n\x00\n" + b'{"time": "now"}\n')
    assert metrics.read_progress(path) == metrics.TrialProgress() and metrics.read_all(path) == []


# --- config_file ---

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(SCALARS, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4))


@given(st.dictionaries(st.text(), TREES, max_size=5))
def test_every_tree_comes_back_through_yaml(tree: dict[str, Any]) -> None:
    assert yaml.safe_load(config_file.dump(tree)) == tree


TEXTS = "1e5 1.0e-3 yes NO ~ null 0x1F 1_000 12:30:45 2024-01-01 ${x} = << nan .inf é *x &x !x @x `x a: # \U0001f600"


@pytest.mark.parametrize("text", [*TEXTS.split(), "a: b", "a #b", "- a", "a\nb", "\x85", "\u2028", "/a b/%j 'q' \"d\""])
def test_text_stays_text_for_every_reader(text: str) -> None:
    written = config_file.dump({"key": text, text: 1})
    assert yaml.safe_load(written) == {"key": text, text: 1}
    if "$" not in text:
        assert OmegaConf.to_container(OmegaConf.create(written)) == {"key": text, text: 1}


@pytest.mark.parametrize("number", [5e-6, 1e22, -1e-300, 0.1, 1.0, math.inf, -math.inf])
def test_floats_are_floats_for_every_reader(number: float) -> None:
    written = config_file.dump({"x": number})
    assert yaml.safe_load(written) == {"x": number} == OmegaConf.to_container(OmegaConf.create(written))
    assert math.isnan(yaml.safe_load(config_file.dump({"x": math.nan}))["x"])


def test_what_has_no_place_in_a_config() -> None:
    with pytest.raises(yaml.YAMLError, match="PosixPath"):
        config_file.dump({"x": Path("/")})


def test_a_sweep_of_a_pipeline_is_read_with_its_stages(tmp_path: Path) -> None:
    sweep = create(tmp_path / "s")
    for kind in ("stage", "slurm", "local"):
        sweep.record_job(kind, "7", [])
    assert [job.kind for job in Sweep.load(sweep.folder).jobs] == ["stage", "slurm", "local"]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's error says neither the file nor the disk, and nothing half written stays."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*/sweep.json'"):
        write_json(tmp_path / "sweep.json", {})
    assert list(tmp_path.iterdir()) == []
