"""The first run on a GPU: seven parts, each bounded in time, results as JSON.

    python tests/gpu/day_one.py --out FOLDER [--parts imports tiny ...] [--rehearse]

pack.py packs what it needs for a machine without a network. `--rehearse` runs everything on the CPU with tiny sizes.
Results are written to FOLDER/day_one.json after each part, so a run that is cut off leaves what it has.
Exit codes: 0 all parts passed, 1 one failed or ran out of time, 3 there is no GPU here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

from launcher import whole_file  # noqa: E402
from tests.gpu import big_model  # noqa: E402
from tests.gpu.day import Day, Failed, furthest, metrics, require  # noqa: E402
from tests.integration.minimal_trial import write_long_pairs, write_pairs  # noqa: E402

NO_GPU = 3
#: What makes kernels deterministic, besides the config's `deterministic`.
EXACT = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def imports(day: Day) -> None:
    """NeMo imports, and what is missing is Apex and Transformer Engine alone. Nothing else runs where this fails."""
    code = (
        "import json, sys, torch; from launcher.train.nemo_aligner import standins; gaps = standins.missing(); "
        "standins.install(); import nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model, numpy, transformers; "
        "from launcher.train.device import choose_device; from launcher.train.ranks import Ranks; "
        "print(json.dumps({'gaps': gaps, 'device': str(choose_device('auto', 'auto', Ranks.from_environment())), "
        "'torch': torch.__version__, 'cuda': torch.version.cuda, 'numpy': numpy.__version__, "
        "'transformers': transformers.__version__, 'python': sys.version.split()[0]}))"
    )
    env = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
    left = day.end - time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=left)
    require(done.returncode == 0, done.stderr[-3000:])
    day.found |= json.loads(done.stdout.splitlines()[-1])
    if not day.rehearse:
        day.found["nvidia_smi"] = subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout[:1500]
        require(set(day.found["gaps"]) <= {"apex", "transformer_engine"}, f"missing: {day.found['gaps']}")


def tiny(day: Day) -> None:
    """Losses on the GPU equal the CPU's, in fp32 and bf16; before the first step the loss is ln 2."""
    nemo, pairs = day.tiny(), day.pairs()
    for precision, tolerance in (("32", 0.005), ("bf16", 0.05)):
        keys = {"trainer__precision": precision, "trainer__dpo__max_steps": 8, "trainer__dpo__val_check_interval": 8}
        start = day.trial(f"start{precision}", nemo, pairs, trainer__accelerator="cpu", **keys)
        day.run(start, CUDA_VISIBLE_DEVICES="")
        keys["model__peft__restore_from_path"] = json.loads((start / "result.json").read_text())["nemo"]
        here = day.run(day.trial(f"tiny{precision}", nemo, pairs, **keys))
        on_cpu = day.trial(f"cpu{precision}", nemo, pairs, trainer__accelerator="cpu", **keys)
        there = day.run(on_cpu, CUDA_VISIBLE_DEVICES="")
        losses = [{key: value for key, value in run.items() if key[0].endswith("/loss")} for run in (here, there)]
        day.found[precision] = {"furthest loss": furthest(*losses), "steps": len(losses[0])}
        baseline = metrics(start)[("val/loss", 0)]
        day.found[precision]["baseline less ln 2"] = baseline - 0.6931471805599453
        require(day.found[precision]["furthest loss"] < tolerance, f"{precision}: losses differ")
        require(abs(baseline - 0.6931471805599453) < 1e-6, f"{precision}: the loss before training is {baseline}")


