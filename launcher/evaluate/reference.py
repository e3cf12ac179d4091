"""The reference policy's answers, generated once for all trials that share them and kept in the cache.

A folder, named by a digest of all that the answers depend on beside the prompt (`key.json` spells it out), holds a file
a prompt. Evaluations that run at the same time share the work: each takes batches that no other has claimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import whole_file
from launcher.evaluate import answers
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.models import is_own
from launcher.evaluate.prompts import Prompt
from launcher.train.nemo_aligner.savings.lease import Claims
from launcher.train.nemo_aligner.savings.reference_cache import group_name

#: Seconds between two looks at prompts that another process answers.
_LOOK = 1.0

Generate = Callable[[Sequence[Prompt]], list[PromptAnswers]]


class ReferenceAnswers:
    """The answers for one base model and one way to sample; `owner` names the evaluation that asks."""

    def __init__(self, cache: Path, key: Mapping[str, Any], owner: str) -> None:
        self.folder = cache / "answers" / group_name(key)
        (self.folder / "claims").mkdir(parents=True, exist_ok=True)
        if not (self.folder / "key.json").exists():
            whole_file.write_json(self.folder / "key.json", dict(key))
        self._claims = Claims(self.folder / "claims", owner)
        self.generated = 0
        """Prompts that this process has generated answers for."""

    def find(self, prompt: Prompt) -> PromptAnswers | None:
        """The kept answer; None where there is none, or it is damaged or was written by somebody else."""
        path = self._path(prompt)
        if not path.exists() or not is_own(path):
            return None
        try:
            answer = answers.parse(whole_file.read(path) or b"")
        except ValueError:
            return None
        return answer if answer.prompt == prompt.text else None

    def _path(self, prompt: Prompt) -> Path:
        return self.folder / f"{prompt.prompt_id}.json"

    def all(self, batches: Iterable[Sequence[Prompt]], generate: Generate) -> dict[str, PromptAnswers]:
        """The answers to all prompts, by id. What is missing is generated, or waited for where another generates it."""
        waiting = list(batches)
        answered: dict[str, PromptAnswers] = {}
        while waiting:
            later = []
            for batch in waiting:
                if not self._take(batch, generate, answered):
                    later.append(batch)
            if later and len(later) == len(waiting):
                time.sleep(_LOOK)
            waiting = later
        return answered

    def _take(self, batch: Sequence[Prompt], generate: Generate, answered: dict[str, PromptAnswers]) -> bool:
        """Add a batch's answers to `found`. False where another process is at it."""
        if self._known(batch, answered):
            return True
        claim = self._claims.take(group_name({"prompts": [prompt.prompt_id for prompt in batch]}))
        if claim is None:
            return False
        try:
            if not self._known(batch, answered):  # else: it was generated just before the claim was free
                missing = [prompt for prompt in batch if self.find(prompt) is None]
                for prompt, answer in zip(missing, generate(missing), strict=True):
                    whole_file.write_text(self._path(prompt), answer.line() + "\n")
                    self.generated += 1
                self._known(batch, answered)
        finally:
            claim.release()
        return True

    def _known(self, batch: Sequence[Prompt], answered: dict[str, PromptAnswers]) -> bool:
        kept = {prompt.prompt_id: answer for prompt in batch if (answer := self.find(prompt))}
        answered.update(kept)
        return len(kept) == len(batch)

    def held_out(self, compute: Callable[[], dict[str, Any]], name: str) -> dict[str, Any]:
        """What `compute` gives about the reference on held-out pairs, kept under `name`."""
        path = self.folder / f"pairs-{name}.json"
        kept = whole_file.read_json(path) if path.exists() and is_own(path) else None
        if not isinstance(kept, dict):
            kept = compute()
            whole_file.write_json(path, kept)
        return kept
