"""A reward model as a judge: a sequence classifier with one label, in a folder as Hugging Face's `save_pretrained`
leaves it. Its score is taken as the log-strength of Bradley and Terry, as it was trained."""

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
    batch: int = 8
    device: str = "cpu"
    name: str = "reward_model"

    def prefer(self, comparisons: Sequence[Comparison]) -> Preferences:
        texts = list(dict.fromkeys(self._text(it, answer) for it in comparisons for answer in (it.first, it.second)))
        scores, cut = self._scores(texts)
        known = dict(zip(texts, scores, strict=True))
        margins = [known[self._text(it, it.first)] - known[self._text(it, it.second)] for it in comparisons]
        preferences: list[float | None] = [0.5 * (1 + math.tanh(margin / 2)) for margin in margins]
        return Preferences(preferences, {"folder": str(self.folder), "texts": len(texts), "cut": cut})

    def _text(self, comparison: Comparison, answer: str) -> str:
        """The conversation in the reward model's own chat template, where both are known; else prompt and answer."""
        if comparison.messages and self._tokenizer.chat_template:
            messages = [*map(dict, comparison.messages), {"role": "assistant", "content": answer}]
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        space = "" if comparison.prompt[-1:].isspace() or answer[:1].isspace() else " "
        return f"{comparison.prompt}{space}{answer}"

    def _scores(self, texts: Sequence[str]) -> tuple[list[float], int]:
        """(a score a text, how many texts were cut). Texts of like length are scored together."""
        import torch

        begins = bool(self._tokenizer.chat_template)  # a template writes the special tokens itself
        ids = [self._tokenizer(text, add_special_tokens=not begins)["input_ids"] for text in texts]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        scores = [0.0] * len(ids)
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            padded = self._tokenizer.pad(
                {"input_ids": [ids[place][-self.longest :] for place in places]}, return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self._model(**padded.to(self.device)).logits
            for place, score in zip(places, logits[:, 0].float().tolist(), strict=True):
                scores[place] = score
        return scores, sum(len(it) > self.longest for it in ids)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(self.folder, local_files_only=True)
        if model.config.num_labels != 1:
            raise ValueError(f"{self.folder} has {model.config.num_labels} labels; a reward model has one")
        if model.config.pad_token_id is None:  # the classifier reads the last token that is no padding
            model.config.pad_token_id = self._tokenizer.pad_token_id
        return model.to(self.device).eval()
