"""Texts of all kinds reach the job as they are and are never run; secrets reach it and are found nowhere."""

from __future__ import annotations

import hashlib
import secrets
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.slurm.desk import BETA, Desk, quoted

pytestmark = pytest.mark.slurm
ODD = "it's  a $(touch ran) `touch ran` \"q\" & ; é漢 #%u %x\nnext $HOME 'x' [1]*"
letters = st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\") | st.sampled_from("$`'\"; %\n")


def check(desk: Desk, name: str, comment: str) -> None:
    """One trial with these texts runs to its end, in a job of that name."""
    words = (f"experiment.name={quoted(name)}", f"cluster.comment={quoted(comment)}")
    done = desk.main(f"{BETA}=0.3", *words)
    assert done.returncode == 0, done.stderr
    desk.wait_ended()
    (array,) = desk.arrays()
    said = desk.cluster.run("squeue", "-h", "--states=all", "-j", array, "-o", "%j").stdout
    assert said.rstrip("\n") == f"{' '.join(name.split())}-{desk.sweep().data['id']}"
    assert desk.accounted(array) == {0: ("COMPLETED", "0:0")}
    (trial,) = desk.sweep().trials
    assert trial.result() is not None
    assert trial.config()["experiment"]["name"] == name
    (log,) = (trial.folder / "log").glob("*_0_log.out")
    assert log.read_text().startswith("rank 0")
    output = desk.sweep_folder / "slurm" / f"{array}_0.out"
    assert output.exists(), list(output.parent.iterdir())
    assert not list(desk.folder.parent.rglob("ran"))


def test_odd_names(desk: Desk) -> None:
    odd = Desk(desk.cluster, desk.folder / ODD)
    odd.set_up()
    check(odd, ODD, ODD)


@settings(
    max_examples=5, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
)
@given(folder=st.text(letters, min_size=1, max_size=20), name=st.text(letters, max_size=40), comment=st.text(letters))
def test_any_names(desk: Desk, folder: str, name: str, comment: str) -> None:
    odd = Desk(desk.cluster, desk.folder / secrets.token_hex(4) / f"x{folder}")
    odd.set_up()
    check(odd, f"n{name}", f"c{comment}")


def test_a_backslash_in_the_folder_is_refused(desk: Desk) -> None:
    """Slurm takes it for `replace nothing` in the names of output files, and drops it."""
    odd = Desk(desk.cluster, desk.folder / "a\\b")
    odd.set_up()
    done = odd.main(f"{BETA}=0.1")
    assert done.returncode == 2 and "backslash" in done.stderr
    assert desk.cluster.queue() == []


def test_secrets(desk: Desk) -> None:
    """They reach every rank, and are in no file of the sweep and on no command line at any time.

    Also where a site's profile sets SBATCH_EXPORT=NONE, with which srun would export nothing.
    """
    tokens = {"HF_TOKEN": secrets.token_hex(16), "WANDB_API_KEY": secrets.token_hex(20)}
    desk.env |= {**tokens, "STANDIN_SECONDS": "1", "SBATCH_EXPORT": "NONE"}
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = process.read_bytes()
                except OSError:
                    continue
                seen.extend(name for name, token in tokens.items() if token.encode() in line)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        done = desk.main("-m", f"{BETA}=0.1,0.2", "trainer.num_nodes=2", "wait=true")
    finally:
        over.set()
        looking.join()
    assert done.returncode == 0, done.stderr
    expected = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in tokens.items()}
    ranks = [rank for trial in range(2) for rank in desk.ranks(trial)]
    assert len(ranks) == 4 and all(rank["secrets"] == expected for rank in ranks)
    assert seen == []
    assert not [token for token in tokens.values() if token in done.stdout + done.stderr]
    files = [path for path in desk.sweep_folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [file for file in files for token in tokens.values() if token.encode() in file.read_bytes()]
    for folder in (desk.sweep_folder, *desk.sweep_folder.rglob("*")):
        assert folder.stat().st_uid == desk.sweep_folder.stat().st_uid
    assert desk.sweep_folder.stat().st_mode & 0o077 == 0
