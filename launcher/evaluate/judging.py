"""The judge that a config asks for; the probe with the reference policy's hidden states as its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.dotted_keys import at
from launcher.evaluate import held_out
from launcher.evaluate.generation import inner
from launcher.evaluate.judges.endpoint import Endpoint
from launcher.evaluate.judges.judge import Comparison, Judge, Preferences
from launcher.evaluate.judges.probe import Probe, fit, judge
from launcher.evaluate.judges.reward_model import RewardModel
from launcher.evaluate.models import AnsweringModel
from launcher.findings import Finding, Refused

KINDS = ("probe", "reward_model", "endpoint")
#: Characters of prompts and answers whose hidden states are computed at once, padding included.
_CHARACTERS = 65536


@dataclass(frozen=True, kw_only=True)
class JudgeAsked:
    """The keys under `evaluation.judge`; sweeps made before these existed have no judge."""

    kind: str | None = None
    folder: str | None = None
    """Of the reward model."""
    url: str | None = None
    """Of the endpoint's API."""
    model: str | None = None
    """The endpoint's name of the model."""
    samples: int | None = 1
    """Answers of a prompt that are compared; None: all."""
    longest_reply: int = 16
    """Tokens of an endpoint's reply."""
    pairs: int = 64
    """Held-out pairs that a probe is fitted to and measured on."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> JudgeAsked:
        known = {field.name for field in fields(cls)}
        given = at(config, "evaluation.judge") or {}
        return cls(**{name: value for name, value in given.items() if name in known})


def make(judge: JudgeAsked, base: AnsweringModel, files: Sequence[Path], apart: set[str], cache: Path) -> Judge | None:
    """The judge; None where none is asked for. Raises Refused where a key is missing.

    A probe is fitted to pairs of `files` whose prompts are not among `apart`, those that policies answer.
    """
    if judge.kind is None:
        return None
    needed = {"reward_model": ("folder",), "endpoint": ("url", "model")}.get(judge.kind, ())
    if missing := [name for name in needed if not getattr(judge, name)]:
        remedy = f"give {' and '.join(f'evaluation.judge.{name}' for name in missing)}"
        raise Refused([Finding("evaluation.judge.kind", judge.kind, "needs more", remedy)])
    if judge.kind == "reward_model":
        return RewardModel(Path(str(judge.folder)).expanduser(), device=base.device.name)
    if judge.kind == "endpoint":
        return Endpoint(str(judge.url), str(judge.model), cache / "verdicts", longest_reply=judge.longest_reply)
    return ProbeJudge(base, files, apart, judge.pairs)


class ProbeJudge:
    """A probe on the reference policy's hidden states of an answer after its prompt."""

    name = "probe"

    def __init__(self, base: AnsweringModel, files: Sequence[Path], apart: set[str], pairs: int) -> None:
        self._base, self._files, self._apart, self._pairs = base, files, apart, pairs
        self._known: dict[tuple[str, str], Any] = {}

    @cached_property
    def _probe(self) -> Probe | str:
        """The fitted probe, or why there is none."""
        rows = list(self._rows())[: self._pairs]
        try:
            sides = [
                self._features([(row["prompt"], self._base.spoken(row[f"{side}_response"])) for row in rows])
                for side in held_out.SIDES
            ]
            return fit(sides[0], sides[1], [row["prompt"] for row in rows])
        except ValueError as error:
            return str(error)

    def _rows(self) -> Iterator[Mapping[str, str]]:
        for file in self._files:
            yield from (row for row in held_out.rows(file) if row["prompt"] not in self._apart)

    def prefer(self, comparisons: Sequence[Comparison]) -> Preferences:
        probe = self._probe
        if isinstance(probe, str):
            return Preferences([None] * len(comparisons), {}, f"inconclusive: {probe}")
        return judge(probe, self._features, comparisons)

    def _features(self, answers: Sequence[tuple[str, str]]) -> Any:
        """[answers, 4, hidden] of (prompt, answer), each computed once: see `_states`."""
        import numpy

        new = sorted({answer for answer in answers if answer not in self._known}, key=lambda it: len(it[0] + it[1]))
        while new:
            rows = max(1, _CHARACTERS // len(new[-1][0] + new[-1][1]))  # as many of the longest that are left
            part = new[-min(rows, self._base.device.rows) :]
            del new[-len(part) :]
            for answer, states in zip(part, self._states(part), strict=True):
                self._known[answer] = states
        return numpy.stack([self._known[answer] for answer in answers]) if answers else numpy.zeros((0, 1, 1))

    def _states(self, answers: Sequence[tuple[str, str]]) -> list[Any]:
        """[4, hidden] of each: after the last layer and after half of them, at the answer's last token and as the mean
        over its tokens."""
        import torch

        whole = [self._base.tokens(_joined(*answer)) for answer in answers]
        rows = [row[-self._base.longest :] for row in whole]
        own = [len(row) - len(self._base.tokens(prompt)) for row, (prompt, _) in zip(whole, answers, strict=True)]
        sizes = [min(max(1, size), len(row)) for size, row in zip(own, rows, strict=True)]
        longest = max(map(len, rows))
        device = self._base.current.device
        with torch.inference_mode(), self._base.reference() as reference:
            batch = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
            layers, middle = inner(reference).model, []
            half = layers.layers[(len(layers.layers) - 1) // 2]
            hook = half.register_forward_hook(lambda layer, given, out: middle.append(out))
            try:
                last = layers(input_ids=batch, attention_mask=mask, use_cache=False).last_hidden_state
            finally:
                hook.remove()
            halfway = middle[0][0] if isinstance(middle[0], tuple) else middle[0]
            kinds = []
            for states in (last, halfway):
                spans = [
                    states[place, len(row) - size : len(row)]
                    for place, (row, size) in enumerate(zip(rows, sizes, strict=True))
                ]
                kinds += [[it[-1] for it in spans], [it.float().mean(0) for it in spans]]
            return [torch.stack([it.double() for it in each]).cpu().numpy() for each in zip(*kinds, strict=True)]


def _joined(prompt: str, answer: str) -> str:
    """An answer as it stands in the data or as it was generated, after its prompt."""
    apart = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return f"{prompt}{apart}{answer}"
