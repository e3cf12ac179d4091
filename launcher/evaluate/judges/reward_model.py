"""A reward model as a judge: a sequence classifier with one label, in a folder as Hugging Face's `save_pretrained`
leaves it. Its score is taken as the log-strength of Bradley and Terry, as it was trained.

Each text is scored alone, without padding. In a batch, transformers finds a text's last token by its pad token: before
the first one (4.48's modeling_llama.py). Where that is also the end of a turn, the score would be read inside the
prompt, and be the same for every answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.evaluate.judges.judge import Comparison, Preferences


@dataclass
class RewardModel:
    """Raises ValueError, on first use, where the model has not exactly one label."""

    folder: Path
    longest: int = 2048
    """Tokens of prompt and answer together; longer ones lose tokens at their left, and are counted in the facts."""
    device: str = "cpu"
    name: str = "reward_model"

    def prefer(self, comparisons: Sequence[Comparison]) -> Preferences:
        texts = list(dict.fromkeys(self._text(it, answer) for it in comparisons for answer in (it.first, it.second)))
        scores, cut = self._scores(texts)
        known = dict(zip(texts, scores, strict=True))
        margins = [known[self._text(it, it.first)] - known[self._text(it, it.second)] for it in comparisons]
        preferences: list[float | None] = [0.5 * (1 + math.tanh(margin / 2)) for margin in margins]
        return Preferences(preferences, {"folder": str(self.folder), "texts": len(texts), "cut": cut})

    def _text(self, comparison: Comparison, answer: str) -> tuple[str, bool]:
        """(the conversation in the reward model's own chat template where both are known, else prompt and answer;
        whether the template wrote it, and so its special tokens)."""
        if comparison.messages and self._tokenizer.chat_template:
            messages = [*map(dict, comparison.messages), {"role": "assistant", "content": answer}]
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False)), True
        space = "" if comparison.prompt[-1:].isspace() or answer[:1].isspace() else " "
        return f"{comparison.prompt}{space}{answer}", False

    def _scores(self, texts: Sequence[tuple[str, bool]]) -> tuple[list[float], int]:
        """(a score a text, how many texts were cut)."""
        import torch

        scores, cut = [], 0
        for text, templated in texts:
            ids = self._tokenizer(text, add_special_tokens=not templated)["input_ids"]
            cut += len(ids) > self.longest
            with torch.inference_mode():
                logits = self._model(input_ids=torch.tensor([ids[-self.longest :]], device=self.device)).logits
            scores.append(float(logits[0, 0]))
        return scores, cut

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(self.folder, local_files_only=True)
        if model.config.num_labels != 1:
            raise ValueError(f"{self.folder} has {model.config.num_labels} labels; a reward model has one")
        model.config.pad_token_id = None  # a text has no padding: its last token is read
        return model.to(self.device).eval()
