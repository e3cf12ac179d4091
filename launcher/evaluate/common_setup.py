"""What all policies of one base model and one kind of data share when they are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from launcher.dotted_keys import at
from launcher.evaluate import engine, prompts
from launcher.evaluate.judging import JudgeAsked
from launcher.evaluate.models import choose_device, own_cache
from launcher.evaluate.options import Asked, data_file, pairs_file
from launcher.evaluate.prompts import Prompt, PromptForm
from launcher.findings import Finding, Refused
from launcher.sweep.folder import Sweep
from launcher.train.nemo_aligner.savings.reference_cache import file_digest

#: Raise it where answers of an older version must not be mixed with new ones.
_VERSION = 3


class Setting:
    """What all policies of one base model and one kind of data share: model, prompts, the reference's answers."""

    def __init__(self, sweep: Sweep, config: Mapping[str, Any], asked: Asked) -> None:
        """Raises Refused where a file is missing or cannot be read."""
        self.asked = asked
        self.cache = own_cache(config, sweep)
        self.nemo = Path(str(at(config, "pretrained_checkpoint.restore_from_path")))
        if not self.nemo.exists():
            raise Refused([Finding("pretrained_checkpoint.restore_from_path", str(self.nemo), "no such file")])
        self.form: PromptForm = prompts.form_of(data_file(config), self.nemo)
        self.prompts: list[Prompt] = _prompts(config, asked, self.form)
        self.pairs_files = [pairs_file(config), data_file(config)]
        self.pairs_file, self.pairs = pairs_file(config), int(at(config, "evaluation.kl_pairs") or 0)
        self.judge = JudgeAsked.of(config)
        self.device = choose_device()
        self.vllm = engine.choose(asked, self.device)
        self.base = file_digest(self.nemo, self.cache / "files")

    @property
    def key(self) -> dict[str, Any]:
        """What an answer depends on beside the prompt and the policy's adapter. Without an engine: transformers."""
        return {
            "base": self.base,
            **self.asked.sampling,
            "form": self.form.name,
            "device": f"{self.device.name} {self.device.dtype}",
            "version": _VERSION,
            **({"engine": self.vllm.version} if self.vllm else {}),
            **{name: version(name) for name in ("torch", "transformers")},
        }


def _prompts(config: Mapping[str, Any], asked: Asked, form: PromptForm) -> list[Prompt]:
    chosen = prompts.held_out(data_file(config), asked.held_out, form) if asked.held_out else []
    if asked.instructions:
        chosen += prompts.checkable(prompts.INSTRUCTIONS, "instructions", form, asked.instructions)
    if asked.ifeval:
        chosen += prompts.checkable(Path(asked.ifeval).expanduser(), "ifeval", form)
    if asked.prompts:
        chosen += prompts.users(Path(asked.prompts).expanduser(), form)
    return list({prompt.prompt_id: prompt for prompt in chosen}.values())
