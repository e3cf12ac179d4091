"""The fused SwiGLU: the same training with it, and without it in all ranks where it does not work in one.

The kernel's code is the real one, on the CPU; that Transformer Engine is there is pretended.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.conftest import REPOSITORY

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo


def with_transformer_engine() -> None:
    from launcher.train.nemo_aligner import fused_activation, trainer

    fused_activation.standins.missing = lambda: ("cuda", "apex")
    fit = trainer.PreferenceTrainer.fit

    def and_say(self):
        fit(self)
        found = {
            module.config.bias_activation_fusion for module in self.model.modules() if hasattr(module, "linear_fc1")
        }
        print(f"fused: {found} {self.model.cfg.bias_activation_fusion}", flush=True)

    trainer.PreferenceTrainer.fit = and_say


def broken_in_rank_1() -> None:
    with_transformer_engine()
    if os.environ["RANK"] == "1":
        from launcher.train.nemo_aligner import fused_activation

        def without_a_compiler(given, bias):
            raise RuntimeError("no working C++ compiler")

        fused_activation.fused_bias_swiglu.bias_swiglu_impl = without_a_compiler


@pytest.mark.parametrize("precision, bound", [("32", 1e-6), ("bf16", 2e-3)])  # bf16: tiny's own noise is 9e-4
def test_it_trains_the_same_policy(train, new_trial, precision, bound):
    keys = {"trainer__precision": precision}
    without, fused = train(new_trial("without", **keys)), train(new_trial("with", **keys), 1, with_transformer_engine)
    assert "fused: {True} True" in fused.said() and "fused" not in without.said()
    for key in ("train/loss", "val/loss"):
        assert fused.values(key) == pytest.approx(without.values(key), abs=bound), key


@pytest.mark.parametrize("key", [{"model__bias_activation_fusion": False}, {"deterministic": True}])
def test_the_trials_own_word_counts(train, new_trial, key):
    trial = train(new_trial(**key, trainer__dpo__max_steps=3), 1, with_transformer_engine)
    assert "fused: {False} False" in trial.said()


def test_where_it_fails_in_one_rank_all_leave_it_off(train, new_trial):
    trial = train(new_trial(trainer__devices=2, trainer__dpo__max_steps=3), 2, broken_in_rank_1)
    assert trial.exit_codes == [0, 0], trial.said()
    for rank, why in enumerate(["it does not work in another rank", "it fails here (no working C++ compiler)"]):
        said = (trial.folder / "log" / f"0_{rank}_log.out").read_text()
        assert f"bias_activation_fusion stays off: {why}" in said and "fused: {False} False" in said


def wrong_kernels() -> None:
    import torch

    from launcher.train.nemo_aligner import fused_activation

    fused, device = fused_activation.fused_bias_swiglu, torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        assert fused_activation.problem(device, dtype) == ""
    forward, backward = fused.swiglu, fused.swiglu_back
    fused.swiglu = lambda y: 1.05 * forward(y)
    assert fused_activation.problem(device, torch.bfloat16).startswith("its value is 5.")
    fused.swiglu, fused.swiglu_back = forward, lambda g, y: backward(g, y).flip(-1)
    assert fused_activation.problem(device, torch.bfloat16).startswith("its gradient is ")
    fused.swiglu_back = lambda g, y: backward(g, y) / 0
    assert fused_activation.problem(device, torch.bfloat16).startswith("its gradient is ")
    print("all found", flush=True)


def test_a_wrong_kernel_is_found(train, new_trial):
    trial = train(new_trial(trainer__dpo__max_steps=3), 1, wrong_kernels)
    assert "all found" in trial.said()


@pytest.mark.slow
def test_the_compiled_kernel_on_this_machine():
    code = (
        "import torch; from launcher.train.nemo_aligner import standins; standins.install(); "
        "from launcher.train.nemo_aligner import fused_activation; import torch._dynamo as dynamo; "
        "print([fused_activation.problem(torch.device('cpu'), dtype) for dtype in (torch.float32, torch.bfloat16)], "
        "bool(dynamo.utils.counters['frames']['ok']))"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TORCHDYNAMO_DISABLE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "['', ''] True", (done.stdout + done.stderr)[-2000:]
