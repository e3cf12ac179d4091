"""Secrets are hidden wherever overrides, commands and configs are shown; everything else stays as it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from launcher import redact
from launcher.train.metrics_file import MetricsFile, TrialLogger

SECRET = "hf_SECRET1234567890abcdef"


@pytest.mark.parametrize(
    "word",
    [
        f"+cluster.environment.HF_TOKEN={SECRET}",
        f"++cluster.environment.ANYTHING={SECRET}",
        f"cluster.environment={{HF_TOKEN: {SECRET}, OTHER: {SECRET}}}",
        f"exp_manager.wandb_logger_kwargs.api_key={SECRET}",
        f"+exp_manager.wandb_logger_kwargs={{project: dpo, api_key: {SECRET}}}",
        f"cluster.setup=['export WANDB_API_KEY={SECRET}', 'module load x']",
        f"cluster.setup=['export WANDB_API_KEY=\"{SECRET}\"']",
        f"cluster.setup=['login {SECRET}']",
        f"evaluation.judge.password={SECRET}",
        f"--token={SECRET}",
    ],
)
def test_a_secret_is_hidden(word):
    assert SECRET not in redact.override(word)
    assert redact.HIDDEN in redact.override(word)
    assert redact.override(word).partition("=")[0] == word.partition("=")[0]


@pytest.mark.parametrize(
    "word",
    [
        "model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5",
        "cluster.tokens_per_second=4000",
        "evaluation.sample_tokens=32",
        "model.tokenizer.type=nemo:llama",
        "data.keyword=x",
        "cluster.setup=['module load cuda']",
        "experiment.name=monkey",
        "-m",
    ],
)
def test_everything_else_stays(word):
    assert redact.override(word) == word


def test_a_config_keeps_its_keys():
    config = {
        "cluster": {"environment": {"HF_HOME": "/data", "HF_TOKEN": SECRET}, "setup": [f"export A_TOKEN={SECRET}"]},
        "exp_manager": {"wandb_logger_kwargs": {"api_key": SECRET, "project": "dpo", "password": None}},
        "model": {"seed": 1, "tokenizer": {"type": "x"}},
    }
    shown = redact.config(config)
    assert SECRET not in str(shown)
    assert shown["cluster"]["environment"] == {"HF_HOME": "***", "HF_TOKEN": "***"}
    assert shown["exp_manager"]["wandb_logger_kwargs"] == {"api_key": "***", "project": "dpo", "password": None}
    assert shown["model"] == config["model"]
    assert SECRET in str(config)  # a copy was made


def test_what_tells_trials_apart_holds_no_secret(tmp_path):
    """`status`, `watch` and the live view show these labels."""
    from launcher.sweep.trial import Trial, labels

    trials = [
        Trial(number, (f"+cluster.environment.HF_TOKEN={SECRET}{number}", f"model.seed={number}"), None, tmp_path)
        for number in (0, 1)
    ]
    assert labels(trials) == {it: f"cluster.environment.HF_TOKEN=*** model.seed={it}" for it in (0, 1)}


def test_loggers_of_experiments_get_no_secrets() -> None:
    """TensorBoard's hparams, and from there W&B and MLflow, are read by others."""
    logged: list[dict[str, Any]] = []
    logger = SimpleNamespace(log_hyperparams=logged.append)
    config = {"cluster": {"environment": {"HF_TOKEN": "hf_x", "SITE": "y"}, "time": 5}, "model": {"seed": 7}}
    TrialLogger(MetricsFile(None), [logger, logger], 1, 1).log_hyperparams(config)
    assert (
        logged[0]
        == logged[1]
        == {
            "cluster": {"environment": {"HF_TOKEN": redact.HIDDEN, "SITE": redact.HIDDEN}, "time": 5},
            "model": {"seed": 7},
        }
    )
