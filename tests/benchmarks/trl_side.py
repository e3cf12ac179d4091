"""TRL's side of beside_trl.py, run by a Python that has TRL: python trl_side.py WORK.json; answers in its `out`.

The same pairs, as tokens, in the same order, and the same base model. A second reference pass or step of a batch is not
timed: each batch is new.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tests.integration.lora_reference import PARTS, load_adapters

WAYS: dict[str, dict[str, Any]] = {
    "as documented": {"per_device_train_batch_size": 8, "precompute_ref_log_probs": True},
    "at its best": {
        "per_device_train_batch_size": 1,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 1,
        "gradient_checkpointing": False,
        "max_length": None,
    },
}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Timed(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = cpu_seconds()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(cpu_seconds() - self.began)


def trainer(work: dict[str, Any], way: str, precision: str) -> DPOTrainer:
    """In bf16 its weights are bf16, as ours are."""
    torch.set_num_threads(1)
    bf16 = precision == "bf16"
    model = AutoModelForCausalLM.from_pretrained(work["hf"], dtype=torch.bfloat16 if bf16 else torch.float32)
    modules = [part.rpartition(".")[2] for parts in PARTS.values() for part in parts]
    lora = LoraConfig(r=work["rank"], lora_alpha=work["alpha"], target_modules=modules, lora_dropout=0.0)
    options = {**WAYS[way]}
    options["gradient_accumulation_steps"] = work["batch"] // options["per_device_train_batch_size"]
    settings = DPOConfig(
        output_dir=str(Path(work["out"]).parent / "trl"), bf16=bf16, use_cpu=True, beta=work["beta"], report_to=[],
        max_steps=len(work["pairs"]) // work["batch"], save_strategy="no", logging_steps=1, **options,
    )  # fmt: skip

    class InOrder(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # tokens already; TRL would add one at each end

        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(work["pairs"]),
        processing_class=AutoTokenizer.from_pretrained(work["hf"]),
        peft_config=lora,
    )


@torch.no_grad()
def log_ratios(work: dict[str, Any]) -> list[float]:
    """[2 x pairs] of the first batch with the adapters of `work`, chosen first, by TRL's own functions, in fp32."""
    made = trainer({**work, "pairs": work["pairs"][: work["batch"]]}, "at its best", "32")
    load_adapters(made.model, torch.load(work["adapters"]))
    inputs = made.data_collator([dict(pair) for pair in made.train_dataset])
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    made.model.eval()
    model_inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    policy = made.model(**model_inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
    policy = policy[:, 1 - inputs["input_ids"].shape[1] :].sum(1)
    reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
    found: list[float] = (policy - reference).tolist()
    return found


def timed(work: dict[str, Any], way: str) -> dict[str, Any]:
    began = cpu_seconds()
    made = trainer(work, way, "bf16")
    whole = cpu_seconds() - began
    began = cpu_seconds()
    trainer({**work, "pairs": work["pairs"][: work["batch"]]}, way, "bf16")
    setting_up = cpu_seconds() - began
    clock = Timed()
    made.add_callback(clock)
    made.train()
    batches = len(work["pairs"]) // work["batch"]
    return {"reference": (whole - setting_up) / max(1, batches - 1), "steps": clock.steps}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    answer = log_ratios(given) if given["way"] == "log-ratios" else timed(given, given["way"])
    Path(given["out"]).write_text(json.dumps(answer))
