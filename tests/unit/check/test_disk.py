"""What checkpoints take, as measured on real ones, the room for them, and whose disk a folder lies on."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import units
from launcher.check import disk, preflight
from launcher.check.steps import Plan
from launcher.compose.trials import PlannedTrial
from launcher.nemo.base_model import BaseModel
from launcher.trial_config.config import TrialConfig
from tests.unit.conftest import changed
from tests.unit.llama import LLAMA3_8B, TINY, write_described

SMOLLM2 = {
    **TINY,
    "num_layers": 30,
    "hidden_size": 576,
    "ffn_hidden_size": 1536,
    "num_attention_heads": 9,
    "num_query_groups": 3,
    "kv_channels": 64,
    "share_embeddings_and_output_weights": True,
}


def written(shape: dict[str, Any], trial: TrialConfig, plan: Plan | None = None) -> disk.Checkpoints:
    found = disk.checkpoints(BaseModel(Path("m.nemo"), shape, 1000, {"tokenizer/x": 7}), trial, plan)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("model", "shape", "ckpt", "nemo"),
    # bytes of files that NeMo-Aligner 0.7.0 with NeMo 2.1.0 wrote in bf16
    [("tiny", TINY, 259_632, 51_200), ("smollm2_135m", SMOLLM2, 113_931_686, 16_322_560)],
)
def test_as_real_checkpoints_are(composed: Any, model: str, shape: dict[str, Any], ckpt: int, nemo: int) -> None:
    config, _ = composed(f"model={model}")
    found = written(shape, config)
    assert found.size == pytest.approx(ckpt, rel=0.3 if model == "tiny" else 0.01)
    assert found.size >= ckpt
    assert found.count == 2  # the best, the last
    assert found.rest >= nemo


def test_precision_and_what_is_kept(composed: Any) -> None:
    config, _ = composed("model=smollm2_135m")
    kept = "exp_manager.checkpoint_callback_params"
    half = written(SMOLLM2, config).size
    trial = changed(config, {"trainer.precision": "32"})
    single = written(SMOLLM2, trial).size
    assert half - single == 2 * 8_110_080  # no main copy, but weights of 4 bytes
    without = written(SMOLLM2, changed(config, {"model.megatron_amp_O2": False}))
    assert without == written(SMOLLM2, trial)  # weights of 4 bytes in bf16 too
    trial = changed(trial, {f"{kept}.save_top_k": 5})
    assert written(SMOLLM2, trial).count == 6
    trial = changed(trial, {f"{kept}.save_top_k": -1})  # all
    assert written(SMOLLM2, trial, Plan(10, 25, 5, 10)).count == 3 + 1
    trial = changed(trial, {f"{kept}.save_nemo_on_train_end": False})
    assert written(SMOLLM2, trial).rest == 7 + disk._LOG_BYTES
    trial = changed(trial, {"model.peft.peft_scheme": "none"})
    assert written(SMOLLM2, trial).size > 12 * 106_000_000
    assert disk.checkpoints(BaseModel(Path("m"), {}, 1, {}), trial, None) is None


def test_llama_3_8b_takes_a_gigabyte_a_checkpoint(composed: Any) -> None:
    config, _ = composed("cluster=slurm", "model=llama3_8b", "data=sample")
    found = written(LLAMA3_8B, config)
    assert units.size(found.size) == "999 MB" and units.size(found.total) == "2.1 GB"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456_789, "123 MB"), (5e15, "5000 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(("free", "refusals", "warnings"), [(0.5, 1, 0), (1.1, 0, 1), (2.0, 0, 0)])
def test_room(
    composed: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch, free: float, refusals: int, warnings: int
) -> None:
    """Three trials on a disk with `free` times the room that they take."""
    write_described(workspace / "models" / "tiny.nemo", TINY, 1024)
    config, _ = composed("model=tiny")
    trials, folder = [PlannedTrial([], config)] * 3, workspace / "runs" / "s"
    one = written(TINY, config)
    need = 3 * (one.total + one.size)  # all at once, each writing a checkpoint
    real = os.statvfs(workspace)
    room = SimpleNamespace(f_bavail=int(free * need), f_frsize=1, f_flag=real.f_flag)
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    refused, warned = preflight.findings(trials, folder), preflight.warnings(trials, folder)
    assert (len(refused), len(warned)) == (refusals, warnings)
    for finding in [*refused, *warned]:
        assert str(finding).startswith(f"paths.runs={folder}: 3 trials may write 1")
        assert "save_top_k" in finding.remedy
    assert len(preflight.findings(trials, None)) == refusals  # a sweeper's later batch


MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
28 27 0:25 / /home rw,nosuid - nfs4 server:/export/home rw,vers=4.2
29 27 0:26 / /home/my\040lab rw - lustre 10.0.0.1@tcp:/lab rw
30 27 0:27 / /tmp rw - ext4 /dev/vdb rw
31 27 0:28 / /tmp rw - tmpfs tmpfs rw
32 27 0:29 / /homestead rw - xfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "local"),
    [
        ("/home/ann/runs", "nfs4", False),
        ("/home", "nfs4", False),
        ("/home/my lab/runs", "lustre", False),
        ("/homestead/runs", "xfs", True),
        ("/tmp/runs", "tmpfs", True),  # mounted over another one
        ("/scratch", "ext4", True),
    ],
)
def test_whose_disk(path: str, kind: str, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "existing", lambda folder: folder)
    found = disk.file_system(Path(path), MOUNTS)
    assert found is not None and (found.kind, bool(found.local)) == (kind, local)


def test_keys_on_one_local_disk_are_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "existing", lambda folder: folder)
    real = disk.file_system
    monkeypatch.setattr(disk, "file_system", lambda path: real(path, MOUNTS))
    found = disk.not_shared(
        [("paths.runs", Path("/tmp/r")), ("a", Path("/home/x")), ("b", Path("/tmp/m")), ("c", Path("/homestead"))]
    )
    assert [str(finding).partition(";")[0] for finding in found] == [
        "paths.runs=/tmp/r: is on tmpfs (tmpfs at /tmp) (and b), memory of this machine: compute nodes may not see it",
        "c=/homestead: is on xfs (/dev/vdc at /homestead), a disk of this machine: compute nodes may not see it",
    ]


def test_this_machine(tmp_path: Path) -> None:
    found = disk.file_system(tmp_path / "not" / "there")
    assert found is None or tmp_path.is_relative_to(found.point)
    assert disk.free_bytes(tmp_path / "not" / "there") > 0
