"""What is computed of one policy's answers: values a prompt and values a held-out pair, as scores.json keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher import estimates
from launcher.evaluate import prompt_columns
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.instructions import following
from launcher.report import measures, recorded_scores

FORMAT = 1
#: Policies beside each other in a table that is printed.
_BESIDE = 4


def of(
    answered: Sequence[PromptAnswers],
    reference: Mapping[str, PromptAnswers],
    pairs: Mapping[str, Sequence[float]] | None,
    vocabulary: int,
) -> dict[str, Any]:
    """The content of scores.json. `per_prompt` has a column a measure, a value a prompt in the order of `prompt_ids`;
    `per_pair` has the columns of held_out.compare, empty where the policy reads other tokens than the reference;
    `checks` has what each check says about each greedy answer.
    """
    return {
        "format": FORMAT,
        "prompt_ids": [answer.prompt_id for answer in answered],
        "sources": [answer.source for answer in answered],
        "per_prompt": prompt_columns.columns(answered, reference, vocabulary),
        "per_pair": dict(pairs or {}),
        "checks": {answer.prompt_id: _checks(answer) for answer in answered if answer.instructions},
        "judges": {},
    }


def _checks(answer: PromptAnswers) -> list[tuple[str, bool]]:
    """(id of each instruction, whether the greedy answer follows it, strictly)."""
    instructions = answer.instructions or ()
    followed = following.strict(answer.greedy, instructions)
    return [(str(it["id"]), kept) for it, kept in zip(instructions, followed, strict=True)]


def table(rows: Mapping[str, Mapping[str, object]]) -> str:
    """The measures of what policies say: a line a measure, a column a policy, each value with its standard error.

    More policies than fit beside each other, such as a sweep's checkpoints, follow in tables of their own.
    """
    titles = list(rows)
    blocks = [titles[first : first + _BESIDE] for first in range(0, len(titles), _BESIDE)]
    return "\n\n".join(_block({title: rows[title] for title in block}) for block in blocks)


def _block(rows: Mapping[str, Mapping[str, object]]) -> str:
    known = {title: recorded_scores.scores(scored) for title, scored in rows.items()}
    lines = [["", *rows]]
    for measure in measures.REGISTRY.values():
        if measure.table != "prompts":
            continue
        values = []
        for scored in known.values():
            columns = scored.columns_for(measure) if scored else None
            it = measure.estimate(None, columns, None, None) if columns else None
            values.append(estimates.shown(it.value, it.error, measure.form, it.at_most) if it else "")
        if any(values):
            lines.append([measure.title, *values])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [line[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)
