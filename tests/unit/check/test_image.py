"""What a container's image holds is read before anything queues; a set that ranks refuse is refused here."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.check import image
from launcher.compose.trials import PlannedTrial
from launcher.findings import Refused
from launcher.nemo import versions
from launcher.slurm import container
from launcher.submit import resubmit, to_slurm
from launcher.sweep.folder import Sweep
from launcher.trial_config.config import TrialConfig
from tests.unit.check.test_slurm_check import site
from tests.unit.submit.test_prepare import launcher

Trial = Callable[..., TrialConfig]
SITE = "usr/local/lib/python3.12/dist-packages"


@pytest.fixture
def trial(composed: Any, workspace: Path) -> Trial:
    def make(name: str, runtime: str = "pyxis", *words: str, **environment: str) -> TrialConfig:
        keys = [f"cluster=slurm_{runtime}", "model=tiny", "data=sample", f"cluster.container.image='{name}'", *words]
        keys += [f"+cluster.environment.{key}={value}" for key, value in environment.items()]
        config, found = composed(*keys)
        assert not found
        return config

    return make


def installed(root: Path, aligner: str = "0.6.0") -> Path:
    """An image's files: NeMo-Aligner installed, NeMo and Megatron-core as source trees, as in NVIDIA's."""
    info = root / SITE / f"nemo_aligner-{aligner}.dist-info" / "METADATA"
    info.parent.mkdir(parents=True)
    info.write_text(f"Metadata-Version: 2.1\nName: nemo-aligner\nVersion: {aligner}\n")
    for place, numbers in {"opt/NeMo/nemo": (2, 1, 0), "opt/megatron-lm/megatron/core": (0, 10, 0)}.items():
        (root / place).mkdir(parents=True)
        lines = [f"{name} = {number}\n" for name, number in zip(("MAJOR", "MINOR", "PATCH"), numbers, strict=True)]
        (root / place / "package_info.py").write_text("".join(lines))
    return root


def squashed(root: Path, to: Path) -> Path:
    if not shutil.which("mksquashfs"):
        pytest.skip("needs mksquashfs (Debian: squashfs-tools)")
    subprocess.run(["mksquashfs", root, to, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    return to


def as_sif(squashfs: Path, to: Path) -> Path:
    """The same in Apptainer's format, behind a definition file (type 0x4001): see image.squashfs_at."""
    start, table = 40960, 4096
    content = squashfs.read_bytes()
    head = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + b"01\0" + b"02\0" + bytes(16 + 16)
    head += struct.pack("<qqqqqq", 46, 48, table, 48 * 585, start - 512, len(content) + 512)
    descriptors = b"".join(
        struct.pack("<i?IIIqqqqqqq", kind, True, number, 1, 0, offset, size, size, 0, 0, 0, 0).ljust(585, b"\0")
        for number, (kind, offset, size) in enumerate([(0x4001, start - 512, 512), (0x4004, start, len(content))], 1)
    )
    assert len(head) == 128
    to.write_bytes((head.ljust(table, b"\0") + descriptors).ljust(start, b"\0") + content)
    return to


@pytest.mark.parametrize("name", ["nvcr.io#nvidia/nemo", "nvcr.io/nvidia/nemo", "docker://nvcr.io/nvidia/nemo"])
def test_nvidias_images_are_known_by_their_tag(trial: Trial, name: str) -> None:
    for tag, word in {"24.09": "nemo-aligner 0.5.0", "24.12": "pad_length", "25.04": "inference_context"}.items():
        (found,) = image.findings(trial(f"{name}:{tag}"))
        assert found.where == "cluster.container.image" and word in found.why and "25.02" in found.remedy
    assert image.findings(trial(f"{name}:24.12@sha256:{'0' * 64}"))
    for tag in ("25.02", "25.07", "dev"):
        assert image.findings(trial(f"{name}:{tag}")) == []


def test_a_name_with_a_user_is_nvidias(trial: Trial) -> None:
    assert image.versions_in("$oauthtoken@nvcr.io#nvidia/nemo:24.12")["nemo-aligner"] == "0.6.0"


@pytest.mark.parametrize("kind", ["sqsh", "sif", "folder"])
def test_a_file_or_folder_is_looked_into(trial: Trial, tmp_path: Path, kind: str) -> None:
    for aligner, refused in {"0.6.0": True, "0.7.0": False}.items():
        root = installed(tmp_path / aligner, aligner)
        place = root if kind == "folder" else squashed(root, tmp_path / f"{aligner}.sqsh")
        if kind == "sif":
            place = as_sif(place, tmp_path / f"{aligner}.sif")
        expected = {"nemo-aligner": aligner, "nemo_toolkit": "2.1.0", "megatron-core": "0.10.0"}
        assert image.versions_in(str(place)) == expected
        found = image.findings(trial(str(place), "pyxis" if kind == "sqsh" else "apptainer"))
        assert bool(found) == refused and (not found or "0.6.0" in found[0].why)


