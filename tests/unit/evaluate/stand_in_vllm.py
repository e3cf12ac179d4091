"""A stand-in for the package vllm, and a Python that has it: what vllm_worker.py uses of it, and no model.

Its tokens are made of the prompt and the seed, so that equal requests have equal answers. What it was started with and
asked for is in `said.jsonl` beside it; the file `behave`, if it is there, has the trouble it makes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PACKAGE = """
import json, os, pathlib, random, signal, sys, time
from types import SimpleNamespace

__version__ = "9.9.9"
here = pathlib.Path(__file__).parent.parent


def behaviour():
    return (here / "behave").read_text() if (here / "behave").exists() else ""


def say(**what):
    with (here / "said.jsonl").open("a") as stream:
        print(json.dumps({"process": os.getpid(), **what}), file=stream)


def SamplingParams(**named):
    return SimpleNamespace(named=named, **named)


class LLM:
    def __init__(self, **named):
        print("what vLLM prints is no reply")
        say(start=named)
        if behaviour() == "memory":
            raise ValueError("Free memory on device (9.1/79.2 GiB) is less than desired GPU memory utilization (0.5)")
        if behaviour() == "hang":
            say(hangs=True, folder=os.environ["TMPDIR"])
            time.sleep(600)
        self.calls = 0

    def generate(self, prompts, sampling, lora_request, use_tqdm):
        self.calls += 1
        adapter = None if lora_request is None else lora_request.lora_int_id
        say(adapter=adapter, prompts=len(prompts), sampling=[one.named for one in sampling])
        if behaviour() == "die" and self.calls == 2:
            print("CUDA error: an illegal memory access", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return [self.output(*parts, adapter) for parts in zip(prompts, sampling)]

    def output(self, prompt, how, adapter):
        drawn = random.Random(repr([prompt["prompt_token_ids"], how.named.get("seed")]))
        tokens = [drawn.randrange(3, 200) for _ in range(how.max_tokens)]
        reason = "length"
        if behaviour() == "odd":
            tokens = "no tokens"
        if behaviour() == "abort":
            reason = "abort"
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, finish_reason=reason)])
"""
REQUEST = """
class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path):
        self.lora_int_id = lora_int_id
"""


class StandIn:
    """The stand-in in a folder. `python` is to be named as the Python that has vLLM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        package = folder / "vllm"
        (package / "lora").mkdir(parents=True)
        (package / "__init__.py").write_text(PACKAGE)
        (package / "lora" / "__init__.py").touch()
        (package / "lora" / "request.py").write_text(REQUEST)
        about = folder / "vllm-9.9.9.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n")
        self.python = folder / "python"
        self.greet("")

    def greet(self, word: str) -> None:
        """Have its Python print a line before anything else."""
        greeting = f"echo {word}\n" if word else ""
        self.python.write_text(f'#!/bin/sh\n{greeting}PYTHONPATH="{self.folder}" exec "{sys.executable}" "$@"\n')
        self.python.chmod(0o755)

    def behave(self, how: str) -> None:
        """`memory`, `hang` as it starts; `die` at the second request; `odd`, `abort` in its answers; "": well."""
        (self.folder / "behave").write_text(how)

    def said(self, key: str) -> list[dict[str, Any]]:
        """What it has noted under `key`, in order, each with the id of its process."""
        file = self.folder / "said.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [found for line in lines if key in (found := json.loads(line))]
