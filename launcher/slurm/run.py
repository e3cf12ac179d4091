"""Runs Slurm's commands: sets their environment and timeout, and reports their failures.

Every failure is a SlurmError that carries the command, its exit code and its output. `count` counts the commands that
were run; `recorded()` and `hooks` see every raw answer.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.findings import LauncherError
from launcher.slurm import profile

PATIENCE = 60.0
"""Seconds a command may take. Slurm 22.05 itself gives up after 18 s without controller, 60 s without slurm.conf."""


_UNANSWERED = re.compile(
    r"Unable to contact|Connection refused|Socket timed out|Zero Bytes|Communication|Transport", re.IGNORECASE
)


@dataclass(frozen=True)
class Answer:
    """The output of a command, unchanged."""

    command: tuple[str, ...]
    code: int | None
    """None if the command was ended because it took too long."""
    stdout: str
    stderr: str
    seconds: float


class SlurmError(LauncherError):
    """A command of Slurm failed, or its output cannot be read. `answer` has the whole output; str() is one line."""

    def __init__(self, answer: Answer, why: str = "") -> None:
        self.answer = answer
        self.command, self.code, self.stderr, self.why = answer.command, answer.code, answer.stderr, why
        super().__init__(f"{shlex.join(answer.command[:8])}: {why or self.message or f'exit code {answer.code}'}")

    @property
    def unanswered(self) -> bool:
        """Whether no answer came. The controller may still have done what it was asked."""
        return self.code is None or bool(_UNANSWERED.search(self.stderr))

    @property
    def refused(self) -> bool:
        """Whether Slurm answered that it does not do what it was asked. False: it may have done it, or will yet."""
        return bool(self.code) and not self.unanswered

    @property
    def message(self) -> str:
        """The command's error output on one line, without the `sbatch: error: ` at its beginning."""
        lines = [re.sub(r"^(\w+: )?(error|fatal): ", "", line) for line in self.stderr.splitlines()]
        return "; ".join(line for line in lines if line.strip())


class SlurmMissing(SlurmError):
    """The command is not on the PATH."""


class SlurmTimeout(SlurmError):
    """A command took too long. sbatch may still have submitted the job: look for it by its name."""


count: Counter[str] = Counter()
"""How often each command was run by this process."""

hooks: list[Callable[[Answer], None]] = []
"""Called with every answer, failures included; for --debug."""


@contextmanager
def recorded() -> Iterator[list[Answer]]:
    """Collects the answers of the commands run inside."""
    answers: list[Answer] = []
    hooks.append(answers.append)
    try:
        yield answers
    finally:
        hooks.remove(answers.append)


def log_to(path: Path) -> Callable[[Answer], None]:
    """A hook that appends every answer to a file, a JSON object a line, for bug reports. Only its user may read it."""

    def write(answer: Answer) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **asdict(answer)}) + "\n")

    return write


# Variables in a user's profile that would change what these commands print.
_FORMATTING = ("SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a Slurm command: this process's, without the variables of a job (see `profile`)."""
    return profile.without_job(os.environ if base is None else base)


def run(
    *command: str | os.PathLike[str],
    timeout: float = PATIENCE,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    tolerate: str = "",
) -> Answer:
    """Run a command of Slurm, without a shell. Raises SlurmError.

    The command gets its own session, so that Ctrl-C does not interrupt an sbatch.

    tolerate   pattern of error output that is not a failure, such as a job that Slurm has forgotten
    """
    line = tuple(os.fspath(word) for word in command)
    count[line[0]] += 1
    began = time.monotonic()

    def answer(code: int | None, stdout: str, stderr: str) -> Answer:
        made = Answer(line, code, stdout, stderr, time.monotonic() - began)
        for hook in hooks:
            hook(made)
        return made

    try:
        with subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment() if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                stdout, stderr = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # a site's sbatch may be a script around the real one
                stdout, stderr = process.communicate()
                late = answer(None, stdout, stderr)
                raise SlurmTimeout(late, f"no answer in {timeout:.0f} s") from None
    except FileNotFoundError as error:
        if error.filename != line[0]:
            raise  # cwd does not exist
        raise SlurmMissing(
            answer(None, "", ""), "not found on the PATH: is this a machine of a Slurm cluster?"
        ) from None
    given = answer(process.returncode, stdout, stderr)
    if given.code and not (tolerate and re.search(tolerate, stderr)):
        raise SlurmError(given)
    return given


def ask(*command: str, **options: object) -> Answer:
    """Run a query whose output is the same in every language, time zone and profile. Raises SlurmError."""
    env = {name: value for name, value in environment().items() if not name.startswith(_FORMATTING)}
    # BITSTR_LEN=0: otherwise sacct and squeue cut an array's list of elements after 64 characters
    env |= {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C", "TERM": "dumb"}
    return run(*command, env=env, **options)  # type: ignore[arg-type]


@contextmanager
def reading(answer: Answer) -> Iterator[None]:
    """Turn a failure to parse `answer` into a SlurmError that shows it."""
    try:
        yield
    except (ValueError, KeyError, AttributeError) as error:
        raise SlurmError(answer, f"cannot read its answer: {error!r}") from error