def test_a_package_and_its_source_tree_are_one(trial: Trial, tmp_path: Path) -> None:
    """Installed in place, as in NVIDIA's images: the release candidate's name differs, its numbers do not."""
    root = installed(tmp_path / "i", "0.7.0")
    (root / SITE / "nemo_toolkit-2.1.0rc3.dist-info").mkdir()
    assert set(image.versions_in(str(root))) == set(versions.PACKAGES)
    (root / SITE / "nemo_toolkit-2.1.0rc3.dist-info").rename(root / SITE / "nemo_toolkit-2.3.0.dist-info")
    assert "nemo_toolkit" not in image.versions_in(str(root)), "which one counts is not known"


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_an_image_that_is_not_here_is_warned_of(trial: Trial, tmp_path: Path, runtime: str) -> None:
    (found,) = image.warnings(trial(str(tmp_path / "typo.sqsh"), runtime))
    assert found.value.endswith("typo.sqsh") and "not on this machine" in found.why
    (tmp_path / "there.sqsh").touch()
    for name in (str(tmp_path / "there.sqsh"), "docker://nvcr.io/nvidia/nemo:25.02"):
        assert image.warnings(trial(name, runtime)) == []
    assert image.warnings(trial("nvcr.io#nvidia/nemo:25.02")) == []


def test_an_image_that_was_replaced_is_looked_into_again(trial: Trial, tmp_path: Path) -> None:
    place = squashed(installed(tmp_path / "old"), tmp_path / "i.sqsh")
    assert image.findings(trial(str(place)))
    place.unlink()
    squashed(installed(tmp_path / "new", "0.7.0"), place)
    assert image.findings(trial(str(place))) == []


def test_what_cannot_be_known_is_not_claimed(trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.sif").write_bytes(
        b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + bytes(20)
    )
    (tmp_path / "other.img").write_bytes(b"ext4")
    root = installed(tmp_path / "two")
    shutil.copytree(root / SITE, root / "usr/lib/python3/dist-packages")
    other = root / "usr/lib/python3/dist-packages/nemo_aligner-0.6.0.dist-info"
    other.rename(other.with_name("nemo_aligner-0.7.0.dist-info"))
    far = struct.pack("<qqq", 1, 1, -5)
    (tmp_path / "damaged.sif").write_bytes(bytes(32) + b"SIF_MAGIC\0" + bytes(38) + far + bytes(99))
    for name in ("odd.sif", "damaged.sif", "other.img", "two", "absent.sqsh"):
        assert image.findings(trial(str(tmp_path / name))) == [], name
    monkeypatch.setattr(image, "squashfs_at", lambda path: (tmp_path / "absent").stat().st_size)
    assert image.findings(trial(str(tmp_path / "other.img"))) == [], "one that this user may not read"
    monkeypatch.undo()
    wrong = "nvcr.io#nvidia/nemo:24.12"
    assert image.findings(trial(wrong, "pyxis", "cluster.container.mounts=[/my/NeMo:/opt/NeMo]")) == []
    assert image.findings(trial(wrong, "pyxis", "cluster.container.mounts=[/scratch]"))
    assert image.findings(trial(wrong, "pyxis", "cluster.python=/opt/own/bin/python")) == []
    assert image.findings(trial(wrong, "pyxis", "engine=tests.unit.train.second_engine")) == []
    place = squashed(installed(tmp_path / "root"), tmp_path / "i.sqsh")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert image.findings(trial(str(place))) == [], "without unsquashfs"


def test_a_package_that_is_brought_along_comes_first_and_is_mounted(trial: Trial, tmp_path: Path) -> None:
    """The remedy for image 24.12: a folder with NeMo-Aligner 0.7.0."""
    shutil.copytree(installed(tmp_path / "root", "0.7.0") / SITE, tmp_path / "aligner")
    wrong = "nvcr.io#nvidia/nemo:24.12"
    config = trial(wrong, PYTHONPATH=str(tmp_path / "aligner"))
    assert image.findings(config) == []
    (mounts,) = [it for it in container.of_trials(config, tmp_path, "x").srun_args if "container-mounts" in it]
    assert f"{tmp_path}/aligner:{tmp_path}/aligner:ro" in mounts or f"{tmp_path}:{tmp_path}" in mounts
    assert image.findings(trial(wrong, PYTHONPATH=f"/nowhere:{tmp_path}/aligner")) == [], "it may be on the nodes"
    assert "/nowhere" not in str(container.of_trials(trial(wrong, PYTHONPATH="/nowhere"), tmp_path, "x"))
    assert image.findings(trial(wrong, PYTHONPATH=str(tmp_path / "root" / "opt")))
    assert image.findings(trial(wrong, PYTHONPATH=str(tmp_path / "root/opt/NeMo"))) == [], "which counts, is not known"


def test_nothing_is_submitted(trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trial("nvcr.io#nvidia/nemo:25.04")
    check, _ = to_slurm.checks(launcher(tmp_path / "s"), site())
    planned = PlannedTrial([], config)
    assert "inference_context" in " ".join(map(str, check([planned])))
    trials = [([], config.plain)]
    sweep = Sweep.create(tmp_path / "s", command=[], experiment={"name": "x"}, trials=trials)
    monkeypatch.setattr(resubmit, "Site", site)
    with pytest.raises(Refused, match="inference_context"):
        resubmit.submit_again(sweep, sweep.trials)
    assert Sweep.load(sweep.folder).jobs == []


def test_the_table_is_of_the_packages() -> None:
    assert all(set(numbers) == set(versions.PACKAGES) for numbers in versions.IMAGES.values())
