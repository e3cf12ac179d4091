"""Our side of beside_trl.py, in a rank: seconds of steps, or log-ratios, and what TRL has to know to do the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.training_parts import cpu_seconds


def time_default(session: Any, folder: Path) -> None:
    """CPU seconds of reference pass and training step of each batch, by the ways that are the default."""
    from launcher.train.nemo_aligner.savings import balance

    trainer = session.trainer
    found: dict[str, Any] = {"steps": [], "references": [], **_beside(session, folder)}
    for rows in trainer.train_dataloader:
        if len(found["steps"]) == trainer.max_steps:
            break
        rows = balance.balanced(rows)  # the order that the collate function makes
        batch = trainer.collate_fn(rows, pad_length_to_multiple_of=trainer.pad_seq_length_to_mult)
        began = cpu_seconds()
        values = session.model.get_ref_policy_logprobs(batch).cpu()
        half = len(values) // 2
        batch["ref_policy_log_probs_chosen"], batch["ref_policy_log_probs_rejected"] = values[:half], values[half:]
        between = cpu_seconds()
        trainer.train_single_step(batch)
        found["references"].append(between - began)
        found["steps"].append(cpu_seconds() - between)
        found["pairs"] += [_tokens(row) for row in rows]
    (folder / "bench.json").write_text(json.dumps(found))


def log_ratios(session: Any, folder: Path) -> None:
    """[2 x pairs] log-ratios of the first batch, chosen first, of adapters that are not those of a start."""
    import torch

    from launcher.train.nemo_aligner.savings import balance

    trainer, model = session.trainer, session.model
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "linear_out" in name:
                value.copy_(0.01 * torch.randn(value.shape, generator=chance))
    rows = balance.balanced(next(iter(trainer.train_dataloader)))  # the order that the collate function makes
    batch = trainer.collate_fn(rows, pad_length_to_multiple_of=trainer.pad_seq_length_to_mult)
    # They are 0 where nothing is labelled.
    each = model.get_logprob_batch(batch) - model.get_ref_policy_logprobs(batch)
    found = {**_beside(session, folder), "log_ratios": each.double().sum(1).tolist()}
    found["pairs"] = [_tokens(row) for row in rows]
    (folder / "bench.json").write_text(json.dumps(found))


def _beside(session: Any, folder: Path) -> dict[str, Any]:
    """What TRL's side has to know."""
    import torch

    tuning = session.config.model.peft.lora_tuning
    trained = {
        name.replace("module.", ""): value.detach().float()
        for name, value in session.model.named_parameters()
        if value.requires_grad
    }
    torch.save(trained, folder / "adapters")
    about = {"adapters": str(folder / "adapters"), "rank": tuning.adapter_dim, "alpha": tuning.alpha}
    return {**about, "pairs": []}


def _tokens(row: Any) -> dict[str, list[int]]:
    """A row of NeMo-Aligner's data set as TRL takes it. Labels are those of the next token, -100 in the prompt."""
    found = {}
    for side in ("chosen", "rejected"):
        labels = row[f"{side}_labels"].tolist()
        found[f"{side}_ids"] = [label for label in labels if label > -1]
        found["prompt_ids"] = row[side][: labels.index(found[f"{side}_ids"][0]) + 1].tolist()
    return found
