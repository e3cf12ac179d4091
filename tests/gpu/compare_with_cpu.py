"""Train the small models for some steps in bf16 on this machine's GPU and on its CPU, and compare the losses.

    python tests/gpu/compare_with_cpu.py                      # tiny and smollm2_135m
    python tests/gpu/compare_with_cpu.py --models tiny --steps 8

Both runs are the ordinary command with trainer.precision=bf16; for the CPU's, the GPU is
hidden. Models and sample data have to be there (make setup; data_prep/convert_checkpoint.py tiny).
Exit codes: 0 they agree, 1 they differ by more than the tolerance or a run failed, 2 usage, 3 there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.sweep import Sweep, Trial  # noqa: E402

NO_GPU = 3
#: bf16 keeps 8 bits of a number. The first step differs by rounding alone; afterwards two runs drift apart slowly.
TOLERANCE = {1: 0.01}
LATER = 0.08


def gpu_name() -> str:
    """The GPU as torch sees it, "" without one; in a process of its own, so that none is held here."""
    script = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def train(model: str, steps: int, folder: Path, on_gpu: bool) -> Trial:
    """One trial through the ordinary command. Raises CalledProcessError, its output having been shown."""
    command = [
        sys.executable, str(ROOT / "launcher" / "main.py"), f"model={model}", "cluster=local", "trainer.precision=bf16",
        f"trainer.dpo.max_steps={steps}", f"trainer.dpo.val_check_interval={steps}",
        f"trainer.dpo.save_interval={steps}", "model.optim.sched.warmup_steps=1",
        "model.peft.lora_tuning.adapter_dropout=0.0", f'hydra.sweep.dir="{folder}"',
    ]  # fmt: skip
    environment = dict(os.environ) if on_gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    print(f"== {model}, {steps} steps in bf16 on the {'GPU' if on_gpu else 'CPU'}", flush=True)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return Sweep.load(folder).trials[0]


def losses(trial: Trial) -> dict[int, float]:
    """Training loss by step."""
    return {row["step"]: row["train/loss"] for row in trial.metrics_rows() if "train/loss" in row}


def compare(model: str, gpu: Trial, cpu: Trial) -> bool:
    """Print the two runs side by side; whether every step is within its tolerance."""
    on_gpu, on_cpu = losses(gpu), losses(cpu)
    agree = bool(on_gpu) and on_gpu.keys() == on_cpu.keys()
    print(f"\n{model:<14} {'step':>4} {'GPU':>9} {'CPU':>9} {'differ':>9} {'allowed':>8}")
    for step in sorted(on_gpu.keys() & on_cpu.keys()):
        difference, allowed = abs(on_gpu[step] - on_cpu[step]), TOLERANCE.get(step, LATER)
        agree = agree and difference <= allowed
        mark = "" if difference <= allowed else "  TOO FAR"
        row = f"{on_gpu[step]:>9.4f} {on_cpu[step]:>9.4f} {difference:>9.4f} {allowed:>8.2f}"
        print(f"{'':<14} {step:>4} {row}{mark}")
    for name, trial in (("GPU", gpu), ("CPU", cpu)):
        result = trial.result() or {}
        print(f"{'':<14} {name}: {result.get('train_seconds')} s of training, {result.get('device')}")
    return agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2_135m"], choices=["tiny", "smollm2_135m"])
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each run (default 6)")
    asked = parser.parse_args()
    name = gpu_name()
    if not name:
        print("no GPU here that torch can use: nothing was compared", file=sys.stderr)
        return NO_GPU
    print(f"GPU: {name}")
    agree = True
    with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
        for model in asked.models:
            try:
                on_gpu = train(model, asked.steps, Path(scratch) / f"{model}-gpu", on_gpu=True)
                on_cpu = train(model, asked.steps, Path(scratch) / f"{model}-cpu", on_gpu=False)
            except subprocess.CalledProcessError as error:
                print(f"{model}: the run failed with exit code {error.returncode}", file=sys.stderr)
                agree = False
                continue
            agree = compare(model, on_gpu, on_cpu) and agree
    print("\nthey agree" if agree else "\nthey do NOT agree")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
