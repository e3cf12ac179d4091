"""What the parts of the training bench share: its folder, its pairs, and how trials are written and run."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.training_parts import PREPARED, kept
from tests.integration.conftest import REPOSITORY, Ranks, Trial
from tests.integration.minimal_trial import write_trial

STEPS = {"tiny": 50, "smollm2_135m": 3}
REFERENCES: dict[str, dict[str, Any]] = {"computed": {"compute__cache_reference": False}, "cached": {}, "found": {}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "two sequences a pair": {"compute__share_prompt": False},
    "a row a pair": {"compute__positions_per_micro_batch": None},
    "rows of 512": {"compute__positions_per_micro_batch": 512},
}

Line = tuple[str, str, str, bool]
"""What, figure, bar, whether it is reached."""


class Bench:
    """Its folder, its pairs, and how trials are written and run."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.source = source
        self.train = Ranks()

    def pairs(self, most_tokens: int) -> dict[str, Path]:
        """Files of pairs of up to so many tokens."""
        out = self.folder / f"pairs_{most_tokens}"
        if not out.exists():
            command = [sys.executable, "data_prep/prepare_data.py", self.source, "--out", str(out)]
            command += ["--tokenizer", str(nemo("smollm2_135m")), "--max-tokens", str(most_tokens)]
            subprocess.run([*command, "--validation", "32", "--test", "32"], cwd=REPOSITORY, check=True, stdout=2)
        return {split: out / f"{split}.jsonl" for split in PREPARED}

    def line(self, what: str, figure: str, bar: str, good: bool) -> Line:
        """One that a bar is held against, but for the sample's pairs, which have hardly any padding."""
        return (what, figure, "", True) if self.source == "sample" else (what, figure, bar, good)

    def trial(self, name: str, model: str, most_tokens: int, **changes: Any) -> Path:
        keys = {
            "trainer.dpo.max_steps": STEPS[model],
            "trainer.dpo.val_check_interval": STEPS[model],
            "trainer.dpo.save_interval": STEPS[model],
            "trainer.dpo.limit_val_batches": 1,
            "model.micro_batch_size": 1,
            "model.dpo.log_prob_forward_micro_batch_size": 1,
            "model.encoder_seq_length": most_tokens,
            "model.data.seq_length": most_tokens,
            "evaluation.kl_pairs": 0,
            "evaluation.samples": 0,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        folder = self.folder / f"{model}_{name}"
        return write_trial(folder, model, nemo(model), self.pairs(most_tokens), keys)

    def run(self, folder: Path, ranks: int = 1, change: Any = None, done: bool = True) -> Trial:
        """The trial's ranks after they ended, which leave their adapters after every step and their peak memory."""
        say(folder.name)
        trial = self.train(folder, ranks, partial(kept, change))
        assert not any(trial.exit_codes), trial.said()
        assert (folder / "result.json").exists() == done, trial.said()
        return trial

    def run_two(self, *trials: tuple[Path, Any]) -> list[Trial]:
        """At once, of one rank each."""
        say(" and ".join(folder.name for folder, _ in trials))
        started = [(folder, self.train.start(folder, 1, change)) for folder, change in trials]
        done = [self.train.wait(folder, processes) for folder, processes in started]
        for trial in done:
            assert trial.result and not any(trial.exit_codes), trial.said()
        return done


def nemo(model: str) -> Path:
    return REPOSITORY / "models" / f"{model}.nemo"


def say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
