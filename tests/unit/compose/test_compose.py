"""Composing a thousand trials fast must give what composing each one whole gives."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.compose import trials as trials_module
from launcher.compose.config_files import config_root
from launcher.compose.resolvers import register_resolvers
from launcher.compose.trials import ComposedConfig, UnresolvedError, _value, checked, trial_configs
from launcher.findings import Refused

#: 1, 1.0 and True are equal in Python and mean different things: one batch, all of them, nothing that is allowed.
LIMITS = st.sampled_from([1, 1.0, True])
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "model.dpo.ref_policy_kl_penalty": st.floats(0.001, 1) | st.sampled_from([0, -1, "text", None]),
    "model.encoder_seq_length": st.integers(8, 4096),  # model.data.seq_length follows it
    "model.tensor_model_parallel_size": st.integers(1, 8),  # exp_manager follows it
    "trainer.dpo.val_check_interval": st.integers(1, 5) | st.floats(0.1, 1) | LIMITS,  # through ${.val_check_interval}
    "trainer.dpo.limit_val_batches": LIMITS,  # nothing follows it
    "model.dpo.preference_average_log_probs": st.booleans() | LIMITS,
    "experiment.name": st.sampled_from(["a", "b c", "${model.seed}", "ü"]),
    "paths.data": st.sampled_from(["data", "/elsewhere"]),  # into the elements of lists
    "model.optim.betas": st.sampled_from([[0.9, 0.99], [0.8, 0.9]]),  # no scalar
    "model.seed": st.integers(0, 3) | st.sampled_from(["${model.encoder_seq_length}", "${nowhere}"]),
    "exp_manager.wandb_logger_kwargs": st.sampled_from([{"project": "x"}, {"more": 1}, None]),
    "exp_manager.mlflow_logger_kwargs.tags.extra": st.sampled_from([1, "x"]),  # a key that is not there before
}


@functools.lru_cache(maxsize=1)
def _composed() -> tuple[Any, Any]:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_root()), version_base="1.3"):
        config = compose("config", overrides=["cluster=local", "model=tiny"], return_hydra_config=True)
        return config, GlobalHydra.instance().config_loader()


def composed() -> Any:
    return _composed()[0].copy()


@st.composite
def sweeps(draw: st.DrawFn) -> list[dict[str, Any]]:
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=4, unique=True))
    return draw(st.lists(st.fixed_dictionaries({key: KEYS[key] for key in keys}), min_size=2, max_size=5))


def whole(config: Any, values: dict[str, Any]) -> str:
    """What OmegaConf itself makes of the values, with the types."""
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    try:
        return repr(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        return f"{type(error).__name__} at {error.full_key}"


def fast(composed_config: ComposedConfig, values: dict[str, Any]) -> str:
    try:
        return repr(composed_config.with_values(values))
    except UnresolvedError as error:
        return f"{type(error.__cause__).__name__} at {error.key}"


@settings(max_examples=60, deadline=None)
@given(sweeps())
def test_fast_is_whole(trials: list[dict[str, Any]]) -> None:
    pristine = composed()
    OmegaConf.set_struct(pristine, False)
    pristine.pop("hydra")
    base = ComposedConfig(composed())
    for values in trials:
        assert fast(base, values) == whole(pristine.copy(), values)


def test_one_and_one_point_zero_are_different_trials() -> None:
    jobs = [["cluster=local", "model=tiny", f"++trainer.dpo.limit_val_batches={value}"] for value in ("1", "1.0")]
    trials = trial_configs(_composed()[1], composed(), jobs)
    assert [repr(trial.config.trainer.dpo.limit_val_batches) for trial in trials] == ["1", "1.0"]
    assert [repr(trial.config.at("trainer.dpo.limit_val_batches")) for trial in trials] == ["1", "1.0"]
    with pytest.raises(Refused, match=r"limit_val_batches=true: must be a finite number above 0"):
        trial_configs(_composed()[1], composed(), [*jobs, [*jobs[0][:2], "++trainer.dpo.limit_val_batches=true"]])


def test_a_swept_beta_needs_no_second_resolving() -> None:
    """Else a sweep of 1,000 betas takes OmegaConf 20 ms a trial."""
    config = ComposedConfig(composed())
    assert config._may_be_set_afterwards("model.dpo.ref_policy_kl_penalty", 0.2)
    assert not config._may_be_set_afterwards("model.micro_batch_size", 2)


def test_an_interpolation_among_the_values_is_resolved_with_the_other_values() -> None:
    config = ComposedConfig(composed())
    for seed in (7, 8):
        values = {"model.seed": seed, "experiment.name": "seed_${model.seed}", "model.micro_batch_size": 2}
        assert fast(config, values) == whole(_without_hydra(), values)


def test_trials_that_share_an_early_value_are_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = []
    monkeypatch.setattr(
        trials_module, "_resolve", lambda config: resolved.append(1) or OmegaConf.to_container(config, resolve=True)
    )
    config = ComposedConfig(composed())
    for beta in (0.1, 0.2, 0.3):
        made = config.with_values({"model.micro_batch_size": 2, "model.dpo.ref_policy_kl_penalty": beta})
        assert (made["model"]["micro_batch_size"], made["model"]["dpo"]["ref_policy_kl_penalty"]) == (2, beta)
    assert len(resolved) == 1


def _without_hydra() -> Any:
    config = composed()
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return config


def test_findings_of_all_trials_in_one() -> None:
    config = composed()
    loader = _composed()[1]
    jobs = [
        ["cluster=local", "model=tiny", f"++model.dpo.ref_policy_kl_penalty={beta}"] for beta in (0.1, -1, 0.2, "x")
    ]
    try:
        trial_configs(loader, config, jobs)
    except Refused as refused:
        assert [finding.value for finding in refused.findings] == ["-1", "'x'"]
    else:
        raise AssertionError("not refused")


def completed(config: Any) -> Any:
    return checked(ComposedConfig(config).with_values({}))


def test_paths_are_absolute() -> None:
    config = completed(composed())
    assert config.base_model.is_absolute()
    assert all(path.is_absolute() for path in config.data_files.values())
    assert config.at("model.data.data_prefix.train") == [str(config.data_files["train"])]


def test_what_follows_from_other_keys() -> None:
    words = composed()
    words.model.tensor_model_parallel_size, words.model.pipeline_model_parallel_size = 2, 3
    words.model.dpo.ref_policy_kl_penalty = 0.25
    config = completed(words)
    assert config.exp_manager.checkpoint_callback_params.model_parallel_size == 6
    assert config.exp_manager.wandb_logger_kwargs["name"] == "beta_0.25"
    assert config.exp_manager.mlflow_logger_kwargs["tags"] == {"beta": 0.25}
    words.exp_manager.wandb_logger_kwargs.name = "mine"
    assert completed(words).exp_manager.wandb_logger_kwargs["name"] == "mine"


NUMBERS = st.integers().map(str) | st.floats(allow_nan=False, allow_infinity=False).map(repr)


@settings(max_examples=100, deadline=None)
@given(NUMBERS | st.sampled_from(["-0", "007", "1_000", ".5", "1.", "+3", "1e3", "0.5 ", "1.0e5", "-0.0"]))
def test_numbers_are_what_hydra_reads(text: str) -> None:
    expected = OverridesParser.create().parse_override(f"++a.b={text}").value()
    found = _value(f"++a.b={text}")
    assert found is not None and found[0] == "a.b"
    assert (type(found[1]), repr(found[1])) == (type(expected), repr(expected))


def test_a_blend_is_refused_before_it_is_queued() -> None:
    """NeMo-Aligner's DPO asks for all rows as a negative number of samples, and a blend is made of that many."""
    blend = composed()
    blend.model.data.data_prefix.train = ["0.3", "a.jsonl", "0.7", "b.jsonl"]
    with pytest.raises(Refused, match="into one file") as refused:
        completed(blend)
    assert [finding.where for finding in refused.value.findings] == ["model.data.data_prefix.train"]
