"""The proof of a conversion: NeMo's model, restored from the .nemo, and HF's give the same logits on a text.

It runs in a process of its own (proof_process.py): NeMo's import takes 13 s and overlaps with the conversion of the
weights, and the stand-ins for CUDA are not installed in the caller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from data_prep.progress import Progress

if TYPE_CHECKING:
    import torch

_PROCESS = Path(__file__).with_name("proof_process.py")

#: Largest allowed difference of a logit, in standard deviations of HF's logits, both computed in fp32. After a right
#: conversion it is often 0 (the same PyTorch kernels in the same order) and, for SmolLM2-135M, 1e-5 if the order
#: differs (HF's sdpa attention; fp64). If one of SmolLM2's 135 million weights is off by 0.5, it is 0.002 to 1.
TOLERANCE = 1e-4

#: Long enough that positions, and with them the rotary frequencies, matter; digits, quotes, accents for the tokenizer.
TEXT = (
    "Human: I have 3 apples, 12 pears and a jar of honey. What could I bake for seven friends tonight?\n\n"
    "Assistant: A spiced apple-and-pear crumble would be lovely. Peel and slice the fruit, stir in two spoons of "
    "honey, and cover it with 150 g flour, 75 g butter and 75 g sugar rubbed to crumbs. Bake it for 35 minutes at "
    '190 °C; "done" means golden on top and bubbling at the edges. Serve it warm — perhaps with crème fraîche.\n\n'
    "Human: And if one of them can't eat butter?\n\nAssistant: Then use coconut oil instead; it crumbles just as well."
)


class Failed(Exception):
    """The proof could not be made, or was made and failed. str() is one line."""


class ProofJob(TypedDict):
    """One proof, as it is sent to the process that makes it."""

    nemo: str
    hf: str
    precision: str
    by_layer: bool
    text: str


class Prover:
    """A process that imports NeMo at once and waits for files to prove. A context manager, which it never outlives."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        # Variables that make Lightning or MPI take this for a rank of a job, and wait for the others.
        hidden = ("SLURM_", "PMI_", "PMIX_", "OMPI_")
        torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
        env = {key: value for key, value in os.environ.items() if not key.startswith(hidden) and key not in torchrun}
        env |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        env["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # or glibc keeps freed weights of up to 32 MiB for later
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True}
        self._process = subprocess.Popen([sys.executable, str(_PROCESS.resolve())], env=env, **pipes)

    def __enter__(self) -> Prover:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream:
                stream.close()

    def prove(
        self, nemo: Path, hf: Path, precision: str, progress: Progress, by_layer: bool = False
    ) -> dict[str, object]:
        """{"tokens", "difference", "tolerance", "largest_logit", "seconds"...}; raises Failed with the reason.

        `by_layer` bounds the memory, see proof_models.py.
        """
        assert self._process.stdin and self._process.stdout
        job: ProofJob = {"nemo": str(nemo), "hf": str(hf), "precision": precision, "by_layer": by_layer, "text": TEXT}
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed(f"its process ended early: {self._last_words()}") from None
        for line in self._process.stdout:
            message = json.loads(line)
            if "phase" in message:
                progress.detail = message["phase"]
            elif "error" in message:
                raise Failed(message["error"])
            else:
                return dict(message)
        code = self._process.wait()
        why = "killed, probably for lack of memory" if code == -9 else f"ended with code {code}"
        raise Failed(f"its process was {why}: {self._last_words()}")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def verdict(got: torch.Tensor, expected: torch.Tensor) -> dict[str, object]:
    """Figures of two [tokens, vocabulary] logits; raises Failed if they differ by more than TOLERANCE or are NaN."""
    scale = float(expected.std())
    difference = float((got - expected).abs().max()) / scale
    log_probabilities = float((got.log_softmax(-1) - expected.log_softmax(-1)).abs().max())
    if not difference <= TOLERANCE:
        raise Failed(
            f"NeMo's logits differ from HF's by up to {difference:.2g} standard deviations on {len(got)} tokens "
            f"(tolerance {TOLERANCE:g})"
        )
    return {
        "tokens": len(got),
        "difference": difference,
        "tolerance": TOLERANCE,
        "logit_std": scale,
        "log_probability_difference": log_probabilities,
    }
