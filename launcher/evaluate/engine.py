"""Who generates: transformers, in this process, or vLLM, in one of its own. Everything else is the same for both.

What is measured of a policy's probabilities (the exact KL of its samples, held-out pairs) is computed by transformers
in either case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from launcher.check import installed
from launcher.evaluate import generation
from launcher.evaluate.generation import Generated, Sampling, Stop
from launcher.evaluate.models import AnsweringModel, ModelDevice
from launcher.evaluate.options import Asked
from launcher.evaluate.vllm_process import FoundVllm, found

#: A prompt as (id, tokens).
Begun = Sequence[tuple[str, Sequence[int]]]
Beat = Callable[[int], None]
Say = Callable[[str], None]


class AnswerEngine(Protocol):
    """Answers prompts with a model as it stands."""

    def rows(self, device: ModelDevice) -> int:
        """Answers that it is asked for at once."""

    def answers(
        self, model: AnsweringModel, prompts: Begun, sampling: Sampling, stop: Stop, beat: Beat
    ) -> list[list[Generated]]:
        """For each prompt the greedy answer first, then the samples."""


class Transformers:
    """See generation.answers."""

    def rows(self, device: ModelDevice) -> int:
        return device.rows

    def answers(
        self, model: AnsweringModel, prompts: Begun, sampling: Sampling, stop: Stop, beat: Beat
    ) -> list[list[Generated]]:
        return generation.answers(model.current, model.tokenizer, prompts, sampling, stop, beat)


def choose(asked: Asked, device: ModelDevice) -> FoundVllm | None:
    """The vLLM that answers; None: transformers does. `auto` takes vLLM where there is a GPU and vLLM is here or named.

    Raises Refused where vLLM is asked for, or named, and cannot be run.
    """
    if asked.engine == "vllm":
        return found(asked.vllm_python)
    here = asked.vllm_python is not None or installed.has_vllm()
    return found(asked.vllm_python) if asked.engine == "auto" and device.name == "cuda" and here else None
