"""One rank of a trial, as `python -m launcher.train`, with what day_one.py measures written to a file: JSON lines.

    python -m tests.gpu.one_rank TRIAL [--measure FILE] [--adapters FILE] [--profile FILE] [--empty-cache]

A line a step: seconds, tokens, the most memory. `--profile` writes the third step's kernels. `--empty-cache` gives the
GPU's memory back after each step, as NeMo-Aligner does, and this project does not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any


def watch(file: Path | None, adapters: Path | None, profile: Path | None) -> None:
    """Wrap the training step."""
    import torch

    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    step = PreferenceTrainer.train_single_step
    cuda = torch.cuda.is_available()

    def watched(self: Any, batch: Any) -> Any:
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        if profile is not None and self.step == 2:
            answer = _profiled(lambda: step(self, batch), profile)
        else:
            answer = step(self, batch)
        if cuda:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line = {"step": self.step + 1, "seconds": time.monotonic() - began, "peak_gib": peak / 2**30}
        line["tokens"] = sum(batch[side].numel() for side in ("chosen", "rejected"))
        if file is not None:
            with file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        if adapters is not None:
            trained = {name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad}
            torch.save(trained, adapters)
        return answer

    PreferenceTrainer.train_single_step = watched  # type: ignore[method-assign]


def _profiled(call: Any, file: Path) -> Any:
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    began = time.monotonic()
    with torch.profiler.profile(activities=activities) as traced:
        answer = call()
    wall = time.monotonic() - began
    rows = traced.key_averages()
    on_gpu = sum(row.self_device_time_total for row in rows) / 1e6
    launches = sum(row.count for row in rows if "LaunchKernel" in row.key)
    longest = sorted(rows, key=lambda row: -(row.self_device_time_total or row.self_cpu_time_total))[:25]
    found = {"wall_s": wall, "gpu_s": on_gpu, "gpu_busy_share": on_gpu / wall, "kernel_launches": launches}
    kernels = [[row.key[:90], row.count, row.self_device_time_total, row.self_cpu_time_total] for row in longest]
    file.write_text(json.dumps({**found, "longest (calls, GPU us, CPU us)": kernels}))
    return answer


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("trial", type=Path)
    for name in ("--measure", "--adapters", "--profile"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--empty-cache", action="store_true")
    args = parser.parse_args()
    signals = (signal.SIGUSR2,) if "TRIAL_ATTEMPT" in os.environ else ()
    if signals:
        from launcher.train.signals import listen

        listen(args.trial, signals)  # before the imports, as under Slurm
    import numpy

    from launcher.train import run_trial
    from launcher.train.nemo_aligner import standins

    if not hasattr(numpy, "product"):  # Megatron-core 0.10 calls it, and numpy 2 has only prod
        numpy.product = numpy.prod
    standins.install()
    watch(args.measure, args.adapters, args.profile)
    if args.empty_cache:
        import gc

        import torch
        from nemo_aligner.algorithms import dpo

        def clear() -> None:
            gc.collect()
            torch.cuda.empty_cache()

        dpo.clear_memory = clear
    run_trial(args.trial, signals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
