"""Sweeps for tests on a real Slurm: the launcher's own scripts, with a few lines of Python in the place of training."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.check import cluster_limits
from launcher.status import states
from launcher.status.trial_state import Look
from launcher.submit import to_slurm
from launcher.sweep.folder import Sweep
from launcher.trial_config.validate import load
from tests import configs

ROOT = Path(__file__).resolve().parents[2]

# Called as Python would be: -u -m launcher.train.slurm_rank TRIAL. The trial's behave.json says what each rank does.
STAND_IN = """
import ctypes, faulthandler, glob, json, os, signal, sys, time
if "launcher.evaluate" in sys.argv:
    place = sys.argv.index("launcher.evaluate") + 1
    for number in sys.argv[place + 1 :]:
        trial = os.path.join(sys.argv[place], number)
        if not os.path.exists(os.path.join(trial, "result.json")):
            continue
        os.makedirs(os.path.join(trial, "evaluation"), exist_ok=True)
        with open(os.path.join(trial, "evaluation", "settings.json"), "w") as file:
            json.dump({"prompts": 5, "gpus": os.environ.get("SLURM_GPUS_PER_NODE", ""), "began": time.time()}, file)
        mode = json.load(open(os.path.join(trial, "behave.json"))).get("evaluation", "done")
        if mode == "hang once" and not os.path.exists(os.path.join(trial, "evaluation", "hung")):
            open(os.path.join(trial, "evaluation", "hung"), "w").close()
            time.sleep(900)
        if mode == "exit":
            sys.exit(1)
        with open(os.path.join(trial, "evaluation", "scores.json"), "w") as file:
            json.dump({}, file)
    sys.exit(0)
trial = sys.argv[-1]
rank = os.environ["SLURM_PROCID"]
attempt = os.environ["SLURM_JOB_ID"] + "." + os.environ.get("SLURM_RESTART_COUNT", "0")
behave = json.load(open(os.path.join(trial, "behave.json")))
if "starts" in behave:  # of each start, in order; the last one for all that follow
    before = len(glob.glob(os.path.join(trial, "log", "*_" + rank + "_log.out"))) - 1
    behave = behave["starts"][min(before, len(behave["starts"]) - 1)]
def write(name, data):
    path = os.path.join(trial, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w") as file:
        json.dump(data, file)
    os.rename(file.name, path)
def save(step):
    name = "step=%d.ckpt" % step
    write("results/checkpoints/" + name, step)
    size = os.path.getsize(os.path.join(trial, "results/checkpoints", name))
    files = {name: [size, ""]}
    note = dict(name=name, step=step, consumed_samples=step, time=time.time(), files=files)
    write("results/checkpoints/" + name + ".manifest.json", note)
mode = behave.get(rank, behave.get("all", "done"))
def say(**line):
    with open(os.path.join(trial, "metrics.jsonl"), "a") as file:
        file.write(json.dumps(dict(time=time.time(), **line)) + "\\n")
if rank == "0":
    say(phase="starting", detail="")
if rank == "0" and not behave.get("early"):
    say(phase="training", detail="")
    for step in range(1, 4):
        say(step=step, max_steps=8, **{"train/loss": 0.7 - step / 50, "train/acc": 0.5})
warned = []
if mode == "train":
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: warned.append(number))
print("rank", rank, "of", attempt, "on", os.environ.get("SLURMD_NODENAME"), "does", mode, flush=True)
print("gpus", os.environ.get("CUDA_VISIBLE_DEVICES", ""), "memory", os.environ.get("SLURM_MEM_PER_NODE"), flush=True)
if rank == "0" and "saves" in behave:
    save(behave["saves"])
if mode == "train":  # until a warning, then save and leave
    end = time.time() + behave.get("seconds", 900)
    while not warned and time.time() < end:
        time.sleep(0.05)
    if warned:
        time.sleep(behave.get("saving", 0.5))
        if rank == "0":
            step = behave.get("until", 10)
            save(step)
            reason = "signal " + signal.Signals(warned[0]).name
            write("log/" + attempt + "_stopped.json", dict(time=time.time(), reason=reason, step=step))
        sys.exit(0)
    behave["seconds"] = 0
if mode == "raise":
    time.sleep(1)
    raise ValueError("the loss is nan")
if mode == "exit":
    time.sleep(1)
    sys.exit(3)
if mode == "segfault":
    faulthandler.enable()
    time.sleep(1)
    ctypes.string_at(0)
if mode == "memory":
    held = bytearray(900_000_000)
    time.sleep(120)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    mode = "hang"
if mode == "hang":
    time.sleep(900)
if mode == "nothing":
    sys.exit(0)
time.sleep(behave.get("seconds", 1))
if rank == "0":
    write("result.json", {"seconds": 1.0, "steps": 8, "final": {"val/loss": 0.5}})
"""


def make(folder: Path, *behave: dict[str, Any], **cluster: Any) -> Sweep:
    """A sweep of a trial for each `behave`: what its ranks do ({"0": "hang", "1": "raise"}), and under "cluster" what
    it asks Slurm for besides `cluster`; "nodes" (1), "ranks" a node (2); "evaluation": what that does, behind the
    trials of the first one that has it ("done", "exit", "hang once").
    """
    stand_in = folder.parent / "stand-in"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text(STAND_IN)
    wanted = {
        "gpus_per_node": None,
        "time": 10,
        "max_restarts": 0,
        "max_timeouts": 0,
        "python": shlex.join([sys.executable, "-SE", str(stand_in)]),
        **cluster,
    }
    trials = []
    for number, each in enumerate(behave):
        changes = {
            "experiment.name": "states",
            "paths.cache": str(folder.parent / "cache"),
            "pretrained_checkpoint.restore_from_path": str(folder.parent / "none.nemo"),
            "trainer.num_nodes": each.get("nodes", 1),
            "trainer.devices": each.get("ranks", 2),
            "model.dpo.ref_policy_kl_penalty": (number + 1) / 10,
            "evaluation.after_training": "evaluation" in each,
            "evaluation.slurm.gpus": each.get("evaluation gpus", 0),
            **{f"cluster.{key}": value for key, value in {**wanted, **each.get("cluster", {})}.items()},
        }
        config = configs.plain(("cluster=slurm",), changes)
        trials.append(([f"++model.dpo.ref_policy_kl_penalty={(number + 1) / 10}"], config))
    sweep = Sweep.create(folder, command=["test"], experiment={"name": "states"}, trials=trials)
    for trial, each in zip(sweep.trials, behave, strict=True):
        (trial.folder / "behave.json").write_text(json.dumps(each))
    return sweep


def submit(sweep: Sweep) -> None:
    loaded = {trial.number: load(trial.folder) for trial in sweep.trials}
    to_slurm.submit(sweep, list(to_slurm.arrays(sweep, loaded, cluster_limits.Site())))


def until(sweep: Sweep, true: Callable[[Look], bool], seconds: float = 90) -> Look:
    """Look until what is seen is as wanted; else AssertionError with what was seen last."""
    end = time.monotonic() + seconds
    while True:
        look = states.look(Sweep.load(sweep.folder))
        if true(look):
            return look
        assert time.monotonic() < end, [
            (state.trial.number, state.state, state.slurm, state.slurm_reason, state.reason) for state in look.trials
        ]
        time.sleep(0.5)
