"""Train the small models in bf16 on a GPU and on the CPU of the same machine, and compare their losses step by step.

For a machine with a GPU and the pip packages of the `train` extra; Apex and Transformer Engine may be there or not.

    python tests/gpu/compare_with_cpu.py                       # tiny and smollm2_135m, 8 steps each
    python tests/gpu/compare_with_cpu.py --models tiny --precision 32

The CPU runs are processes that see no GPU. A first one makes the adapters that both runs then start from, since a GPU
draws other random numbers; both take the same pairs in the same order.
Exit codes: 0 they agree, 1 they differ or a run failed, 2 bad arguments, 3 there is no GPU here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

from data_prep import convert_checkpoint  # noqa: E402
from data_prep.models import small_models  # noqa: E402
from launcher.findings import Refused  # noqa: E402
from tests.integration.minimal_trial import write_pairs, write_trial  # noqa: E402

NO_GPU = 3
TOLERANCE = {"bf16": 0.05, "32": 0.005}
"""Largest difference of a loss. In bf16 the CPU alone differs by 0.01 between micro batches of one pair and of eight:
a freshly started adapter adds less than half a unit in the last place of most outputs, and rounding decides what stays.
"""
STEPS = 8
SHOWN = ("train/loss", "val/loss")


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        import torch
    except ImportError:
        print("torch is not installed here: pip install '.[train]'", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("no GPU here (torch.cuda.is_available() is False): nothing was compared", file=sys.stderr)
        return NO_GPU
    tolerance = TOLERANCE[options.precision] if options.tolerance is None else options.tolerance
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.precision}, tolerance {tolerance:g}")
    agree = True
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        try:
            for model in options.models:
                agree &= compare(model, options, work, tolerance)
        except Refused as refused:
            print(f"error: {refused}", file=sys.stderr)
            return Refused.exit_code
    print("GPU and CPU agree" if agree else "GPU and CPU DIFFER")
    return 0 if agree else 1


def parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--models", nargs="+", choices=small_models.NAMES, default=list(small_models.NAMES))
    made.add_argument(
        "--models-folder", type=Path, default=REPOSITORY / "models", help="where the .nemo files are made"
    )
    made.add_argument("--precision", choices=sorted(TOLERANCE), default="bf16")
    made.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps of each run (default {STEPS})")
    made.add_argument(
        "--tolerance", type=float, help="largest difference of a loss (default 0.05 in bf16, 0.005 in 32)"
    )
    made.add_argument("--work", type=Path, help="keep the trials' folders here (a new folder)")
    return made


def compare(model: str, options: argparse.Namespace, work: Path, tolerance: float) -> bool:
    """Print a table of one model's losses; whether none differs by more than `tolerance`."""
    nemo = convert_checkpoint.convert(model, options.models_folder / f"{model}.nemo")
    work.mkdir(parents=True, exist_ok=True)
    pairs = {"train": write_pairs(work / "train.jsonl", 8 * options.steps)}
    pairs["validation"] = pairs["test"] = write_pairs(work / "validation.jsonl", 8, start=1000)
    losses: dict[str, Any] = {}
    adapters = None
    for name, accelerator, steps in (("start", "cpu", 1), ("gpu", "gpu", options.steps), ("cpu", "cpu", options.steps)):
        changes = {
            "trainer.accelerator": accelerator,
            "trainer.precision": options.precision,
            "trainer.dpo.max_steps": steps,
            "trainer.dpo.val_check_interval": steps,
            "trainer.dpo.save_interval": steps,
            "model.peft.restore_from_path": adapters,
        }
        folder = write_trial(work / f"{model}_{name}", model, nemo, pairs, changes)
        losses[name] = run(folder, accelerator)
        if losses[name] is None:
            return False
        adapters = adapters or json.loads((folder / "result.json").read_text())["nemo"]
    return print_table(model, losses, tolerance)


def run(folder: Path, accelerator: str) -> dict[tuple[str, int], Any] | None:
    """(metric, step) -> value of one training; None, its last words printed, where it failed."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    if accelerator == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    else:
        environment["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
    print(f"{folder.name}: training, log in {folder / 'log.txt'}", flush=True)
    with (folder / "log.txt").open("w+") as log:
        command = [sys.executable, "-m", "launcher.train", str(folder)]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
        if code != 0:
            log.seek(0)
            print(f"{folder.name}: exit code {code}\n{log.read()[-4000:]}", file=sys.stderr)
            return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(key, line["step"]): line[key] for line in lines for key in SHOWN if key in line}


def print_table(model: str, losses: dict[str, Any], tolerance: float) -> bool:
    agree = True
    print(f"\n{model:<14}{'step':>5}{'GPU':>10}{'CPU':>10}{'difference':>12}")
    for (metric, step), on_gpu in losses["gpu"].items():
        on_cpu = losses["cpu"].get((metric, step))
        close = None not in (on_gpu, on_cpu) and abs(on_gpu - on_cpu) <= tolerance
        agree &= close
        if None in (on_gpu, on_cpu):
            print(f"{metric:<14}{step:>5}{on_gpu!s:>10.10}{on_cpu!s:>10.10}   NOT A NUMBER")
        else:
            mark = "" if close else "  TOO MUCH"
            print(f"{metric:<14}{step:>5}{on_gpu:>10.4f}{on_cpu:>10.4f}{on_gpu - on_cpu:>+12.4f}{mark}")
    print(flush=True)
    return agree


if __name__ == "__main__":
    sys.exit(main())
