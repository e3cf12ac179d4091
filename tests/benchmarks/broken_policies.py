"""Policies broken on purpose, by the product's own commands: which measures tell them from a sound one?

    python -m tests.benchmarks.broken_policies --out FOLDER      (about an hour on two cores; it goes on where it was)

All are SmolLM2-135M with LoRA by the recipe of configs/model/smollm2_135m.yaml, beta 0.1, on the project's sample. They
answer the same prompts and are compared with the sound one prompt by prompt, by all measures, as the report does it,
with Holm's correction for their number. Prints the table that docs/evaluation.md has.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from launcher import estimates
from launcher.report import gather, measures, recorded_scores
from launcher.report.measure import Measure
from launcher.report.pools import Pool, difference
from launcher.sweep.folder import Sweep
from tests.benchmarks.login_node import ROOT

SAMPLE = ROOT / "data_prep" / "sample" / "pairs.jsonl"
TIMES, TEMPERATURE = (4, 16), 0.3
ANSWERS = {"held_out": 24, "instructions": 24, "samples": 2, "max_tokens": 96}
RECIPE = [
    *("model=smollm2_135m", "cluster=local", "model.dpo.ref_policy_kl_penalty=0.1", "evaluation.after_training=false"),
    "model.data.append_eod=true",  # the end of an answer is taught: what is too long cannot be seen without one
    *("trainer.dpo.max_steps=16", "trainer.dpo.val_check_interval=8", "trainer.dpo.save_interval=8"),
    *(f"evaluation.answers.{key}={value}" for key, value in ANSWERS.items()),
    *("evaluation.kl_pairs=40", "evaluation.samples=0", "evaluation.judge.pairs=80", "evaluation.judge.samples=null"),
]
FAULTS = {
    "seed": "a sound policy, other training seed",
    **{f"times{times}": f"adapter x {times}" for times in TIMES},
    "length": "trained on pairs whose longer answer wins",
    "cold": f"samples at temperature {TEMPERATURE}",
    "flipped": "trained on flipped pairs",
}


def run(*words: str | Path) -> None:
    print("$ python", *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, stdout=sys.stderr)


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` if it is not there; it is there only when it is whole."""
    if not folder.exists():
        scratch = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(scratch, ignore_errors=True)
        make(scratch)
        scratch.rename(folder)
    return folder


def longer_wins(folder: Path) -> Path:
    """Pairs whose chosen answer is the sample's chosen and rejected one joined, the rejected one the first alone."""
    folder.mkdir(exist_ok=True)
    rows = []
    for line in SAMPLE.read_text().splitlines():
        pair = json.loads(line)
        more = pair["rejected"].rpartition("\n\nAssistant:")[2]
        rows.append({"chosen": pair["chosen"] + more, "rejected": pair["chosen"]})
    (folder / "longer.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "longer.jsonl"


def trained(folder: Path, name: str, source: Path, *words: str) -> Path:
    """The sweep of that name, trained on `source`, of which 80 pairs are for validation and 80 for the test."""
    data = once(
        folder / f"data_{name}",
        lambda out: run(
            "data_prep/prepare_data.py", source, "--out", out / "sample", "--validation", "80", "--test", "80", *words
        ),
    )
    seeds = "1,2" if name == "sound" else "1"
    paths = [f"paths.data={data}", f"paths.cache={folder / 'cache'}", f"experiment.name={name}"]
    runs = once(
        folder / f"runs_{name}",
        lambda out: run("launcher/main.py", "-m", *RECIPE, *paths, f"paths.runs={out}", f"model.seed={seeds}"),
    )
    (sweep,) = (runs / name).iterdir()
    return sweep


def exported(sweep: Path, out: Path, *words: str) -> None:
    run("-m", "launcher", "export", sweep, "0", "--out", out, "--base", "HuggingFaceTB/SmolLM2-135M-Instruct", *words)


def scaled(sweep: Path, out: Path, times: int) -> None:
    exported(sweep, out)
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": times * config["lora_alpha"]}))


def cold(sweep: Path, out: Path) -> None:
    """A whole model whose logits are divided by the temperature: its samples at 1 are the sound one's at 0.3, its
    greedy answers are the same, and the reference's samples stay at 1."""
    from safetensors.torch import load_file, save_file

    exported(sweep, out, "--merge")
    (file,) = (path for path in out.glob("*.safetensors") if "model.norm.weight" in load_file(path))
    weights = load_file(file)
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] / TEMPERATURE}, file, {"format": "pt"})


