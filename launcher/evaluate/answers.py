"""What a policy answered to each prompt: `<trial>/evaluation/answers.jsonl`, one line a prompt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import whole_file


@dataclass(frozen=True, kw_only=True)
class PromptAnswers:
    """Everything one policy answered to one prompt. The reference policy's answers have the same form."""

    prompt_id: str
    """Equal for equal prompts, in every trial."""
    source: str
    """`heldout`, `instructions`, `ifeval` or `user`."""
    prompt: str
    """As the model gets it, in the form of the trial's data."""
    messages: Sequence[Mapping[str, str]] | None = None
    """The conversation behind `prompt`, where it was made of one."""
    chosen: str | None = None
    """The data's own good answer, for held-out prompts."""
    greedy: str
    greedy_ended: bool
    """Whether the answer reached its end before it was cut at the longest length allowed."""
    samples: Sequence[str] = ()
    """Answers drawn at the temperature of the evaluation."""
    samples_ended: Sequence[bool] = ()
    """One a sample."""
    tokens: Sequence[Sequence[int]] = ()
    """Token ids of each sample."""
    kl_nats: Sequence[float] = ()
    """KL(pi || pi_ref) of the next token, summed over the tokens of each sample, in nats. Empty for the reference."""
    instructions: Sequence[Mapping[str, Any]] | None = None
    """[{"id", "kwargs"}], the checks of an instruction that a program can check."""

    def line(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def parse(line: str | bytes) -> PromptAnswers:
    """One line of the file. Raises ValueError where it is damaged."""
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("a line of answers is no object")
    known = {field.name for field in dataclasses.fields(PromptAnswers)}
    try:
        answer = PromptAnswers(**{name: value for name, value in data.items() if name in known})
    except TypeError as error:
        raise ValueError(f"a line of answers lacks a key: {error}") from error
    count = len(answer.samples)
    if {len(answer.samples_ended), len(answer.tokens)} - {count} or len(answer.kl_nats) not in (0, count):
        raise ValueError(f"the answers to {answer.prompt_id} have lists of different lengths")
    return answer


def read(path: Path) -> list[PromptAnswers]:
    """All answers in the file; of several lines for one prompt, the last. [] where there is no file.

    A truncated last line is ignored: the process may have died while writing it. Raises ValueError for another damaged
    line, OSError where the file cannot be read.
    """
    try:
        with whole_file.regular(path) as stream:
            lines = stream.read().split(b"\n")
    except FileNotFoundError:
        return []
    answers: dict[str, PromptAnswers] = {}
    for line in lines[:-1]:  # what follows the last newline is empty or truncated
        if line.strip():
            answer = parse(line)
            answers[answer.prompt_id] = answer
    return list(answers.values())
