"""Policies made of a random number generator, whose answers have known faults, and sweeps of their scores."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.evaluate import prompt_columns
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.judges.judge import Comparison, Preferences
from tests.unit import report_sweep

VOCABULARY = 50_000
WORDS = 1000
LONGEST = 64
GOOD = 7
"""The word that the judge likes."""
KEY = "lantern"
CHECKS = [
    {"id": "keywords:existence", "kwargs": {"keywords": [KEY]}},
    {"id": "length_constraints:number_words", "kwargs": {"num_words": 40, "relation": "less than"}},
]


@dataclass(frozen=True)
class Policy:
    """Draws words by Zipf's law, of which each prompt prefers some."""

    temperature: float = 1.0
    length: float = 30.0
    """Mean number of tokens before an end."""
    loops: float = 0.002
    """Chance, at each token, that the answer repeats its last four tokens from there on."""
    good: float = 0.05
    """Chance that a word is the one that the judge likes."""
    follows: float = 0.5
    """Chance that a greedy answer uses the word that was asked for."""
    refuses: float = 0.02
    kl: float = 3.0
    """Nats that its answers lie from the reference, on average."""


SOUND = Policy()
FAULTS = {
    "collapse": dataclasses.replace(SOUND, loops=0.2, kl=80.0, temperature=0.4, length=300),
    "length": dataclasses.replace(SOUND, length=60),
    "cold": dataclasses.replace(SOUND, temperature=0.3),
    "flipped": dataclasses.replace(SOUND, good=0.0),
    "deaf": dataclasses.replace(SOUND, follows=0.0),
    "refusing": dataclasses.replace(SOUND, refuses=0.6),
}


def answers(policy: Policy, seed: int, prompts: int = 48, samples: int = 4) -> list[PromptAnswers]:
    """The prompts are the same for every seed; half of them have instructions. Greedy answers depend on no seed."""
    return [_answer(policy, seed, prompt, samples) for prompt in range(prompts)]


def _answer(policy: Policy, seed: int, prompt: int, samples: int) -> PromptAnswers:
    drawn = [_tokens(policy, random.Random(f"{seed} {prompt} {sample}"), prompt) for sample in range(samples)]
    draw = random.Random(f"{seed} {prompt} else")
    greedy = random.Random(f"greedy {prompt}")
    words = [f"w{greedy.randrange(20, 200)}" for _ in range(30 if policy.length <= 40 else 60)]
    if greedy.random() < policy.follows:
        words[3] = KEY
    texts = [" ".join(f"w{token}" for token in tokens) for tokens in drawn]
    texts = [f"I'm sorry, but I can't. {text}" if draw.random() < policy.refuses else text for text in texts]
    return PromptAnswers(
        prompt_id=f"heldout-{prompt}",
        source="instructions" if prompt % 2 else "heldout",
        prompt=f"Question {prompt}",
        chosen=None if prompt % 2 else " ".join(f"w{greedy.randrange(200)}" for _ in range(30)),
        greedy=" ".join(words),
        greedy_ended=True,
        samples=texts,
        samples_ended=[len(tokens) < LONGEST for tokens in drawn],
        tokens=drawn,
        kl_nats=[draw.gauss(policy.kl + prompt % 5, 2.0) for _ in range(samples)],
        instructions=CHECKS if prompt % 2 else None,
    )


def _tokens(policy: Policy, draw: random.Random, prompt: int) -> list[int]:
    tokens: list[int] = []
    looping = False
    while len(tokens) < LONGEST:
        if tokens and not looping and draw.random() < 1 / policy.length:
            break
        looping = looping or draw.random() < policy.loops
        if looping and len(tokens) >= 4:
            tokens.append(tokens[-4])
        elif draw.random() < policy.good:
            tokens.append(GOOD)
        else:
            topic = 20 + 7 * prompt if draw.random() < 0.3 else 20
            rank = math.exp(draw.random() ** (1 / policy.temperature) * math.log(WORDS))
            tokens.append(topic + int(rank))
    return tokens


class Taste:
    """Judges by the share of words that it likes, and a little by length."""

    name = "taste"

    def prefer(self, comparisons: Sequence[Comparison]) -> Preferences:
        return Preferences([_sigmoid(self._worth(it.first) - self._worth(it.second)) for it in comparisons])

    @staticmethod
    def _worth(text: str) -> float:
        words = text.split()
        return 30 * words.count(f"w{GOOD}") / max(1, len(words)) + 0.005 * len(words)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def scores(own: Sequence[PromptAnswers], reference: Sequence[PromptAnswers]) -> dict[str, Any]:
    """As scores.json has them."""
    columns = prompt_columns.columns(own, {it.prompt_id: it for it in reference}, VOCABULARY)
    wins, judges = prompt_columns.judged(Taste(), own, reference)
    ids = [it.prompt_id for it in own]
    return {"format": 1, "prompt_ids": ids, "per_prompt": columns | wins, "per_pair": {}, "judges": judges}


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "scores.json").write_text(json.dumps(content))


def sweep(folder: Path, policies: dict[float, Policy], expect: dict[float, dict[str, str]], seed: int = 0) -> Any:
    """A finished sweep, a trial a beta, whose answers are those of `policies`."""
    hypotheses = [{"beta": beta, "name": "h", "claim": "", "expect": words} for beta, words in expect.items()]
    made = report_sweep.finish(report_sweep.make(folder, tuple(policies), hypotheses))
    reference = answers(SOUND, seed=10_000 + seed)
    for number, trial in enumerate(made.trials):
        write(trial.folder, scores(answers(policies[trial.beta], 100 * seed + number + 1), reference))
    return made
