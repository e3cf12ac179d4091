"""Composing a thousand trials fast must give what composing each one whole gives."""

from __future__ import annotations

import functools
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

import launcher.main as main_module
from launcher.compose.trials import Base, _value, register_resolvers, resolve, trial_configs
from launcher.findings import Refused

KEYS: dict[str, st.SearchStrategy[Any]] = {
    "model.dpo.ref_policy_kl_penalty": st.floats(0.001, 1) | st.sampled_from([0, -1, "text", None]),
    "model.encoder_seq_length": st.integers(8, 4096),  # model.data.seq_length follows it
    "model.tensor_model_parallel_size": st.integers(1, 8),  # through a resolver into exp_manager
    "trainer.dpo.val_check_interval": st.integers(1, 5) | st.floats(0.1, 1),  # through ${.val_check_interval}
    "model.dpo.preference_average_log_probs": st.booleans(),
    "experiment.name": st.sampled_from(["a", "b c", "${model.seed}", "ü"]),
    "paths.data": st.sampled_from(["data", "/elsewhere"]),  # into the elements of lists
    "model.optim.betas": st.sampled_from([[0.9, 0.99], [0.8, 0.9]]),  # no scalar
}


@functools.lru_cache(maxsize=1)
def _composed() -> tuple[Any, Any]:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(main_module.config_root()), version_base="1.3"):
        config = compose("config", overrides=["cluster=local", "model=tiny"], return_hydra_config=True)
        return config, GlobalHydra.instance().config_loader()


def composed() -> Any:
    return _composed()[0].copy()


@st.composite
def sweeps(draw: st.DrawFn) -> list[dict[str, Any]]:
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=4, unique=True))
    return draw(st.lists(st.fixed_dictionaries({key: KEYS[key] for key in keys}), min_size=2, max_size=5))


@settings(max_examples=40, deadline=None)
@given(sweeps())
def test_fast_is_whole(trials: list[dict[str, Any]]) -> None:
    pristine = composed()
    base = Base(pristine.copy())
    for values in trials:
        whole = Base(pristine.copy())._whole(values, frozenset())
        assert base.resolved(values, frozenset()) == whole


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


def test_paths_are_absolute() -> None:
    config, findings = resolve(composed())
    assert findings == []
    assert config["pretrained_checkpoint"]["restore_from_path"].startswith("/")
    assert all(name.startswith("/") for name in config["model"]["data"]["data_prefix"]["train"])


NUMBERS = st.integers().map(str) | st.floats(allow_nan=False, allow_infinity=False).map(repr)


@settings(max_examples=100, deadline=None)
@given(NUMBERS | st.sampled_from(["-0", "007", "1_000", ".5", "1.", "+3", "1e3", "0.5 ", "1.0e5", "-0.0"]))
def test_numbers_are_what_hydra_reads(text: str) -> None:
    expected = OverridesParser.create().parse_override(f"++a.b={text}").value()
    found = _value(f"++a.b={text}")
    assert found is not None and found[0] == "a.b"
    assert (type(found[1]), repr(found[1])) == (type(expected), repr(expected))


def test_a_blend_keeps_its_weights() -> None:
    blend = composed()
    blend.model.data.data_prefix.train = ["0.3", "a.jsonl", "0.7", "b.jsonl"]
    config, _ = resolve(blend)
    train = config["model"]["data"]["data_prefix"]["train"]
    assert train[::2] == ["0.3", "0.7"]
    assert all(name.startswith("/") for name in train[1::2])
