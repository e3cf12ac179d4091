"""Containers on a real cluster: pyxis and Apptainer are stood in for by scripts that record how they were called.

The pyxis stand-in takes the options that pyxis adds to srun away and calls the real srun; Apptainer's runs the command
after its options and the image. So the ranks run, on the host. Both set variables as an image does, which win over the
job's: PYTHONPATH as NVIDIA's images do, and one that cluster.environment sets as well.
"""

from __future__ import annotations

import pytest

from tests.slurm.desk import BETA, Desk, quoted

pytestmark = pytest.mark.slurm
MINE = "+cluster.environment.MINE=" + quoted("the job's $own")
PYXIS = """record "$@"; kept=()
for word in "$@"; do case $word in --container*|--no-container*) ;; *) kept+=("$word");; esac; done
export PYTHONPATH=/opt/Megatron-LM MINE=image
exec REAL "${kept[@]}"
"""
APPTAINER = """record "$@"; shift
while [[ $1 == -* ]]; do case $1 in --pwd) cd "$2" && shift 2;; --bind) shift 2;; *) shift;; esac; done
shift; export PYTHONPATH="${PYTHONPATH:-/opt/Megatron-LM}" MINE=image; exec "$@"
"""


def mounts(desk: Desk) -> list[str]:
    """What a rank sees from outside: the launcher, model and data to read, sweep and cache to write; parents first."""
    folder = desk.folder
    read = [f"{folder}/models", f"{folder}/data/sample"]
    written = [str(desk.sweep_folder), f"{folder}/cache"]
    made = [*(f"{path}:{path}:ro" for path in read), *(f"{path}:{path}" for path in written)]
    return sorted(made, key=lambda mount: (mount.split(":")[0].count("/"), not mount.endswith(":ro"), mount))


def assert_the_jobs_variables_hold(desk: Desk) -> None:
    for rank in desk.ranks(0):
        kept = f"{desk.sweep_folder}/code/0/launcher.zip"
        assert rank["pythonpath"] == f"{kept}:/opt/Megatron-LM", "ours first, then the image's, and no login node's"
        assert rank["mine"] == "the job's $own" and rank["folder"] == str(desk.sweep_folder)


def test_pyxis(desk: Desk) -> None:
    record = desk.wrap("srun", PYXIS)
    words = ("cluster.container.image=/images/nemo 24.sqsh", "cluster.container.mounts=[/scratch,/a:/b]", MINE)
    desk.env["PYTHONPATH"] = "/login/node"
    done = desk.main("-m", f"{BETA}=0.1,0.2", "trainer.num_nodes=2", *words, group="slurm_pyxis")
    assert done.returncode == 0, done.stderr
    desk.wait_ended()
    assert all(trial.result() for trial in desk.sweep().trials)
    called = desk.calls(record)
    assert len(called) == 2
    for words_ in called:
        assert "--container-image=/images/nemo 24.sqsh" in words_ and "--no-container-mount-home" in words_
        (mounted,) = [word for word in words_ if word.startswith("--container-mounts=")]
        assert mounted.partition("=")[2].split(",") == ["/a:/b", "/scratch:/scratch", *mounts(desk)]
        assert f"--container-workdir={desk.sweep_folder}" in words_
        assert "$own" not in " ".join(words_), "values of cluster.environment may be secret"
        assert "--kill-on-bad-exit=1" in words_
    assert_the_jobs_variables_hold(desk)


def test_apptainer(desk: Desk) -> None:
    record = desk.wrap("apptainer", APPTAINER)
    image = "cluster.container.image=/images/it is nemo.sif"
    desk.env["PYTHONPATH"] = "/login/node"
    done = desk.main("-m", f"{BETA}=0.1,0.2", "trainer.num_nodes=2", image, MINE, group="slurm_apptainer")
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
        assert after_image[:2] == ["bash", f"{desk.sweep_folder}/code/0/in_container.sh"]
        assert after_image[-4:-1] == ["-u", "-m", "launcher.train.slurm_rank"]
        assert words[words.index("--pwd") + 1] == str(desk.sweep_folder)
    assert_the_jobs_variables_hold(desk)


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
