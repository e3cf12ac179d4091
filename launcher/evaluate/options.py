"""What an evaluation is asked for: the keys under `evaluation.answers`, overruled by the command's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from launcher.dotted_keys import at


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The prompts, and how they are answered. Sweeps made before these keys existed have the defaults."""

    held_out: int = 24
    """Prompts of the data's test pairs; 0: none."""
    instructions: int = 60
    """Of the project's own instructions that a program can check; 0: none."""
    ifeval: str | None = None
    """IFEval's input_data.jsonl."""
    prompts: str | None = None
    """A JSONL file of the user's."""
    samples: int = 4
    temperature: float = 1.0
    max_tokens: int = 256
    seed: int = 1
    engine: str = "auto"
    """Who generates: `transformers`, `vllm`, or `auto`: vLLM where there is a GPU and vLLM is found."""
    vllm_python: str | None = None
    """The Python that has vLLM; None: this one."""
    vllm_memory: float = 0.5
    """vLLM's share of the GPU's memory."""

    @classmethod
    def of(cls, config: Mapping[str, Any], **changes: Any) -> Asked:
        """From a trial's config; `changes` that are None are left out."""
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in (at(config, "evaluation.answers") or {}).items() if name in known}
        return replace(cls(**given), **{name: value for name, value in changes.items() if value is not None})

    @property
    def sampling(self) -> dict[str, Any]:
        """What each answer depends on; the prompts are the rest."""
        return {name: value for name, value in asdict(self).items() if name in _SAMPLING}


_SAMPLING = ("samples", "temperature", "max_tokens", "seed")


def data_file(config: Mapping[str, Any]) -> Path:
    """The held-out pairs that prompts are taken from: the test split, which no training or validation reads."""
    return Path(str(at(config, "model.data.data_prefix.test")[0]))


def pairs_file(config: Mapping[str, Any]) -> Path:
    """The held-out pairs of the teacher-forced pass: those of the exact KL."""
    return Path(str(at(config, "model.data.data_prefix.validation")[0]))
