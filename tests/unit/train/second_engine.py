"""An engine beside NeMo-Aligner, as somebody would write one: DPO on a bag of words, in plain torch."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from launcher.check.steps import plan
from launcher.train.engine import JobConfig
from launcher.train.ranks import Device


def configure(config, trial_dir, ranks, progress):
    rows = len(read(config))
    steps = plan(rows, config.batch, max_epochs=config.epochs, val_check_interval=1.0, save_interval=1.0)
    return JobConfig(config, steps, Device("cpu", "32", "any CPU"))


def build(job, trial_dir, progress):
    config, steps = job.config, job.steps
    pairs = read(config)
    features = torch.stack([bag(pair["chosen_response"]) - bag(pair["rejected_response"]) for pair in pairs])
    weights = torch.zeros(features.shape[1], requires_grad=True)
    session = SimpleNamespace(step=0)

    def measured(rows):
        ratio = features[rows] @ weights
        loss = -torch.nn.functional.logsigmoid(config.beta * ratio).mean()
        mean, accuracy = ratio.mean() / 2, (ratio > 0).float().mean()
        return loss, {"loss": loss, "acc": accuracy, "rewards_chosen_mean": mean, "rewards_rejected_mean": -mean}

    def log(prefix, values):
        values = {f"{prefix}/{key}": float(value) for key, value in values.items()}
        progress.values(session.step, steps.max_steps, values | {"train/consumed_samples": session.step * config.batch})

    def run():
        log("val", measured(slice(None))[1])
        progress.phase("training")
        optimizer = torch.optim.SGD([weights], lr=config.lr)
        while session.step < steps.max_steps:
            first = session.step % steps.steps_per_epoch * config.batch
            loss, values = measured(slice(first, first + config.batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            session.step += 1
            log("train", values)
        log("val", measured(slice(None))[1])
        return ""

    session.run = run
    session.banner = lambda: {"beta": f"{config.beta:g}"}

    def evaluate(progress):
        fault = config.get("fault_in_evaluation")
        if fault and os.environ["RANK"] == "0":
            time.sleep(600)  # as in a collective that the other rank never enters
        if fault == "raise":
            raise RuntimeError("no room for the logits")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"skipped": "a bag of words has no exact KL"}

    session.evaluate = evaluate
    session.facts = lambda: {"beta": config.beta, "pairs": {"train": len(pairs), "validation": len(pairs)}}
    return session


def shut_down():
    return None


def read(config):
    return [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]


def bag(text):
    words = torch.zeros(32)
    for word in text.split():
        words[sum(map(ord, word)) % 32] += 1
    return words
