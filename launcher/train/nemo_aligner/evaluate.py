"""Evaluation of a trained policy: exact KL to the reference policy and log-ratios on held-out pairs, greedy samples.

Runs at the end of each trial (`evaluate`, called by launcher.train.run), or later on a finished one:

    python -m launcher.train.nemo_aligner.evaluate TRIAL_DIR

Config keys, all optional: evaluation.kl_pairs (32), evaluation.samples (3), evaluation.sample_tokens (32); 0 leaves a
part out. The result goes to result.json under "evaluation".
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from launcher import estimates, whole_file
from launcher.findings import Finding, Refused
from launcher.nemo import versions
from launcher.train import result as results
from launcher.train.device import choose_device
from launcher.train.metrics_file import MetricsFile, SpokenProgress
from launcher.train.nemo_aligner import log_filter, settings, standins
from launcher.train.ranks import Ranks, share_cores
from launcher.train.run import load_config

if TYPE_CHECKING:
    import torch
    from nemo_aligner.data.nlp.datasets import DPOModelDataset
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

DEFAULTS = {"kl_pairs": 32, "samples": 3, "sample_tokens": 32}
#: Kept for every pair: sums over each response's tokens, in nats, and the number of tokens.
PER_PAIR = ("kl_chosen", "kl_rejected", "log_ratio_chosen", "log_ratio_rejected", "tokens_chosen", "tokens_rejected")


def evaluate(
    model: MegatronGPTDPOModel, config: DictConfig, pairs: DPOModelDataset, progress: MetricsFile
) -> dict[str, object]:
    """Evaluate `model` (NeMo-Aligner's DPO model) on the first pairs of `pairs` (its validation data set).

    All ranks have to call it, and all get the same. Keys: `kl_per_token` {"mean", "standard_error"}: KL(policy ||
    reference) in nats, mean over all tokens of both responses, standard error over pairs; `kl_per_token_chosen` and
    `kl_per_token_rejected`, the same for one response; `pairs`, `tokens`; `per_pair` (columns PER_PAIR, in the data's
    order); `samples` [{"prompt", "chosen", "reference", "policy", ..}]; `seconds`. If the model's parallelism or data
    format is not supported: {"skipped": why}.
    """
    why = unsupported_reason(model.cfg)
    if why:
        return {"skipped": why}
    options = {**DEFAULTS, **(config.get("evaluation") or {})}
    began = time.time()
    progress.phase("evaluating")
    model.prepare_for_validation_step()  # dropout off
    try:
        per_pair = _per_pair(model, pairs, min(options["kl_pairs"], len(pairs)), progress)
        samples = _samples(model, pairs, options["samples"], options["sample_tokens"], progress)
    finally:
        model.finish_validation_step()
    return {**summarise(per_pair), "per_pair": per_pair, "samples": samples, "seconds": round(time.time() - began, 3)}


def unsupported_reason(config: DictConfig) -> str:
    """Why the divergence cannot be computed with a model config, "" if it can."""
    for key in ("pipeline_model_parallel_size", "context_parallel_size"):
        if (config.get(key) or 1) > 1:
            return f"model.{key}={config.get(key)}: the evaluation knows tensor and data parallelism only"
    if config.data.data_impl == "packed_jsonl":
        return "model.data.data_impl=packed_jsonl: the evaluation knows unpacked pairs only"
    return ""


def summarise(per_pair: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Means over all tokens and standard errors of the KL, from the columns PER_PAIR. None if there are no tokens."""
    columns = {name: [per_pair[f"{name}_chosen"], per_pair[f"{name}_rejected"]] for name in ("kl", "tokens")}
    both = {name: [a + b for a, b in zip(*sides, strict=True)] for name, sides in columns.items()}
    summary: dict[str, Any] = {"pairs": len(both["kl"]), "tokens": int(sum(both["tokens"]))}
    summary["kl_per_token"] = _per_token(both["kl"], both["tokens"])
    for place, side in enumerate(("chosen", "rejected")):
        summary[f"kl_per_token_{side}"] = _per_token(columns["kl"][place], columns["tokens"][place])
    return summary


def _per_token(sums: Sequence[float], tokens: Sequence[float]) -> dict[str, float | None]:
    if not sum(tokens):
        return {"mean": None, "standard_error": None}
    estimate = estimates.ratio(sums, tokens)
    return {"mean": estimate.value, "standard_error": estimate.error}


def _per_pair(
    model: MegatronGPTDPOModel, pairs: DPOModelDataset, count: int, progress: MetricsFile
) -> dict[str, list[float]]:
    import torch
    from nemo_aligner.utils import parallel_state

    from launcher.train.nemo_aligner import divergence

    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = {index: pairs[index] for index in range(rank, count, ranks)}
    policy = {}
    for index, pair in mine.items():
        progress.beat(f"KL, policy, pair {index + 1} of {count}")
        policy[index] = _hidden(model, pair).cpu()
    weight = divergence.output_weight(model)
    if not model.use_peft:
        weight = weight.clone()  # the reference's weight will overwrite it
    rows = {}
    with divergence.reference(model):
        base_weight = divergence.output_weight(model)
        for index, pair in mine.items():
            progress.beat(f"KL, reference, pair {index + 1} of {count}")
            base = _hidden(model, pair)
            labels = torch.cat([_answer(pair["chosen_labels"]), _answer(pair["rejected_labels"])])
            compared = divergence.compare(policy.pop(index).to(base.device), base, labels, (weight, base_weight))
            rows[index] = _sums(compared, len(_answer(pair["chosen_labels"])))
    shares: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(shares, rows, group=parallel_state.get_data_parallel_group())
    whole = {index: row for share in shares for index, row in share.items()}
    return {name: [whole[index][name] for index in range(count)] for name in PER_PAIR}


def _answer(labels: torch.Tensor) -> torch.Tensor:
    """The response's tokens: the labels of prompt and padding are -100."""
    return labels[labels > -1]


def _hidden(model: MegatronGPTDPOModel, pair: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[tokens of both responses, hidden], chosen first."""
    import torch

    from launcher.train.nemo_aligner import divergence
    from launcher.train.nemo_aligner.savings import shared_prompt

    if shared_prompt.taught(divergence.megatron_gpt(model)):
        return shared_prompt.responses(model, pair)
    # A pair's two sides are padded to the same length.
    hidden = divergence.hidden_states(model, torch.stack([pair["chosen"], pair["rejected"]]))
    return hidden[torch.stack([pair["chosen_labels"], pair["rejected_labels"]]).to(hidden.device) > -1]


def _sums(compared: Any, chosen: int) -> dict[str, float]:
    """A pair's row of PER_PAIR; its first `chosen` tokens belong to the chosen response."""
    row: dict[str, float] = {}
    for name, part in (("chosen", slice(None, chosen)), ("rejected", slice(chosen, None))):
        row[f"kl_{name}"] = round(float(compared.kl[part].double().sum()), 6)
        row[f"log_ratio_{name}"] = round(float(compared.log_ratio[part].double().sum()), 6)
        row[f"tokens_{name}"] = len(compared.kl[part])
    return row


def _samples(
    model: MegatronGPTDPOModel, pairs: DPOModelDataset, count: int, length: int, progress: MetricsFile
) -> list[dict[str, object]]:
    from launcher.train.nemo_aligner import divergence, samples

    chosen = samples.prompts(pairs, count) if length > 0 else []
    if not chosen:
        return []
    begun = [prompt for prompt, _ in chosen]
    policy = samples.greedy(model, begun, length, lambda made: progress.beat(f"policy, token {made} of {length}"))
    with divergence.reference(model):
        base = samples.greedy(model, begun, length, lambda made: progress.beat(f"reference, token {made} of {length}"))
    text = model.tokenizer.ids_to_text
    return [
        {
            "prompt": text(prompt),
            "chosen": text(response),
            "reference": text(before),
            "reference_ended": before_ended,
            "policy": text(after),
            "policy_ended": after_ended,
        }
        for (prompt, response), (before, before_ended), (after, after_ended) in zip(chosen, base, policy, strict=True)
    ]


def evaluate_trial(trial_dir: Path) -> dict[str, object]:
    """Evaluate a finished trial in this process; writes the evaluation into its result.json and returns it.

    Ranks are started as in training, but exactly tensor_model_parallel_size of them. Raises Refused if their number
    is different or the trial cannot be evaluated.
    """
    versions.check()  # NeMo-Aligner 0.6's labels stand one position further: all numbers would be others
    trial_dir = trial_dir.absolute()
    result, config = check(trial_dir)
    ranks = Ranks.from_environment()
    need = config.model.tensor_model_parallel_size
    if ranks.world_size != need:
        why = f"needs {need} ranks to be evaluated, but {ranks.world_size} are running"
        remedy = f"torchrun --nproc-per-node {need} -m launcher.train.nemo_aligner.evaluate {trial_dir}"
        raise Refused([Finding(str(trial_dir), "", why, remedy)])
    config.trainer.num_nodes, config.trainer.devices = 1, need
    ranks.export()
    progress = MetricsFile(None)
    log_filter.quiet()
    standins.install()
    # `auto` may mean another precision on this machine, in which the numbers would not be those of the trained policy.
    device = choose_device(config.trainer.accelerator, str(result.get("precision") or config.trainer.precision), ranks)
    if device.accelerator == "cpu":
        share_cores(ranks)
    settings.configure(config, trial_dir, ranks, device)
    if ranks.rank == 0:
        progress = SpokenProgress()
        progress.phase("importing NeMo")
    with standins.importing():
        from launcher.train.nemo_aligner import session

    log_filter.files_only()
    progress.phase("loading model", Path(config.pretrained_checkpoint.restore_from_path).name)
    model, pairs = _load(config, trial_dir, result["nemo"])
    evaluation = evaluate(model, config, pairs, progress)
    if ranks.rank == 0:
        whole_file.write_json(trial_dir / "result.json", {**result, "evaluation": evaluation})
    session.shut_down()
    return evaluation


def check(trial_dir: Path) -> tuple[dict[str, Any], Any]:
    """(result, config) of a trial that can be evaluated. Raises Refused; imports no torch."""
    result, config = results.read_result(trial_dir / "result.json"), load_config(trial_dir)
    if result is None:
        raise Refused([Finding(str(trial_dir), "", "has no result.json, so it is not done", "let it finish first")])
    if config.model.peft.peft_scheme == "none":
        why = "trained all weights; the reference policy is not there any more"
        raise Refused([Finding(str(trial_dir), "", why, "such a trial is evaluated at its end only")])
    nemo = str(result.get("nemo") or "")
    if not nemo or not Path(nemo).is_file():
        why = "the adapters are gone" if nemo else "has no adapters (exp_manager save_nemo_on_train_end)"
        raise Refused([Finding(str(trial_dir), nemo, why, "train it again, or leave it out")])
    return result, config


def _load(config: DictConfig, trial_dir: Path, adapters: str) -> tuple[Any, Any]:
    """(model with its trained adapters, held-out pairs); writes only the tokenizer."""
    from nemo.collections.nlp.parts.peft_config import PEFT_CONFIG_MAP
    from nemo_aligner.utils.train_script_utils import init_distributed, resolve_and_create_trainer

    from launcher.train.nemo_aligner import base_model, session

    base_model.complete_config(config, trial_dir)
    lightning = resolve_and_create_trainer(config, "dpo")
    model = base_model.load(config, lightning, trial_dir)
    init_distributed(lightning, model, config.model.get("transformer_engine", False))
    # init_peft does this too, but its log call has a format string without a place for its argument.
    model.load_adapters(adapters, PEFT_CONFIG_MAP[config.model.peft.peft_scheme](config.model))
    model.setup_complete = True
    _, pairs, _ = session.datasets(config.model, model.tokenizer)
    return model, pairs


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done; 2 refused."""
    what = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m launcher.train.nemo_aligner.evaluate", description=what)
    parser.add_argument("trial_dir", type=Path, metavar="TRIAL_DIR", help="the folder of a trial that is done")
    try:
        evaluation = evaluate_trial(parser.parse_args(argv).trial_dir)
    except Refused as refused:
        for finding in refused.findings:
            print(f"error: {finding}", file=sys.stderr)
        return Refused.exit_code
    if int(os.environ.get("RANK", 0)) == 0:
        print(_in_words(evaluation), flush=True)
    return 0


def _in_words(evaluation: Mapping[str, Any]) -> str:
    if "skipped" in evaluation:
        return f"not evaluated: {evaluation['skipped']}"
    kl, error = evaluation["kl_per_token"]["mean"], evaluation["kl_per_token"]["standard_error"]
    if kl is None:
        return "evaluated, without a KL (evaluation.kl_pairs=0)"
    about = f" +- {error:.5f}" if error is not None else ""
    size = f"{evaluation['pairs']} pairs, {evaluation['tokens']} tokens"
    return f"KL to the reference {kl:.5f}{about} nats per token, {size}"


if __name__ == "__main__":
    sys.exit(main())
