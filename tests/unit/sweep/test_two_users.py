"""Alice and Mallory on one machine, with real user ids: what Mallory leaves where both can write does Alice no harm."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from launcher.sweep.folder import Sweep
from tests.unit.status.test_states import make

ROOT = Path(__file__).resolve().parents[3]
ALICE, MALLORY = 20001, 20002
_LIGHT = "import launcher.commands.status, launcher.submit.actions, launcher.job.begin_end"


@cache
def python() -> str | None:
    """A Python that other users can run and that has what the light commands need: its standard library."""
    for candidate in dict.fromkeys([sys.executable, shutil.which("python3") or "", "/usr/bin/python3"]):
        try:
            command = [candidate, "-c", _LIGHT]
            env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
            subprocess.run(
                command, user=ALICE, group=ALICE, extra_groups=[], env=env, cwd="/", check=True, capture_output=True
            )
            return candidate
        except (OSError, subprocess.CalledProcessError):
            continue
    return None


@dataclass
class Desk:
    """A folder where everybody can write, as /tmp or a scratch disk, and Slurm's commands, which note their calls."""

    folder: Path

    @property
    def calls(self) -> list[str]:
        noted = self.folder / "calls"
        return noted.read_text().splitlines() if noted.exists() else []

    def run(self, user: int, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": f"{self.folder}/home-{user}",
            "LAUNCHER_RUNS": f"{self.folder}/runs", "PYTHONDONTWRITEBYTECODE": "1", "SLURM_CONF": "/nowhere",
        }  # fmt: skip
        done = subprocess.run(
            command, user=user, group=user, extra_groups=[], env=env, cwd=self.folder, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        assert not ok or done.returncode == 0, done.stderr
        return done

    def launcher(self, user: int, *words: str) -> subprocess.CompletedProcess[str]:
        interpreter = python()
        assert interpreter
        done = self.run(user, interpreter, "-m", "launcher", *words, ok=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def sweep(self, user: int, name: str) -> Sweep:
        """A sweep of a user's whose array Slurm runs; others may look at it."""
        made = make(self.folder / "runs" / name)
        for path in (made.folder, *made.folder.rglob("*")):
            os.chown(path, user, user)
        made.folder.chmod(0o755)
        return made


@pytest.fixture
def desk() -> Iterator[Desk]:
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    if python() is None:
        pytest.skip("no Python here that another user can run")
    folder = Path(tempfile.mkdtemp(prefix="two-users-", dir="/tmp"))  # pytest's own folders are root's alone
    folder.chmod(0o1777)
    for user in (ALICE, MALLORY):
        (folder / f"home-{user}").mkdir(mode=0o700)
        os.chown(folder / f"home-{user}", user, user)
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0o1777)
    (folder / "bin").mkdir()
    row = "69|69|0|RUNNING|$(date +%s)|$(date +%s)|0:05|1-00:00:00|0|1|n1|main|None|"
    for name, body in (("squeue", f'echo "{row}"'), ("sacct", ""), ("sbatch", "echo 70"), ("scancel", "")):
        (folder / "bin" / name).write_text(
            f'#!/bin/bash\n[ "$0" = "${{0%squeue}}" ] && echo "$(basename $0) $*" >>{folder}/calls\n{body}\n'
        )
        (folder / "bin" / name).chmod(0o755)
    (folder / "calls").touch()
    (folder / "calls").chmod(0o666)
    try:
        yield Desk(folder)
    finally:
        shutil.rmtree(folder)


def precious(desk: Desk) -> Path:
    path = desk.folder / f"home-{ALICE}" / "precious.txt"
    path.write_text("precious")
    os.chown(path, ALICE, ALICE)
    return path


def test_what_a_command_without_a_name_acts_on_is_the_users_own(desk: Desk) -> None:
    own = desk.sweep(ALICE, "alices")
    os.utime(own.folder / "sweep.json", (1, 1))
    desk.sweep(MALLORY, "newest")
    assert str(own.folder) in desk.launcher(ALICE, "status", "--json").stdout
    assert desk.launcher(ALICE, "cancel", "-y").returncode == 0
    assert [call for call in desk.calls if call.startswith("scancel")] == ["scancel 69_0"]


def test_anothers_sweep_is_shown_and_nothing_of_it_is_run_or_stopped(desk: Desk) -> None:
    theirs = desk.sweep(MALLORY, "theirs")
    target = precious(desk)
    for name in (".retry.lock", ".lock", ".sweep.json.new"):
        desk.run(MALLORY, "ln", "-sf", str(target), str(theirs.folder / name))
    assert "running" in desk.launcher(ALICE, "status", str(theirs.folder)).stdout
    for command in (["cancel", "-y"], ["retry", "-y"], ["retry", "-y", "--code", "current"]):
        done = desk.launcher(ALICE, *command, "--sweep", str(theirs.folder))
        assert done.returncode == 2 and f"another user (id {MALLORY})" in done.stderr
    assert not [call for call in desk.calls if call.startswith(("scancel", "sbatch"))]
    assert target.read_text() == "precious"


def test_a_process_that_anothers_folder_names_gets_no_signal(desk: Desk) -> None:
    with subprocess.Popen(["sleep", "60"], user=ALICE, group=ALICE, extra_groups=[]) as process:
        theirs = desk.sweep(MALLORY, "theirs")
        data = json.loads((theirs.folder / "sweep.json").read_text())
        job = {"kind": "local", "id": f"{os.uname().nodename}:{process.pid}", "trials": [0, 1, 2]}
        data["jobs"] = [{**job, "submitted": "2099-01-01T00:00:00+00:00"}]
        (theirs.folder / "sweep.json").write_text(json.dumps(data))
        assert desk.launcher(ALICE, "cancel", "-y", "--sweep", str(theirs.folder)).returncode == 2
        time.sleep(0.2)
        assert process.poll() is None
        process.kill()


def test_a_sweep_whose_group_may_write_is_still_not_led_astray(desk: Desk) -> None:
    """Links in Alice's own folder, which she has opened to others."""
    own = desk.sweep(ALICE, "shared")
    for path in (own.folder, own.folder / "0"):
        path.chmod(0o777)
    target = precious(desk)
    desk.run(MALLORY, "ln", "-s", str(target), str(own.folder / ".retry.lock"))
    desk.run(MALLORY, "ln", "-s", str(target), str(own.folder / "0" / "result.json"))
    desk.run(MALLORY, "mkfifo", str(own.folder / "0" / "metrics.jsonl"))
    assert "running" in desk.launcher(ALICE, "status", str(own.folder)).stdout
    done = desk.launcher(ALICE, "retry", "-y", "--sweep", str(own.folder))
    assert done.returncode == 1 and "symbolic" in done.stderr
    assert target.read_text() == "precious"


def test_a_sweep_is_private(desk: Desk) -> None:
    own = desk.sweep(ALICE, "private")
    own.folder.chmod(0o700)  # as Sweep.create leaves it
    assert desk.run(MALLORY, "cat", str(own.folder / "0" / "config.yaml"), ok=False).returncode != 0
    done = desk.launcher(MALLORY, "status", str(own.folder))
    assert done.returncode == 2 and "Permission denied" in done.stderr


def test_code_in_a_folder_where_others_write_does_not_run(desk: Desk) -> None:
    """A job's script is run in such a folder: it starts the sweep's own copy of the launcher, not Mallory's."""
    own = desk.sweep(ALICE, "alices")
    hostile = desk.folder / "launcher" / "job"
    desk.run(MALLORY, "mkdir", "-p", str(hostile))
    for name in (
        hostile.parent / "__init__.py",
        hostile / "__init__.py",
        hostile / "begin_end.py",
        desk.folder / "json.py",
    ):
        desk.run(MALLORY, "sh", "-c", f"echo 'raise SystemExit(\"hostile code ran\")' >{name}")
    interpreter, code = python(), own.folder / "code" / "0"
    lines = [
        f"sweep={own.folder} pythonpath={code}/launcher.zip python_on_node={interpreter}",
        "container= environment=() srun_args=()",
        f"source {code}/functions.sh && export_environment",
        "on_node -c 'import launcher.job.begin_end as module; print(module.__file__)'",
        f"cd {shlex.quote(str(own.folder))} && $python_on_node -m launcher.job.begin_end || :",
    ]
    done = desk.run(ALICE, "bash", "-c", "\n".join(lines))
    assert "hostile" not in done.stdout + done.stderr
    assert done.stdout.strip() == f"{code}/launcher.zip/launcher/job/begin_end.py"


def test_anothers_numbers_are_not_read_from_a_shared_cache(desk: Desk) -> None:
    """Mallory has computed the same reference before, or says so."""
    (desk.folder / "cache").mkdir()
    (desk.folder / "cache").chmod(0o1777)
    script = (
        "import os, struct, sys; from pathlib import Path;"
        "from launcher.train.nemo_aligner.savings.reference_cache import Cache, row_digest;"
        f"row, cache = row_digest([b'x']), Cache(Path('{desk.folder}/cache/reference'), {{'base': 'a'}});"
        "cache.refresh(); found = cache.find(row); print(found is None or list(struct.unpack('<f', found)));"
        "cache.write('part', {row: struct.pack('<f', float(os.getuid()))})"
    )
    interpreter = python()
    assert interpreter
    desk.run(MALLORY, interpreter, "-c", script)
    (desk.folder / "cache" / "reference").chmod(0o1777)
    assert desk.run(ALICE, interpreter, "-c", script).stdout.strip() == "True", "computed anew"
    assert desk.run(ALICE, interpreter, "-c", script).stdout.strip() == f"[{float(ALICE)}]", "her own are found"
