"""Fixtures of the tests that run real NeMo-Aligner: a tiny model, a few pairs, a minimal trial, and ranks to train it.

NeMo's import takes 6 to 13 s. It is done once, in Python's forkserver (preloaded.py); every rank of every trial is a
process forked from there, since Megatron's state allows for one training a process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.minimal_trial import write_pairs, write_trial
from tests.integration.stock import stock

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 600
"""Seconds after which a trial of the tests is taken for hung."""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the whole session: models/, data/."""
    return tmp_path_factory.mktemp("nemo")


@pytest.fixture(scope="session")
def tiny_hf(work: Path) -> Path:
    """The random two-layer Llama as a Hugging Face folder."""
    from data_prep.models import small_models

    return small_models.ensure("tiny", work / "models" / "hf")


@pytest.fixture(scope="session")
def tiny_nemo(work: Path, tiny_hf: Path) -> Path:
    """The same model as a .nemo; that the conversion is right is proved in test_convert.py."""
    from data_prep import convert_checkpoint

    return convert_checkpoint.convert(str(tiny_hf), work / "models" / "tiny.nemo", verify=False)


@pytest.fixture(scope="session")
def pairs(work: Path) -> dict[str, Path]:
    """24 training and 8 held-out pairs; none is in both."""
    held_out = write_pairs(work / "validation.jsonl", 8, start=100)
    return {"train": write_pairs(work / "train.jsonl", 24), "validation": held_out, "test": held_out}


@dataclass
class Trial:
    """A trial's folder and what its ranks ended with."""

    folder: Path
    exit_codes: list[int]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        """Fails with the ranks' last words where there is none."""
        path = self.folder / "result.json"
        assert path.exists(), self.said()
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def values(self, key: str) -> dict[int, float]:
        """step -> metric, such as "train/loss"; of a step made twice, the last."""
        return {line["step"]: line[key] for line in self.lines if key in line}

    def said(self) -> str:
        return "\n".join(path.read_text()[-4000:] for path in sorted((self.folder / "log").iterdir()))


@pytest.fixture
def new_trial(tmp_path: Path, tiny_nemo: Path, pairs: dict[str, Path]) -> Callable[..., Path]:
    """new_trial(**overrides) -> the folder of a trial of `tiny` in fp32, 6 steps of 4 pairs, with its config.yaml.

    An override's dots are written as two underscores: trainer__precision="bf16".
    """

    def make(name: str = "0", **overrides: Any) -> Path:
        changes = {
            "trainer.dpo.max_steps": 6,
            "trainer.dpo.val_check_interval": 3,
            "trainer.dpo.save_interval": 3,
            "model.optim.lr": 5e-3,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        return write_trial(tmp_path / name, "tiny", tiny_nemo, pairs, changes)

    return make


Change = Callable[[], None]


class Ranks:
    """Runs the ranks of a trial, as a launcher would, but forked from a process that has NeMo imported."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.integration.preloaded"])

    def start(
        self, folder: Path, ranks: int = 1, change: Change | None = None, variables: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """The ranks' processes. `change` is a function of a test module, called in each before it trains.

        `variables` are env variables; with TRIAL_ATTEMPT among them SIGUSR2 and SIGTERM are warnings, as under Slurm.
        """
        (folder / "log").mkdir(exist_ok=True)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        processes = []
        for rank in range(ranks):
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(variables or {})}
            env |= {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 7, "SLURM_PROCID": 5, "SLURM_NNODES": 3}  # of no concern
            # No daemon: Megatron writes a sharded checkpoint in a process of its own, which a daemon may not start.
            process = self._context.Process(target=_rank, args=(folder, env, change))
            process.start()
            processes.append(process)
        return processes

    def wait(self, folder: Path, processes: Sequence[Any]) -> Trial:
        end = time.monotonic() + TIMEOUT
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        hung = [process for process in processes if process.is_alive()]
        for process in hung:
            process.kill()
        trial = Trial(folder, [process.exitcode for process in processes])
        assert not hung, trial.said()
        return trial

    def __call__(
        self, folder: Path, ranks: int = 1, change: Change | None = None, variables: Mapping[str, Any] | None = None
    ) -> Trial:
        return self.wait(folder, self.start(folder, ranks, change, variables))


@pytest.fixture(scope="session")
def train() -> Ranks:
    """train(folder, ranks=1) -> Trial, when all of its ranks have ended."""
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # for the forkserver, which takes no sys.path before Python 3.13
    return Ranks()


def _rank(folder: Path, variables: Mapping[str, Any], change: Change | None) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    log = os.open(folder / "log" / f"0_{variables['RANK']}_log.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    from launcher.train import run_trial

    try:
        if change is not None:
            change()
        run_trial(folder, (signal.SIGUSR2, signal.SIGTERM) if "TRIAL_ATTEMPT" in variables else ())
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # as an exception ends a process: not waiting for what its threads still do


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Stock's trials so far, of which several tests need the same."""
    return {}


@pytest.fixture
def stock_trial(train: Any, new_trial: Callable[..., Path], made: dict[str, Any]) -> Callable[..., Any]:
    """stock_trial(ranks=1, **overrides) -> a trial by NeMo-Aligner's own trainer."""

    def run(ranks: int = 1, **overrides: Any) -> Any:
        key = repr((ranks, overrides))
        if key not in made:
            made[key] = train(new_trial("stock", trainer__devices=ranks, **overrides), ranks, stock)
        return made[key]

    return run
