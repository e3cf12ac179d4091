"""Mounts that hide nothing, and a job's variables that hold whatever the image sets."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.nemo import versions
from launcher.slurm.container import inside, ordered
from launcher.trial_config.cluster import Container

ROOT = Path(__file__).resolve().parents[3]
IN_CONTAINER = ROOT / "sbatch" / "in_container.sh"


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        # the model lies in the folder above clone and sweep: it must not hide the sweep
        (["/s/x:/s/x:ro", "/s/runs/1:/s/runs/1", "/s:/s:ro"], ["/s:/s:ro", "/s/runs/1:/s/runs/1"]),
        (["/a:/a:ro", "/a:/a"], ["/a:/a"]),
        (["/a:/a", "/a:/a:rw"], ["/a:/a"]),
        (["/a/b:/a/b:ro", "/a:/a"], ["/a:/a"]),
        (["/b:/b", "/a:/a:ro", "/c:/c:ro"], ["/a:/a:ro", "/c:/c:ro", "/b:/b"]),
        (["/data/set:/data/set:ro", "/scratch:/data"], ["/scratch:/data", "/data/set:/data/set:ro"]),
        (["/ab:/ab:ro", "/a:/a:ro"], ["/a:/a:ro", "/ab:/ab:ro"]),
        (["/a:/x", "/b:/x/y"], ["/a:/x", "/b:/x/y"]),
    ],
)  # fmt: skip
def test_no_mount_hides_another(mounts: list[str], expected: list[str]) -> None:
    assert ordered(mounts) == expected
    assert ordered([*reversed(mounts)]) == expected or len(expected) == 1
    targets = [Path(mount.split(":")[1]) for mount in ordered(mounts)]
    for place, target in enumerate(targets):
        assert not any(target in earlier.parents for earlier in targets[:place])


def test_the_default_image_is_named_so_that_every_enroot_finds_it() -> None:
    """enroot before 4.0 takes `nvcr.io/nvidia/nemo` for a name on Docker Hub: the registry ends with #."""
    chosen = yaml.safe_load((ROOT / "configs" / "cluster" / "slurm_pyxis.yaml").read_text())["cluster"]["container"]
    assert re.fullmatch(r"nvcr\.io#nvidia/nemo:\d\d\.\d\d", chosen["image"])


def test_the_default_image_is_in_the_table_of_sets_that_work() -> None:
    for name in ("slurm_pyxis", "slurm_apptainer"):
        text = (ROOT / "configs" / "cluster" / f"{name}.yaml").read_text()
        (tag,) = re.findall(r"nvidia/nemo:([\d.]+)", text)
        assert any(f"image {tag}" == each.source for each in versions.WORKING), tag


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_the_working_directory_is_private(runtime: str) -> None:
    container = Container.model_validate({"runtime": runtime, "image": "i"})
    within = inside(container, str(IN_CONTAINER), read=["/c"], written=["/s"], folder="/s")
    words = [*within.srun_args, *within.prefix]
    assert "--container-workdir=/s" in words if runtime == "pyxis" else words[words.index("--pwd") + 1] == "/s"
    assert not any("/tmp" in word and word != str(IN_CONTAINER) for word in words)
    assert list(within.prefix[-2:]) == ["bash", str(IN_CONTAINER)]


def test_the_jobs_variables_hold_whatever_the_image_sets() -> None:
    env = {
        "PATH": os.environ["PATH"], "PYTHONPATH": "/opt/Megatron-LM", "A": "image", "KEPT": "image",
        "IN_CONTAINER_A": "the job's\n$own", "LAUNCHER_PYTHONPATH": "/clone",
    }  # fmt: skip
    show = 'printf "%s|" "$PYTHONPATH" "$A" "$KEPT" "${IN_CONTAINER_A-gone}" "$@"'
    done = subprocess.run(
        ["bash", IN_CONTAINER, "bash", "-c", show, "-", "a b"], env=env, capture_output=True, text=True
    )
    assert done.stdout.split("|")[:-1] == ["/clone:/opt/Megatron-LM", "the job's\n$own", "image", "gone", "a b"]
    env["IN_CONTAINER_PYTHONPATH"] = "/aligner"  # comes before the image's, which is kept
    done = subprocess.run(["bash", IN_CONTAINER, "bash", "-c", show], env=env, capture_output=True, text=True)
    assert done.stdout.startswith("/clone:/aligner:/opt/Megatron-LM|")
