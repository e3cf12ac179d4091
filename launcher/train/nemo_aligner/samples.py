"""Greedy answers of reference policy and policy to the same prompts, to show what a beta does to the text.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from launcher.train.nemo_aligner import divergence

if TYPE_CHECKING:
    from nemo_aligner.data.nlp.datasets import DPOModelDataset
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel


def prompts(pairs: DPOModelDataset, count: int) -> list[tuple[list[int], list[int]]]:
    """(tokens of the prompt, tokens of the chosen response) of the first `count` pairs whose prompts differ."""
    responses: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(pairs)):
        if len(responses) >= count:
            break
        pair = pairs[index]
        labels = pair["chosen_labels"]
        # Labels are shifted by one and the prompt's are -100, so the prompt has one token more than -100s.
        begin = int((labels > -1).int().argmax()) + 1
        prompt = tuple(pair["chosen"][:begin].tolist())
        responses.setdefault(prompt, labels[labels > -1].tolist())
    return [(list(prompt), response) for prompt, response in responses.items()]


def greedy(
    model: MegatronGPTDPOModel, begun: Sequence[Sequence[int]], length: int, beat: Callable[[int], None]
) -> list[tuple[list[int], bool]]:
    """The most likely continuation of every sequence of tokens, up to `length` tokens; (tokens, whether it ended).

    Every token recomputes the whole sequence: with a few short answers no cache is needed. `beat` is called with the
    number of tokens made.
    """
    eos = model.tokenizer.eos_id
    room = model.cfg.encoder_seq_length - length
    sequences = [list(tokens[-room:]) for tokens in begun]
    starts = [len(tokens) for tokens in sequences]
    ended = [False] * len(sequences)
    for made in range(length):
        if all(ended):
            break
        longest = max(map(len, sequences))
        batch = torch.tensor([tokens + [eos] * (longest - len(tokens)) for tokens in sequences])
        hidden = divergence.hidden_states(model, batch)
        last = torch.stack([hidden[row, len(tokens) - 1] for row, tokens in enumerate(sequences)])
        for row, token in enumerate(divergence.most_likely(model, last).tolist()):
            if not ended[row]:
                sequences[row].append(token)
                ended[row] = token == eos
        beat(made + 1)
    answers = []
    for tokens, start, end in zip(sequences, starts, ended, strict=True):
        answers.append((tokens[start : len(tokens) - end], end))
    return answers
