"""Made-up sweeps for the report's tests; the figures are chosen so that they can be computed by hand."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.sweep.folder import Sweep

SUBMITTED = datetime(2025, 3, 1, 12, 0, 0, tzinfo=timezone.utc)
START = SUBMITTED.timestamp()
BETA = "model.dpo.ref_policy_kl_penalty"
HYPOTHESES = [
    {
        "beta": 0.1,
        "name": "balanced",
        "claim": "learns and stays near",
        "expect": {"accuracy": "above chance", "drift": "not highest"},
    },
    {"beta": 0.5, "name": "conservative", "claim": "stays too near", "expect": {"drift": "lowest"}},
    {"beta": 0.05, "name": "unstable", "claim": "drifts furthest", "expect": {"drift": "highest"}},
]
#: Four pairs each. Drift of a pair is (chosen - rejected) / 2 here: means 3, 1.5 and 0.75.
PAIRS = {
    0.05: {
        "log_ratio_chosen": [2.0, 4.0, -1.0, 3.0],
        "log_ratio_rejected": [-6.0, -2.0, -3.0, -5.0],
        "kl_chosen": [2.0, 2.0, 1.0, 1.0],
        "kl_rejected": [1.0, 1.0, 1.0, 1.0],
        "tokens_chosen": [10, 20, 10, 10],
        "tokens_rejected": [10, 10, 10, 20],
    },
    0.1: {
        "log_ratio_chosen": [1.0, 2.0, 0.0, 1.0],
        "log_ratio_rejected": [-3.0, -1.0, -1.0, -3.0],
        "kl_chosen": [1.0, 1.0, 0.5, 0.5],
        "kl_rejected": [0.5, 0.5, 0.5, 0.5],
        "tokens_chosen": [10, 20, 10, 10],
        "tokens_rejected": [10, 10, 10, 20],
    },
    0.5: {
        "log_ratio_chosen": [1.0, 1.0, 0.0, 2.0],
        "log_ratio_rejected": [-1.0, 0.0, -1.0, 0.0],
        "kl_chosen": [0.4, 0.4, 0.1, 0.1],
        "kl_rejected": [0.1, 0.1, 0.1, 0.1],
        "tokens_chosen": [10, 20, 10, 10],
        "tokens_rejected": [10, 10, 10, 20],
    },
}
MEANS = {0.05: (2.0, -4.0), 0.1: (1.0, -2.0), 0.5: (1.0, -0.5)}


#: What the evaluation of a trial measured: the four pairs ten times, as many as were validated.
VALIDATED = 40
COLUMNS = {beta: {name: values * 10 for name, values in columns.items()} for beta, columns in PAIRS.items()}


def config(beta: float, seed: int = 1, **dpo: Any) -> dict[str, Any]:
    return {
        "trainer": {"devices": 2, "num_nodes": 1, "dpo": {"limit_val_batches": 1.0}},
        "model": {
            "global_batch_size": 8,
            "seed": seed,
            "dpo": {"ref_policy_kl_penalty": beta, "preference_loss": "dpo", **dpo},
        },
        "pretrained_checkpoint": {"restore_from_path": "/models/llama.nemo"},
        "paths": {"runs": f"/runs/{beta}"},
    }


def validation(step: int, chosen: float, rejected: float, accuracy: float = 0.75, loss: float = 0.6) -> dict[str, Any]:
    return {
        "step": step,
        "val/loss": loss,
        "val/acc": accuracy,
        "val/rewards_chosen_mean": chosen,
        "val/rewards_rejected_mean": rejected,
        "val/rewards_all_std": 8.0,
        "val/pairs": VALIDATED,
    }


def lines(beta: float, waited: float = 90.0) -> list[dict[str, Any]]:
    """Of one start of 1,000 s, with validations at steps 0, 10 and 20 of 20."""
    chosen, rejected = MEANS[beta]
    begin = START + waited
    return [
        {"time": begin, "phase": "starting", "detail": "importing torch"},
        {"time": begin + 5, "phase": "starting", "detail": "importing NeMo"},
        {"time": begin + 20, "phase": "training", "detail": ""},
        {"time": begin + 30, "max_steps": 20, **validation(0, 0.0, 0.0, 0.0, 0.6931)},
        {"time": begin + 500, "max_steps": 20, **validation(10, chosen / 2, rejected / 2)},
        {"time": begin + 990, "max_steps": 20, **validation(20, chosen, rejected)},
        {"time": begin + 1000, "phase": "done", "detail": ""},
    ]


def result(beta: float, evaluated: bool = True) -> dict[str, Any]:
    """Of 40 validated pairs, 44 in the file; 1,800 s on two GPUs."""
    found: dict[str, Any] = {
        "beta": beta,
        "steps": 20,
        "seconds": 1800.0,
        "final": validation(20, *MEANS[beta]),
        "pairs": {"train": 160, "validation": 44},
        "ranks": 2,
        "device": "gpu, NVIDIA H100",
        "precision": "bf16",
        "versions": {"torch": "2.13.0"},
        "trainable_parameters": 1000,
        "parameters": 100000,
    }
    if evaluated:
        sample = {"prompt": "\n\nHuman: <b>Hi</b>\n\nAssistant:", "chosen": " Hello.", "reference": " Hey\x12<script>"}
        sample |= {"reference_ended": False, "policy": f" Hello from {beta}", "policy_ended": True}
        found["evaluation"] = {"per_pair": COLUMNS[beta], "samples": [sample]}
    return found


def make(folder: Path, betas: tuple[float, ...] = (0.05, 0.1, 0.5), hypotheses: Any = None, **dpo: Any) -> Sweep:
    """A sweep whose trials have their configs and were submitted, and nothing more."""
    return _create(folder, [([f"{BETA}={beta}"], config(beta, **dpo)) for beta in betas], hypotheses)


def _create(folder: Path, trials: list[tuple[list[str], dict[str, Any]]], hypotheses: Any) -> Sweep:
    experiment = {"name": "ablation", "hypotheses": HYPOTHESES if hypotheses is None else hypotheses}
    sweep = Sweep.create(folder, command=["main.py", "-m"], experiment=experiment, trials=trials)
    sweep.record_job("local", "host:1", range(len(trials)))
    data = json.loads((folder / "sweep.json").read_text())
    data["jobs"][0]["submitted"] = SUBMITTED.isoformat()
    (folder / "sweep.json").write_text(json.dumps(data))
    return Sweep.load(folder)


def make_seeds(folder: Path, seeds: tuple[int, ...] = (1, 2, 3), hypotheses: Any = None) -> Sweep:
    """A sweep of three betas with several seeds each, as `-m BETA=0.05,0.1,0.5 model.seed=1,2,3` makes it."""
    return _create(
        folder,
        [([f"{BETA}={beta}", f"model.seed={seed}"], config(beta, seed)) for beta in (0.05, 0.1, 0.5) for seed in seeds],
        hypotheses,
    )


def finish(sweep: Sweep, *numbers: int, evaluated: bool = True) -> Sweep:
    """Let trials be done; all of them where none is named."""
    for trial in sweep.trials:
        if not numbers or trial.number in numbers:
            assert trial.beta is not None
            write_lines(sweep, trial.number, lines(trial.beta))
            (trial.folder / "result.json").write_text(json.dumps(result(trial.beta, evaluated)))
    return sweep


def write_lines(sweep: Sweep, number: int, rows: list[dict[str, Any]], end: str = "\n") -> None:
    text = "\n".join(json.dumps(row) for row in rows) + end
    (sweep.folder / str(number) / "metrics.jsonl").write_text(text)
