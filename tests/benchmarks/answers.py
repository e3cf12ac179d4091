"""Answers of a sweep's policies: `evaluate`, and transformers' `generate` prompt by prompt, in one process.

    make bench   or   python -m tests.benchmarks.answers      (15 minutes on two idle cores, by estimate)

Three betas of SmolLM2-135M, trained two steps on the project's sample, and the reference policy answer 48 prompts,
once greedily and with 4 samples of at most 64 tokens. `evaluate` does all of it, with the KL of each sample and the
measures; `generate` answers every twelfth prompt, with an adapter as peft loads it and the same ends. Both have the
reference policy answer once. Exit code 1 if a greedy answer differs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.evaluate import answers, models, prompts
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.common_setup import Setting
from launcher.evaluate.evaluator import Evaluator
from launcher.evaluate.options import Asked
from launcher.sweep.folder import Sweep
from tests.benchmarks.broken_policies import run

SAMPLES, TOKENS, EVERY = 4, 64, 12
ANSWERS = {"held_out": 28, "instructions": 20, "samples": SAMPLES, "max_tokens": TOKENS}
RECIPE = [
    *("-m", "model=smollm2_135m", "cluster=local", "model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5"),
    *("trainer.dpo.max_steps=2", "trainer.dpo.val_check_interval=2", "trainer.dpo.save_interval=2"),
    "model.optim.sched.warmup_steps=0",
    *(f"evaluation.answers.{key}={value}" for key, value in ANSWERS.items()),
    *("evaluation.kl_pairs=0", "evaluation.samples=0", "evaluation.judge.kind=null", "evaluation.after_training=false"),
]


@dataclass
class Cost:
    """What answers took."""

    tokens: int = 0
    seconds: float = 0.0
    cpu: float = 0.0

    def line(self, what: str) -> str:
        return (
            f"{what:<40} {self.tokens:>7,} tokens {self.seconds:>7.0f} s {self.cpu:>7.0f} CPU-s "
            f"{self.tokens / self.seconds:>5.0f} tokens/s {self.tokens / self.cpu:>5.0f} tokens/CPU-s"
        )


def trained(folder: Path) -> Sweep:
    paths = [f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", "experiment.name=answers"]
    run("launcher/main.py", *RECIPE, *paths)
    (sweep,) = (folder / "runs" / "answers").iterdir()
    return Sweep.load(sweep)


def evaluated(sweep: Sweep) -> tuple[Cost, int]:
    """(its cost, prompts that the reference policy answered)."""
    began, cpu = time.monotonic(), time.process_time()
    evaluator = Evaluator(sweep, {}, lambda line: print(line, file=sys.stderr, flush=True))
    tokens = sum(evaluator.trial(trial)["made"]["tokens"] for trial in sweep.trials)
    reference = answers.read(sweep.trials[0].folder / "evaluation" / "reference.jsonl")
    # Of the greedy answers to them only the text is kept: it is counted as the samples' mean.
    tokens += sum(len(row) for answer in reference for row in answer.tokens) * (SAMPLES + 1) // SAMPLES
    return Cost(tokens, time.monotonic() - began, time.process_time() - cpu), evaluator.reference_generated


class PromptByPrompt:
    """What a script of transformers and peft does."""

    def __init__(self, base: Path, ends: tuple[int, ...], stop_texts: Sequence[str]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.base: Any = AutoModelForCausalLM.from_pretrained(base).eval()
        self._how = {"max_new_tokens": TOKENS, "eos_token_id": list(ends), "pad_token_id": ends[0]}
        if stop_texts:
            self._how |= {"stop_strings": list(stop_texts), "tokenizer": self.tokenizer}
        self._stop_texts = stop_texts
        self.tokens = 0

    def answer(self, model: Any, prompt: str) -> str:
        """The greedy answer; samples are made and counted."""
        import torch

        given = torch.tensor([self.tokenizer(prompt, add_special_tokens=False).input_ids])
        mask = torch.ones_like(given)
        greedy = model.generate(input_ids=given, attention_mask=mask, do_sample=False, **self._how)
        free = {"do_sample": True, "top_k": 0, "temperature": 1.0, "num_return_sequences": SAMPLES}
        samples = model.generate(input_ids=given, attention_mask=mask, **free, **self._how)
        pad, start = self._how["pad_token_id"], given.shape[1]
        for row in [*greedy, *samples]:
            made = row[start:].tolist()
            self.tokens += made.index(pad) + 1 if pad in made else len(made)
        text: str = self.tokenizer.decode(greedy[0, start:], skip_special_tokens=True)
        for stop in self._stop_texts:
            text = text.partition(stop)[0]
        return text.strip()


def prompt_by_prompt(sweep: Sweep, base: Path, asked: Sequence[PromptAnswers], stop_texts: Sequence[str]) -> Any:
    """(its cost, greedy answers by policy); the policies are the trials, then the reference."""
    from peft.peft_model import PeftModel

    device = models.choose_device()
    ends = models.AnsweringModel(base, device).stop(prompts.PromptForm("hh", None)).tokens
    began, cpu = time.monotonic(), time.process_time()
    script = PromptByPrompt(base, ends, stop_texts)
    said = []
    for trial in sweep.trials:
        with models.exported(sweep, trial, base) as adapter:
            model: Any = PeftModel.from_pretrained(script.base, adapter).eval()
        said.append([script.answer(model, it.prompt) for it in asked])
        script.base = model.unload()
    said.append([script.answer(script.base, it.prompt) for it in asked])
    return Cost(script.tokens, time.monotonic() - began, time.process_time() - cpu), said


def main() -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as scratch:
        sweep = trained(Path(scratch))
        ours, reference = evaluated(sweep)
        config = sweep.trials[0].config()
        setting = Setting(sweep, config, Asked.of(config))
        base = models.base_folder(setting.nemo, setting.base, setting.cache)
        files = [trial.folder / "evaluation" / "answers.jsonl" for trial in sweep.trials]
        files.append(sweep.trials[0].folder / "evaluation" / "reference.jsonl")
        kept = [{answer.prompt_id: answer for answer in answers.read(file)} for file in files]
        asked = [kept[0][prompt.prompt_id] for prompt in setting.prompts[::EVERY]]
        theirs, said = prompt_by_prompt(sweep, base, asked, setting.form.stop_texts)
    print(f"{len(files)} policies, {len(setting.prompts)} prompts, 1 + {SAMPLES} answers of at most {TOKENS} tokens")
    print(ours.line("evaluate"))
    print(theirs.line(f"prompt by prompt, {len(asked)} prompts"))
    print(f"the reference policy answered {reference} prompts for {len(sweep.trials)} trials")
    pairs = [
        (answered[it.prompt_id].greedy, text)
        for answered, texts in zip(kept, said, strict=True)
        for it, text in zip(asked, texts, strict=True)
    ]
    equal = sum(own == text for own, text in pairs)
    print(f"greedy answers that are equal: {equal} of {len(pairs)}")
    return int(equal < len(pairs))


if __name__ == "__main__":
    sys.exit(main())
