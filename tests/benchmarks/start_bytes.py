"""Bytes that the ranks of one start read and write until the base model is loaded: 2 nodes of 8 ranks, counted.

    python -m tests.benchmarks.start_bytes

Sixteen real ranks load a random Llama of 50 MB on this machine, three times: as NeMo does by itself (each rank unpacks
the .nemo file), as the launcher does with a file (one rank a node unpacks it), and with a folder. The kernel counts
what each rank reads and writes by system calls (proc(5), /proc/PID/io: rchar, wchar). Sockets count too: where ranks
share the reading, most of what they write is what they send each other, not files. NeMo is imported before the count
begins. Printed in sizes of the model, and for Llama-3-8B's 16 GB.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.conftest import Ranks
from tests.integration.minimal_trial import write_pairs, write_trial

NODES, RANKS = 2, 8
LLAMA3_8B = 16.06e9  # bytes of its weights in bf16
SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8}


def io() -> dict[str, int]:
    """What this process has read and written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def counted() -> None:
    """In a rank: act as one of RANKS on one of NODES, write down the bytes once the model is loaded, and leave."""
    rank = int(os.environ["RANK"])
    node, local = divmod(rank, RANKS)
    folder = Path(os.environ["COUNTED"])
    tmp = folder / f"node{node}"
    os.environ.update(LOCAL_RANK=str(local), LOCAL_WORLD_SIZE=str(RANKS), TMPDIR=str(tmp), GLOO_SOCKET_IFNAME="lo")
    tempfile.tempdir = None
    import torch

    from launcher.train.nemo_aligner import base_model

    load, before = base_model.load, io()

    def and_count(*args: Any) -> None:
        load(*args)
        after = io()
        (folder / f"{rank}.json").write_text(json.dumps({key: after[key] - before[key] for key in ("rchar", "wchar")}))
        torch.distributed.barrier()
        os._exit(0)

    base_model.load = and_count  # type: ignore[assignment]


def counted_as_nemo_does() -> None:
    """The same, with NeMo given the file itself, which every rank then unpacks."""
    counted()
    from launcher.train.nemo_aligner import base_model

    @contextlib.contextmanager
    def itself(nemo: Path, trial_dir: Path) -> Iterator[Path]:
        yield nemo

    base_model.unpacked = itself


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """way -> bytes that all ranks of a node read and write, in sizes of the .nemo file; the larger of both nodes."""
    from data_prep import convert_checkpoint
    from data_prep.models.small_models import write_random_llama

    (folder / "hf").mkdir()
    write_random_llama(folder / "hf", **SHAPE)
    file = convert_checkpoint.convert(str(folder / "hf"), folder / "base.nemo", verify=False)
    size = file.stat().st_size
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    _extract(file, unpacked)
    pairs = write_pairs(folder / "pairs.jsonl", 32)
    train, found = Ranks(), {}
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])  # for the forkserver
    for way, base, change in (
        ("NeMo by itself", file, counted_as_nemo_does),
        ("a file", file, counted),
        ("a folder", unpacked, counted),
    ):
        trial = folder / way
        shape = {"trainer.num_nodes": NODES, "trainer.devices": RANKS, "model.global_batch_size": NODES * RANKS}
        shape |= {"model.dist_ckpt_parallel_load": False} if way == "NeMo by itself" else {}
        write_trial(trial, "tiny", base, dict.fromkeys(("train", "validation", "test"), pairs), shape)
        counts = folder / f"{way}, counts"
        for node in range(NODES):
            (counts / f"node{node}").mkdir(parents=True)
        done = train(trial, NODES * RANKS, change, {"COUNTED": counts})
        assert done.exit_codes == [0] * NODES * RANKS, done.said()
        ranks = [json.loads((counts / f"{rank}.json").read_text()) for rank in range(NODES * RANKS)]
        nodes = [ranks[first : first + RANKS] for first in range(0, NODES * RANKS, RANKS)]
        found[way] = {key: max(sum(rank[key] for rank in node) for node in nodes) / size for key in ("rchar", "wchar")}
    return found


def _extract(file: Path, folder: Path) -> None:
    import tarfile

    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(f"{'a node of 8 ranks':<18}{'reads':>12}{'writes':>12}{'Llama-3-8B reads':>20}{'writes':>12}")
    for way, of in found.items():
        cells = f"{of['rchar']:>10.1f} x{of['wchar']:>10.1f} x"
        print(f"{way:<18}{cells}{of['rchar'] * LLAMA3_8B / 1e9:>17.0f} GB{of['wchar'] * LLAMA3_8B / 1e9:>9.0f} GB")


if __name__ == "__main__":
    main()
