"""The proof of a conversion: NeMo's model, restored from the .nemo, and HF's give the same logits on a text.

Run as a process of its own (`Prover` starts it): NeMo's import takes 13 s, which pass while the weights are converted,
and the stand-ins for CUDA stay out of the caller. The process says its phases and its verdict as JSON lines on stdout.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from data_prep.progress import Progress  # noqa: E402

#: Largest allowed difference of a logit, in standard deviations of HF's logits, both computed in fp32. Where the
#: conversion is right it is often 0 (PyTorch's kernels in the same order on both sides) and, for SmolLM2-135M, 1e-5
#: where the order is another (HF's sdpa attention; fp64). One weight of SmolLM2's 135 million off by 0.5: 0.002 to 1.
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


class Prover:
    """A process that imports NeMo at once and waits for files to prove. A context manager, which it never outlives."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        # Variables that make Lightning or MPI take this for a rank of a job, and wait for the others.
        hidden = ("SLURM_", "PMI_", "PMIX_", "OMPI_")
        torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
        env = {key: value for key, value in os.environ.items() if not key.startswith(hidden) and key not in torchrun}
        env |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True}
        self._process = subprocess.Popen([sys.executable, str(Path(__file__).resolve())], env=env, **pipes)

    def __enter__(self) -> Prover:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream:
                stream.close()

    def prove(self, nemo: Path, hf: Path, precision: str, progress: Progress) -> dict[str, Any]:
        """{"tokens", "difference", "tolerance", "largest_logit", "seconds"...}; raises Failed with the reason."""
        assert self._process.stdin and self._process.stdout
        job = {"nemo": str(nemo), "hf": str(hf), "precision": precision}
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


def _nemo_model(job: dict[str, Any], tokenizer: str) -> Any:
    """NeMo's own model, restored by NeMo's own restore, in fp32 on the CPU."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector
    from omegaconf import OmegaConf

    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision=32,
        strategy=NLPDDPStrategy(),
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    connector = NLPSaveRestoreConnector()
    restore = {"restore_path": job["nemo"], "trainer": trainer, "save_restore_connector": connector}
    config = MegatronGPTModel.restore_from(**restore, return_config=True)
    OmegaConf.set_struct(config, False)
    config.tokenizer.type = tokenizer
    # fp32, for a sharp comparison; no random weights first, since every weight is about to be read.
    config.update(precision=32, perform_initialization=False, use_cpu_initialization=True)
    return MegatronGPTModel.restore_from(**restore, override_config_path=config, strict=True).eval()


def _compare(job: dict[str, Any], say: Any) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from launcher.nemo_file import unpack_tokenizer

    say(phase="computing HF's logits")
    stored = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    hf = AutoModelForCausalLM.from_pretrained(job["hf"], torch_dtype=stored, attn_implementation="eager").float().eval()
    ids = AutoTokenizer.from_pretrained(job["hf"], use_fast=True).encode(TEXT, add_special_tokens=False)
    ids = ids[: hf.config.max_position_embeddings]
    tokens = torch.tensor([ids])
    with torch.no_grad():
        expected = hf(tokens).logits[0]
    embedding = hf.get_input_embeddings().weight
    del hf

    say(phase="restoring the .nemo with NeMo")
    with tempfile.TemporaryDirectory() as scratch:
        model = _nemo_model(job, str(unpack_tokenizer(Path(job["nemo"]), Path(scratch) / "tokenizer")))
        own_ids = model.tokenizer.text_to_ids(TEXT)[: len(ids)]
    if own_ids != ids:
        raise Failed("the tokenizer inside the file gives other tokens than HF's")
    if not torch.equal(model.model.embedding.word_embeddings.weight, embedding):  # the text has few of its rows
        raise Failed("the embeddings of NeMo's model are not HF's")
    say(phase="computing NeMo's logits")
    mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).triu(1)  # True: not to be seen
    with torch.no_grad():
        got = model(tokens, torch.arange(len(ids))[None], mask, None)[0].float()
    if got.shape != expected.shape:
        raise Failed(f"NeMo gives logits of shape {tuple(got.shape)}, HF of {tuple(expected.shape)}")
    return _verdict(got, expected)


def _verdict(got: Any, expected: Any) -> dict[str, Any]:
    """Figures of two [tokens, vocabulary] logits; raises Failed where they differ by more than TOLERANCE or are NaN."""
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


def main() -> int:
    """Import NeMo, then answer one job a line of stdin until it ends. All that libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    from launcher.train import standins

    logging.disable(logging.WARNING)
    say(phase="importing NeMo")
    try:
        standins.install()
        import nemo.collections.nlp.models.language_modeling.megatron_gpt_model  # noqa: F401
    except ImportError as error:
        say(error=f"NeMo cannot be imported here ({error}); pip install '.[train]', or skip the proof with --no-verify")
        return 1
    for line in sys.stdin:
        try:
            verdict = _compare(json.loads(line), say)
            say(**verdict, peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        except Failed as failed:
            say(error=str(failed))
        except Exception as error:
            traceback.print_exc()
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            say(error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]} ({where})")
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    # NeMo and gloo leave threads that can hang at exit; nothing is left to be saved.
    os._exit(code)
