"""Answers of one policy: those that are missing are generated, batch by batch, and appended to its answers.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher import whole_file
from launcher.evaluate import answers, generation, held_out
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.engine import AnswerEngine, Say
from launcher.evaluate.generation import Generated, Sampling, Stop
from launcher.evaluate.models import AnsweringModel
from launcher.evaluate.options import Asked
from launcher.evaluate.prompts import Prompt
from launcher.units import clock

#: Seconds between two lines of progress.
_EVERY = 15.0
#: Tokens of samples whose logits are compared at once: with Llama 3's vocabulary, in bf16, 0.5 GB a policy.
_POSITIONS = 2048


class PromptProgress:
    """Prints how far one policy is, at most every so many seconds."""

    def __init__(self, title: str, total: int, say: Say) -> None:
        self._title, self._total, self._say = title, total, say
        self._began = self._spoke = time.monotonic()
        self.tokens = 0

    def at(self, done: int, detail: str = "", last: bool = False) -> None:
        now = time.monotonic()
        if now - self._spoke < _EVERY and not last:
            return
        self._spoke = now
        seconds = now - self._began
        left = f", {clock(seconds * (self._total - done) / done)} left" if 0 < done < self._total else ""
        rate = f", {self.tokens / seconds:.0f} tokens/s" if self.tokens and seconds else ""
        self._say(f"{self._title}: {done} of {self._total} prompts{detail}{rate}{left}")


def begin(model: AnsweringModel, prompt: Prompt, max_tokens: int) -> list[int]:
    """The prompt's tokens: of one that is too long for the model, the last ones."""
    return model.tokens(prompt.text)[max_tokens - model.longest :]


def longest(model: AnsweringModel, prompts: Sequence[Prompt], max_tokens: int) -> int:
    """Tokens of the longest prompt and its longest answer."""
    return max((len(begin(model, prompt, max_tokens)) for prompt in prompts), default=0) + max_tokens


class Generator:
    """Answers prompts with a model as it stands. `reference` has the reference policy, which samples are held against;
    None: there is none that reads the same tokens, or the model is the reference itself.
    """

    def __init__(
        self, model: AnsweringModel, asked: Asked, stop: Stop, reference: AnsweringModel | None, engine: AnswerEngine
    ) -> None:
        self._model, self._stop, self._reference, self._engine = model, stop, reference, engine
        self._sampling = Sampling(asked.samples, asked.temperature, asked.max_tokens, asked.seed)
        self.tokens = 0
        """Tokens generated so far."""

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Prompts in batches of similar length, so that little is padded."""
        prompts_at_once = max(1, self._engine.rows(self._model.device) // (1 + self._sampling.samples))
        by_length = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.prompt_id))
        return [by_length[first : first + prompts_at_once] for first in range(0, len(by_length), prompts_at_once)]

    def __call__(
        self, prompts: Sequence[Prompt], beat: Callable[[int], None] = lambda made: None
    ) -> list[PromptAnswers]:
        begun = [(prompt.prompt_id, begin(self._model, prompt, self._sampling.max_tokens)) for prompt in prompts]
        made = self._engine.answers(self._model, begun, self._sampling, self._stop, beat)
        self.tokens += sum(len(answer.tokens) for row in made for answer in row)
        drifts = [self._divergences(tokens, row[1:]) for (_, tokens), row in zip(begun, made, strict=True)]
        return [self._answer(*parts) for parts in zip(prompts, made, drifts, strict=True)]

    def _divergences(self, prompt: list[int], samples: Sequence[Generated]) -> list[float]:
        """How far each sample went from the reference policy, see generation.divergence; [] where there is none.

        Both policies read the sample in the same way: in bf16 another way rounds otherwise, and a divergence, unlike a
        log-ratio, adds that up.
        """
        if not samples or self._reference is None:
            return []
        drifts: list[float] = []
        at_once = max(1, _POSITIONS // self._sampling.max_tokens)
        for first in range(0, len(samples), at_once):
            part = [sample.tokens for sample in samples[first : first + at_once]]
            own = generation.next_token_logits(self._model.current, prompt, part)
            with self._reference.reference() as reference:
                other = generation.next_token_logits(reference, prompt, part)
            for tokens, *both in zip(part, own, other, strict=True):
                drifts.append(round(generation.divergence(*(logits[: len(tokens)] for logits in both)), 6))
        return drifts

    def _answer(self, prompt: Prompt, made: Sequence[Generated], drifts: Sequence[float]) -> PromptAnswers:
        greedy, *samples = made
        return PromptAnswers(
            prompt_id=prompt.prompt_id,
            source=prompt.source,
            prompt=prompt.text,
            messages=prompt.messages,
            chosen=None if prompt.chosen is None else self._model.spoken(prompt.chosen),
            greedy=greedy.text,
            greedy_ended=greedy.ended,
            samples=[sample.text for sample in samples],
            samples_ended=[sample.ended for sample in samples],
            tokens=[sample.tokens for sample in samples],
            kl_nats=drifts,
            instructions=prompt.instructions,
        )

    def held_out(self, pairs: Sequence[held_out.HeldOutPair], beat: Callable[[int], None]) -> dict[str, Any]:
        """The teacher-forced pass of the policy."""
        return held_out.columns(self._model.current, pairs, beat)


def fill(file: Path, prompts: Sequence[Prompt], generate: Generator, title: str, say: Say) -> int:
    """Generate the answers that `file` lacks; returns how many prompts were answered."""
    there = ids(file)
    missing = [prompt for prompt in prompts if prompt.prompt_id not in there]
    if not missing:
        return 0
    _end_line(file)
    progress = PromptProgress(title, len(missing), say)
    done = 0
    for batch in generate.batches(missing):

        def beat(made: int, done: int = done, size: int = len(batch)) -> None:
            progress.at(done, f", token {made} of the next {size}")

        made = generate(batch, beat)
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{answer.line()}\n" for answer in made))
        done += len(batch)
        progress.tokens = generate.tokens
        progress.at(done, last=done == len(missing))
    return len(missing)


def _end_line(file: Path) -> None:
    """Drop a truncated last line: what is appended must not continue it."""
    content = whole_file.read(file) or b""
    if content and not content.endswith(b"\n"):
        whole_file.write_bytes(file, content[: content.rfind(b"\n") + 1])


def ids(file: Path) -> set[str]:
    """The prompts that `file` has answers to."""
    return {answer.prompt_id for answer in answers.read(file)}
