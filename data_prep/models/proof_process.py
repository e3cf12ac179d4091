"""The process that proves conversions: jobs as JSON lines on stdin, phases and verdicts as JSON lines on stdout."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_prep.models.proof import Failed, ProofJob, verdict


def compare(job: ProofJob, say: Callable[..., None]) -> dict[str, object]:
    """The verdict on a job of Prover.prove. Raises Failed."""
    from transformers import AutoTokenizer

    from data_prep.models import proof_models
    from data_prep.models.hf_folder import open_folder

    folder = open_folder(Path(job["hf"]))
    with tempfile.TemporaryDirectory() as tokenizer:
        folder.copy_tokenizer(Path(tokenizer))
        reader = AutoTokenizer.from_pretrained(tokenizer, use_fast=True, trust_remote_code=False)
        ids = reader.encode(job["text"], add_special_tokens=False)
    ids = ids[: folder.shape.positions]
    compute = proof_models.by_layer if job["by_layer"] else proof_models.whole
    return verdict(*compute(job, ids, say))


def main() -> int:
    """Import NeMo, then answer one job per line of stdin until it ends. Output of libraries goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: object) -> None:
        print(json.dumps(message), file=answers, flush=True)

    from launcher.train.nemo_aligner import standins

    logging.disable(logging.WARNING)
    say(phase="importing NeMo")
    try:
        standins.install()
        with standins.importing():
            import nemo.collections.nlp.models.language_modeling.megatron_gpt_model  # noqa: F401
    except ImportError as error:
        say(error=f"NeMo cannot be imported here ({error}); pip install '.[train]', or skip the proof with --no-verify")
        return 1
    for line in sys.stdin:
        try:
            verdict = compare(json.loads(line), say)
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
    # NeMo and gloo leave threads that can hang at exit; everything has been written.
    os._exit(code)
