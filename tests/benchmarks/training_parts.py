"""What one rank of the training bench does: counts positions, or times steps, with stock's and our ways by turns."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.train.ranks import cores

PREPARED = ("train", "validation", "test")


def in_a_rank(function: Callable[[Any, Path], None], folder: Path) -> dict[str, Any]:
    """What `function(session, folder)` left in bench.json; run in a process of its own, with the trial built there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.preloaded"])
    process = context.Process(target=_build_and_call, args=(function, folder))
    process.start()
    process.join()
    assert process.exitcode == 0, (folder / "bench.log").read_text()[-3000:]
    found: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return found


def _build_and_call(function: Callable[[Any, Path], None], folder: Path) -> None:
    log = os.open(folder / "bench.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    from launcher.train.device import choose_device
    from launcher.train.metrics_file import MetricsFile
    from launcher.train.nemo_aligner import session as training
    from launcher.train.nemo_aligner import settings
    from launcher.train.ranks import Ranks, share_cores
    from launcher.train.run import load_config

    config, ranks = load_config(folder), Ranks.from_environment()
    ranks.export()
    device = choose_device("cpu", config.trainer.precision, ranks)
    share_cores(ranks)
    steps = settings.configure(config, folder, ranks, device)
    function(training.build(config, steps, MetricsFile(None)), folder)


def count(session: Any, folder: Path) -> None:
    """Positions a rank computes for one pass over all batches: as NeMo-Aligner does, cut, and as rows."""
    from nemo.collections.nlp.modules.common.megatron.utils import get_iterator_k_split
    from nemo_aligner.algorithms.dpo import dpo_custom_collate

    from launcher.train.nemo_aligner.savings import micro_batches
    from launcher.train.nemo_aligner.savings.row import row_lengths

    trainer, pairs = session.trainer, session.trainer.train_dataloader.dataset
    rows = [pairs[place] for place in range(len(pairs))]
    multiple, eos = trainer.pad_seq_length_to_mult, session.model.tokenizer.eos_id
    found: dict[str, Any] = {"pairs": len(rows), "labelled": 0, "tokens": 0, "stock": {}, "cut": {}, "shared": {}}
    found |= {"widths": {}, "lengths": {}, "labels": {}}
    for row in rows:
        sides = [row["chosen_labels"], row["rejected_labels"]]
        found["labelled"] += sum(int((labels > -1).sum()) for labels in sides)
        found["tokens"] += row["chosen_length"] + row["rejected_length"]
    for share in (8, 16, 64):
        stock = cut = shared = labels = 0
        widths, lengths = [], []
        for start in range(0, len(rows) // share * share, share):
            some = rows[start : start + share]
            batch = dpo_custom_collate(some, eos, pad_length_to_multiple_of=multiple)
            stock += 2 * batch["chosen"].numel()
            shared += int(row_lengths(batch).sum())
            widths.append(batch["chosen"].shape[1])
            lengths += row_lengths(batch).tolist()
            labels += sum(int((batch[f"{side}_labels"] > -1).sum()) for side in ("chosen", "rejected"))
            ordered = dpo_custom_collate(micro_batches.longest_first(some), eos, pad_length_to_multiple_of=multiple)
            for micro in get_iterator_k_split(ordered, share):
                cut += 2 * micro_batches.cut(micro, 1)["chosen"].numel()
        found["stock"][share], found["cut"][share], found["shared"][share] = stock, cut, shared
        found["widths"][share], found["lengths"][share], found["labels"][share] = widths, lengths, labels
    (folder / "bench.json").write_text(json.dumps(found))


#: Ways to compute a step, and their pairs a micro batch: stock is at its best with four, ours with one.
WAYS = {"stock": 4, "cut": 1, "all": 1, "shared": 1, "packed": 1}
#: Positions of a row: what four pairs of 256 tokens a side take as sequences, as `auto` has it.
PACKED = 2048


def time_steps(session: Any, folder: Path) -> None:
    """CPU seconds of reference pass and training step, each batch by turns in all WAYS."""
    from megatron.core import num_microbatches_calculator as calculator

    from launcher.train.nemo_aligner.savings import (
        attention,
        micro_batches,
        packing,
        response_logits,
        row,
        shared_prompt,
    )

    trainer, model = session.trainer, session.model
    collate = trainer.collate_fn
    stock = model.get_forward_output_and_loss_func
    micro_batches.install(model, 1)
    cut = model.get_forward_output_and_loss_func
    response_logits.install(model)
    every = model.get_forward_output_and_loss_func
    model.get_forward_output_and_loss_func = stock
    way_of_attention = attention.choose("cpu", str(session.config.trainer.precision))
    shared_prompt.install(model, 1, way_of_attention.attend)
    shared = model.get_forward_output_and_loss_func
    forwards = {"stock": stock, "cut": cut, "all": every, "shared": shared, "packed": shared}
    ways = {way: forwards[way] for way in WAYS}
    found: list[dict[str, Any]] = []
    for rows in trainer.train_dataloader:
        if len(found) == len(ways) * trainer.max_steps:
            break
        if not found:  # what a process does but once, such as to touch its weights, is nobody's time
            model.get_ref_policy_logprobs(collate(rows, pad_length_to_multiple_of=trainer.pad_seq_length_to_mult))
        for way, forward in ways.items():
            model.get_forward_output_and_loss_func = forward
            model.cfg.micro_batch_size = model.cfg.dpo.log_prob_forward_micro_batch_size = WAYS[way]
            calculator.reconfigure_num_microbatches_calculator(0, None, len(rows), WAYS[way], 1)
            if way == "packed":
                packing.install(model, PACKED)
            some = rows if way == "stock" else micro_batches.longest_first(rows)
            batch = collate(some, pad_length_to_multiple_of=trainer.pad_seq_length_to_mult)
            began = cpu_seconds()
            values = model.get_ref_policy_logprobs(batch).cpu()
            half = len(values) // 2
            batch["ref_policy_log_probs_chosen"], batch["ref_policy_log_probs_rejected"] = values[:half], values[half:]
            between = cpu_seconds()
            loss, _ = trainer.train_single_step(batch)
            ended = cpu_seconds()
            own = 2 * batch["chosen"].shape[1] * len(rows)
            if way in ("cut", "all"):
                own = 2 * sum(max(one["chosen_length"], one["rejected_length"]) for one in rows)
            elif way != "stock":
                own = int(row.row_lengths(batch).sum())
            if way == "packed":
                del model.get_logprob_batch, model.get_loss_and_metrics
            taken = {"reference": between - began, "step": ended - between}
            found.append({"way": way, **taken, "positions": own, "loss": loss})
            print(found[-1], flush=True)
    (folder / "bench.json").write_text(json.dumps(found))


def half_of_the_cores() -> None:
    """Called in a rank before it trains."""
    import torch

    torch.set_num_threads(max(1, cores() // 2))


def all_cores() -> None:
    """Called in a rank before it trains."""
    import torch

    torch.set_num_threads(cores())


def keep_peak() -> None:
    """Called in a rank before it trains: leaves its peak memory beside its log."""
    from launcher.train.nemo_aligner import session as training

    leave = training.shut_down

    def shut_down() -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _beside_the_log("peak").write_text(str(peak))
        leave()

    training.shut_down = shut_down


def keep_adapters() -> None:
    """Called in a rank before it trains: rank 0 leaves what it trains beside its log after every step."""
    import torch
    from nemo_aligner.algorithms.dpo import DPOTrainer

    step = DPOTrainer.train_single_step

    def kept_step(trainer: Any, batch: Any) -> Any:
        answer = step(trainer, batch)
        if torch.distributed.get_rank() == 0:
            trained = {
                name.replace("module.", ""): value.detach().float()  # bf16 weights are in one module more
                for name, value in trainer.model.named_parameters()
                if value.requires_grad
            }
            torch.save(trained, _beside_the_log(f"{trainer.step + 1}.adapters"))
        return answer

    DPOTrainer.train_single_step = kept_step


def stock_in_the_same_order() -> None:
    """Called in a rank before it trains: NeMo-Aligner's own trainer, with pairs drawn as for micro batches of one."""
    from omegaconf import OmegaConf

    from launcher.train.nemo_aligner import session as training
    from tests.integration.stock import stock

    stock()
    batches = training.batches

    def as_for_one(config: Any, *rest: Any, **options: Any) -> Any:
        return batches(OmegaConf.merge(config, {"model": {"micro_batch_size": 1}}), *rest, **options)

    training.batches = as_for_one


def kept(change: Callable[[], None] | None = None) -> None:
    """Called in a rank before it trains: `change`, and what it leaves."""
    if change is not None:
        change()
    keep_peak()
    keep_adapters()


def _beside_the_log(name: str) -> Path:
    return Path(f"/proc/self/fd/{sys.stdout.fileno()}").resolve().parent.parent / name


def stop_in_the_middle() -> None:
    """Called in a rank before it trains: it stops, with a checkpoint, after half of its steps."""
    from launcher.train import timer
    from launcher.train.nemo_aligner import session as training

    made = [0]
    step = training.PreferenceTrainer.train_single_step

    def counted(trainer: Any, batch: Any) -> Any:
        made[0] += 1
        return step(trainer, batch)

    class Half(timer.RunTimer):
        def _wish(self, now: float) -> int:
            return timer._TIME_LIMIT if made[0] == HALF else super()._wish(now)

    training.PreferenceTrainer.train_single_step = counted
    training.RunTimer = Half


HALF = 25


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
