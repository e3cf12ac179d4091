"""A teacher-forced pass over held-out pairs: what the policy thinks of responses that it did not write.

Top-10 entropy and mass: of the ten most likely tokens at each position of the chosen response, the entropy in nats of
their probabilities (not renormalised) and their sum; where a policy is over-optimised the entropy turns down
(Shi et al. 2024, arXiv 2410.11677, section 4.4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.evaluate.generation import next_token_logits

_TOP = 10
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class HeldOutPair:
    """A held-out pair as tokens."""

    prompt: list[int]
    responses: tuple[list[int], list[int]]
    """Chosen, rejected."""


def read(file: Path, count: int, tokens: Callable[[str], list[int]], longest: int) -> list[HeldOutPair]:
    """The first `count` pairs of a file that have at most `longest` tokens a side."""
    pairs: list[HeldOutPair] = []
    for row in rows(file):
        if len(pairs) == count:
            break
        prompt = tokens(row["prompt"])
        sides = [tokens(row["prompt"] + row[f"{side}_response"])[len(prompt) :] for side in SIDES]
        if len(prompt) + max(map(len, sides)) <= longest and all(sides):
            pairs.append(HeldOutPair(prompt, (sides[0], sides[1])))
    return pairs


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The pairs of a file."""
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


@torch.inference_mode()
def columns(model: Any, pairs: Sequence[HeldOutPair], beat: Callable[[int], None]) -> dict[str, Any]:
    """{column: a value a pair}: log_probability_{side} (nats, of the response), tokens_{side}, entropy_top10 and
    mass_top10 (means over the chosen response's tokens)."""
    values: dict[str, list[float]] = {}
    for number, pair in enumerate(pairs):
        logits = next_token_logits(model, pair.prompt, pair.responses)
        for side, response, given in zip(SIDES, pair.responses, logits, strict=True):
            log_probabilities = given[: len(response)].float().log_softmax(-1)
            picked = log_probabilities.gather(-1, torch.tensor(response, device=given.device)[:, None])
            _add(values, f"log_probability_{side}", float(picked.double().sum()))
            _add(values, f"tokens_{side}", len(response))
            if side == "chosen":
                top = log_probabilities.topk(min(_TOP, given.shape[-1]), -1).values.double()
                _add(values, "entropy_top10", float(-(top.exp() * top).sum(-1).mean()))
                _add(values, "mass_top10", float(top.exp().sum(-1).mean()))
        beat(number + 1)
    return values


def _add(columns: dict[str, list[float]], name: str, value: float) -> None:
    columns.setdefault(name, []).append(round(value, 6))


def compare(policy: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The columns of a trial: the policy's, with log_ratio_{side} and the reference's own entropy and mass beside."""
    columns = dict(policy)
    for side in SIDES:
        both = zip(policy[f"log_probability_{side}"], reference[f"log_probability_{side}"], strict=True)
        columns[f"log_ratio_{side}"] = [round(own - other, 6) for own, other in both]
    for name in ("entropy_top10", "mass_top10"):
        columns[f"reference_{name}"] = reference[name]
    return columns
