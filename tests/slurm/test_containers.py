"""Containers on a real cluster: pyxis and Apptainer are stood in for by scripts that record how they were called.

The pyxis stand-in takes the options that pyxis adds to srun away and calls the real srun; Apptainer's runs the command
after its options and the image. So the ranks run, on the host.
"""

from __future__ import annotations

import pytest

from tests.slurm.desk import BETA, ROOT, Desk

pytestmark = pytest.mark.slurm
PYXIS = """record "$@"; kept=()
for word in "$@"; do [[ $word == *container* ]] || kept+=("$word"); done
exec REAL "${kept[@]}"
"""
APPTAINER = """record "$@"; shift
while [[ $1 == -* ]]; do case $1 in --pwd) cd "$2" && shift 2;; --bind) shift 2;; *) shift;; esac; done
shift; exec "$@"
"""


def mounts(desk: Desk) -> list[str]:
    """What a rank sees from outside: the launcher, model and data to read, sweep and cache to write."""
    folder = desk.folder
    read = [f"{folder}/data/sample", f"{folder}/models"]
    sweep = f"{desk.sweep_folder}:{desk.sweep_folder}"
    return [f"{ROOT}:{ROOT}:ro", sweep, f"{folder}/cache:{folder}/cache", *(f"{path}:{path}:ro" for path in read)]


def test_pyxis(desk: Desk) -> None:
    record = desk.wrap("srun", PYXIS)
    words = ("cluster.container.image=/images/nemo 24.sqsh", "cluster.container.mounts=[/scratch,/a:/b]")
    done = desk.main("-m", f"{BETA}=0.1,0.2", "trainer.num_nodes=2", *words, group="slurm_pyxis")
    assert done.returncode == 0, done.stderr
    desk.wait_ended()
    assert all(trial.result() for trial in desk.sweep().trials)
    called = desk.calls(record)
    assert len(called) == 2
    for words_ in called:
        assert "--container-image=/images/nemo 24.sqsh" in words_ and "--no-container-mount-home" in words_
        (mounted,) = [word for word in words_ if word.startswith("--container-mounts=")]
        assert mounted.partition("=")[2].split(",") == [*mounts(desk), "/scratch:/scratch", "/a:/b"]
        assert "--kill-on-bad-exit=1" in words_
    assert str(ROOT) in str(desk.ranks(0)[0]["pythonpath"]).split(":")


def test_apptainer(desk: Desk) -> None:
    record = desk.wrap("apptainer", APPTAINER)
    image = "cluster.container.image=/images/it is nemo.sif"
    done = desk.main("-m", f"{BETA}=0.1,0.2", "trainer.num_nodes=2", image, group="slurm_apptainer")
    assert done.returncode == 0, done.stderr
    desk.wait_ended()
    assert all(trial.result() for trial in desk.sweep().trials)
    called = desk.calls(record)
    assert len(called) == 4, "once a rank"
    for words in called:
        assert words[:3] == ["exec", "--nv", "--no-home"]
        binds = [after for word, after in zip(words, words[1:], strict=False) if word == "--bind"]
        assert binds == mounts(desk)
        after_image = words[words.index("/images/it is nemo.sif") + 1 :]
        assert after_image[-4:-1] == ["-u", "-m", "launcher.train.slurm_rank"]
    assert str(ROOT) in str(desk.ranks(0)[0]["pythonpath"]).split(":")


def test_an_image_has_to_be_named(desk: Desk) -> None:
    done = desk.main(f"{BETA}=0.1", group="slurm_apptainer")
    assert done.returncode == 2 and "cluster.container.image" in done.stderr
    assert desk.cluster.queue() == []


def test_a_folder_that_cannot_be_mounted(desk: Desk) -> None:
    desk.folder.rename(odd := desk.folder.with_name("a,b"))
    desk.folder = odd
    done = desk.main(f"{BETA}=0.1", "cluster.container.image=/images/nemo.sqsh", group="slurm_pyxis")
    assert done.returncode == 2 and "comma" in done.stderr
    assert desk.cluster.queue() == [] and not desk.sweep_folder.exists()