def evaluated(folder: Path) -> tuple[Sweep, dict[str, dict[str, object]]]:
    """The sweep of the sound policies, and each policy's scores by its name."""
    sound = trained(folder, "sound", SAMPLE)
    flipped = trained(folder, "flipped", SAMPLE, "--map", "chosen=rejected,rejected=chosen")
    length = trained(folder, "length", longer_wins(folder))
    policies: dict[str, Callable[[Path], None]] = {
        **{f"times{times}": functools.partial(scaled, sound, times=times) for times in TIMES},
        "cold": lambda out: cold(sound, out),
        "length": lambda out: exported(length, out),
        "flipped": lambda out: exported(flipped, out),
    }
    beside = [once(folder / name, make) for name, make in policies.items()]
    run("-m", "launcher", "evaluate", sound, *(word for path in beside for word in ("--beside", path)))
    places = {"sound": sound / "0", "seed": sound / "1"}
    files = {name: place / "evaluation" for name, place in places.items()}
    files |= {name: sound / "evaluation" / name for name in policies}
    return Sweep.load(sound), {name: json.loads((path / "scores.json").read_text()) for name, path in files.items()}


def compared(sweep: Sweep, scores: dict[str, dict[str, object]]) -> dict[tuple[str, str], tuple[str, bool]]:
    """By measure and policy: the difference from the sound policy in words, and whether it is significant."""
    trial = gather.gather(sweep).trials[0]
    pools = {
        name: Pool((dataclasses.replace(trial, scores=recorded_scores.scores(found)),))
        for name, found in scores.items()
    }
    cells = {}
    for name in FAULTS:
        both = [it for it in answer_measures() if all(it.key in pools[of].estimates for of in (name, "sound"))]
        apart = [difference(measure, pools[name], pools["sound"]) for measure in both]
        adjusted = estimates.holm([min(1.0, 2 * min(it.chance(1), it.chance(-1))) for it in apart])
        for measure, it, p in zip(both, apart, adjusted, strict=True):
            cells[measure.key, name] = (estimates.shown(it.value, it.error, "+.2f"), p < estimates.LEVEL)
    return cells


def answer_measures() -> list[Measure]:
    return [measure for measure in measures.REGISTRY.values() if measure.table != "evaluation"]


def table(cells: dict[tuple[str, str], tuple[str, bool]]) -> str:
    """In Markdown; what is significant is bold."""
    lines = [f"| measure | {' | '.join(FAULTS.values())} |", f"| --- |{' --- |' * len(FAULTS)}"]
    for measure in answer_measures():
        found = [cells.get((measure.key, name), ("", False)) for name in FAULTS]
        if any(words for words, _ in found):
            lines.append(f"| `{measure.key}` | {' | '.join(f'**{it}**' if sure else it for it, sure in found)} |")
    caught = [sum(sure for (_, policy), (_, sure) in cells.items() if policy == name) for name in FAULTS]
    return "\n".join([*lines, f"| measures that differ | {' | '.join(map(str, caught))} |"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.broken_policies")
    parser.add_argument("--out", type=Path, required=True, help="folder for data, sweeps and adapters (2 GB)")
    folder = parser.parse_args().out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    sweep, scores = evaluated(folder)
    print(table(compared(sweep, scores)))
    print(f"\njudge: {scores['sound']['judges']}")


if __name__ == "__main__":
    main()
