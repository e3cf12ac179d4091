"""The job's side of a rank: what it imports, where it may write, and the variables that it starts with."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import launcher.job
from launcher.job import ranks

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(launcher.job.__path__)))
def test_a_job_needs_the_standard_library_alone(name: str) -> None:
    """Python without site-packages, the environment or the working directory: as on a node that has python3 only."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import launcher.job.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    tops = {module.partition(".")[0] for module in done.stdout.split()}
    assert tops <= {*sys.stdlib_module_names, "launcher", "__main__"}, tops


def test_a_home_that_can_be_written_stays(tmp_path: Path) -> None:
    assert ranks.writable_caches({"HOME": str(tmp_path)}) == {}
    assert ranks.writable_caches({"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "new" / "folder")}) == {}


@pytest.mark.parametrize("env", [{}, {"HOME": ""}, {"HOME": "/proc"}, {"HOME": "/dev/null"}])
def test_without_a_home_every_cache_is_private(env: dict[str, str]) -> None:
    moved = ranks.writable_caches(env)
    assert set(moved) == {"HOME", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR"}
    home = Path(moved["HOME"])
    assert home.stat().st_mode & 0o777 == 0o700 and home.stat().st_uid == os.getuid()
    assert all(Path(place).is_relative_to(home) for place in moved.values())
    assert len(set(moved.values())) == len(moved)


def test_a_cache_that_is_not_mounted_is_moved_and_the_others_stay(tmp_path: Path) -> None:
    moved = ranks.writable_caches({"HOME": str(tmp_path), "HF_HOME": "/proc/shared/huggingface"})
    assert set(moved) == {"HF_HOME"}
    Path(moved["HF_HOME"], "nemo_nlp_tmp").mkdir(parents=True)  # as NeMo's import does


def test_ranks_are_numbered_by_slurm() -> None:
    env = {
        "SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NNODES": "3", "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "2",
    }  # fmt: skip
    assert ranks.rank_variables(env) == {
        "RANK": "3", "LOCAL_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    assert ranks.start_name(env) == "8.2"