def signals(day: Day) -> None:
    """Warned with USR2 and started anew, a trial ends as the uninterrupted one: bit for bit with exact kernels."""
    nemo, pairs = day.tiny(), day.pairs(512)
    for name, exact in (("exact", True), ("usual", False)):
        keys = {"deterministic": exact, "trainer__dpo__max_steps": 60, "trainer__dpo__val_check_interval": 20}
        keys |= {"model__peft__lora_tuning__adapter_dropout": 0.05}
        env = EXACT if exact else {}
        whole = day.run(day.trial(f"whole_{name}", nemo, pairs, **keys), **env)
        folder = day.trial(f"cut_{name}", nemo, pairs, **keys)
        process = day.start(folder, TRIAL_ATTEMPT="1.0", **env)
        while process.poll() is None and not _has_step(folder, 4) and time.monotonic() < day.end:
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR2)
        day.wait(folder, [process])
        stopped = not (folder / "result.json").exists()
        resumed = day.run(folder, TRIAL_ATTEMPT="1.1", **env)
        day.found[name] = {"stopped early": stopped, "furthest metric": furthest(whole, resumed)}
        require(stopped, f"{name}: the trial was over before the signal")
        require(not exact or day.found[name]["furthest metric"] == 0.0, "exact kernels, and yet not the same")


def _has_step(folder: Path, step: int) -> bool:
    file = folder / "metrics.jsonl"
    return file.exists() and ("train/loss", step) in metrics(folder)


def two_ranks(day: Day) -> None:
    """Two processes on the one GPU, as two nodes of one GPU each: one policy, with data and with tensor parallelism."""
    import torch

    nemo, pairs = day.tiny(), day.pairs()
    for name, parallel in (("data", 1), ("tensor", 2)):
        keys = {"trainer__num_nodes": 2, "trainer__devices": 1, "model__tensor_model_parallel_size": parallel}
        keys |= {"trainer__dpo__max_steps": 6, "trainer__dpo__val_check_interval": 6}
        folder = day.trial(f"ranks_{name}", nemo, pairs, **keys)
        env = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        env |= {"MASTER_PORT": str(29500 + parallel), "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
        processes = []
        for rank in range(2):
            # NCCL refuses two ranks on one GPU of one host; by its variable they are on two. Nodes have a /tmp each.
            own = {"RANK": str(rank), "NCCL_HOSTID": f"host{rank}", "TMPDIR": str(folder / f"tmp{rank}")}
            Path(own["TMPDIR"]).mkdir()
            processes.append(day.start(folder, ["--adapters", str(folder / f"{rank}.pt")], **env, **own))
        day.wait(folder, processes)
        weights = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
        same = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        day.found[name] = {"adapters equal": same, "val/loss": metrics(folder)[("val/loss", 6)]}
        require(same == (parallel == 1), f"{name}: adapters of the ranks are {'the same' if same else 'different'}")


def reference(day: Day) -> None:
    """The cached reference policy's log-probabilities give the steps that computed ones give."""
    nemo, pairs = day.tiny(), day.pairs()
    keys = {"trainer__dpo__max_steps": 6, "trainer__dpo__val_check_interval": 6, "deterministic": True}
    runs = {
        name: day.run(day.trial(f"reference_{name}", nemo, pairs, **keys, **changes), **EXACT)
        for name, changes in {
            "cached": {"compute__cache_reference": True},
            "computed": {"compute__cache_reference": False},
            "by fours": {"compute__cache_reference": False, "model__dpo__log_prob_forward_micro_batch_size": 4},
        }.items()
    }
    day.found["cached against computed"] = furthest(runs["cached"], runs["computed"])
    day.found["four sequences a forward pass against one"] = furthest(runs["by fours"], runs["computed"])
    require(day.found["cached against computed"] < 1e-3, "the cached reference gives other steps")


def memory(day: Day) -> None:
    """8B's shape: seconds to load, and the most memory of a step of one pair, by its length."""
    nemo = big_model.ensure(day.work / "big", day.rehearse, day.found)
    lengths = (64, 128) if day.rehearse else (256, 512, 1024, 2048)
    full = {"model__activations_checkpoint_granularity": "full", "model__activations_checkpoint_method": "uniform"}
    full |= {"model__activations_checkpoint_num_layers": 1}
    cases: Iterator[tuple[str, int, dict[str, Any]]] = iter(
        [(f"{length} tokens", length, {}) for length in lengths]
        + [(f"{lengths[-1]} tokens, recomputed", lengths[-1], full)]
        + [(f"{lengths[-2]} tokens, logits of prompts", lengths[-2], {"compute__skip_prompt_logits": False})]
    )
    for name, length, changes in cases:
        try:
            steps = day.measured(_big_trial(day, f"memory {name}", nemo, [length] * 2, 1, steps=2, **changes))
            day.found[name] = {"peak_gib": steps[-1]["peak_gib"], "seconds": steps[-1]["seconds"]}
        except Failed as error:  # out of memory is a result
            day.found[name] = str(error)[-400:]


def speed(day: Day) -> None:
    """8B's shape on pairs as long as HH-RLHF's: tokens a second by micro batch, and the kernels of one step."""
    nemo = big_model.ensure(day.work / "big", day.rehearse, day.found)
    lengths = [40, 64, 48, 96] if day.rehearse else [180, 320, 240, 520, 150, 410, 280, 700]
    for size in (1, 2, 4):
        day.found[f"micro batch {size}"] = _speed(day.measured(_big_trial(day, f"speed{size}", nemo, lengths, size)))
    emptied = day.measured(_big_trial(day, "emptied", nemo, lengths, 1), "--empty-cache")
    day.found["micro batch 1, memory given back each step"] = _speed(emptied)
    file = day.work / "profile.json"
    day.measured(_big_trial(day, "profiled", nemo, lengths, 1), "--profile", str(file))
    day.found["profile"] = json.loads(file.read_text())


def _speed(steps: list[dict[str, float]]) -> dict[str, float]:
    """Of the steps after the first two, which load kernels."""
    later = steps[2:]
    seconds = sum(step["seconds"] for step in later)
    tokens = sum(step["tokens"] for step in later)
    return {"seconds a step": seconds / len(later), "padded tokens a second": tokens / seconds}


def _big_trial(
    day: Day, name: str, nemo: Path, lengths: Sequence[int], micro: int, steps: int = 5, **changes: Any
) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(nemo / "tokenizer")
    batch = len(lengths)
    train = day.work / f"{name}.jsonl"
    write_long_pairs(train, tokenizer, list(lengths) * steps, 24)
    held_out = write_pairs(day.work / "one.jsonl", batch, start=1000)
    keys = {"trainer__dpo__max_steps": steps, "trainer__dpo__val_check_interval": steps}
    keys |= {"model__global_batch_size": batch, "model__micro_batch_size": micro}
    keys |= {"model__encoder_seq_length": max(256, *lengths), "model__peft__lora_tuning__adapter_dim": 32}
    pairs = {"train": train, "validation": held_out, "test": held_out}
    return day.trial(name.replace(" ", "_").replace(",", ""), nemo, pairs, **keys, **changes)


#: Name -> (what is run, seconds it may take).
PARTS: dict[str, tuple[Callable[[Day], None], float]] = {
    "imports": (imports, 120),
    "tiny": (tiny, 300),
    "signals": (signals, 240),
    "two_ranks": (two_ranks, 240),
    "reference": (reference, 180),
    "memory": (memory, 480),
    "speed": (speed, 480),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder for day_one.json")
    parser.add_argument("--work", type=Path, help="for models and trials, 20 GB (default: a temporary folder)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes and three times the time")
    args = parser.parse_args(argv)
    if not args.rehearse:
        import torch

        if not torch.cuda.is_available():
            print("no GPU here (torch.cuda.is_available() is False); --rehearse runs on the CPU", file=sys.stderr)
            return NO_GPU
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        return run_parts(Day(work, args.rehearse), args.parts, args.out / "day_one.json")


def run_parts(day: Day, names: Sequence[str], file: Path) -> int:
    results: dict[str, Any] = {}
    for name in names:
        part, seconds = PARTS[name]
        began = time.monotonic()
        day.end, day.found = began + seconds * (3 if day.rehearse else 1), {}
        error = ""
        try:
            part(day)
        except Exception as raised:
            error = str(raised) if isinstance(raised, Failed) else traceback.format_exc()
        results[name] = {"passed": not error, "seconds": round(time.monotonic() - began, 1), **day.found}
        if error:
            results[name]["error"] = error[-4000:]
        whole_file.write_json(file, results)
        print(f"{name}: {'passed' if not error else 'FAILED'}, {results[name]['seconds']} s", flush=True)
        if error:
            print(error[-2000:], file=sys.stderr, flush=True)
            if name == "imports":
                break
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
