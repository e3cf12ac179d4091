"""Greedy answers of exported adapters, by transformers and peft, equal NeMo's own token by token, in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.sweep.folder import Sweep
from tests.integration.minimal_trial import write_trial

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

LENGTH = 24
BETAS = (0.05, 0.1, 0.5)


def keep_greedy_answers() -> None:
    """At the end of the training, NeMo's own greedy answers to the held-out prompts: policy and reference."""
    from launcher.train.nemo_aligner import evaluate

    usual = evaluate.evaluate

    def and_keep(model: Any, config: Any, pairs: Any, progress: Any) -> Any:
        from launcher.train.nemo_aligner import divergence, samples

        model.prepare_for_validation_step()
        asked = [prompt for prompt, _ in samples.prompts(pairs, 6)]
        kept = {"prompts": asked, "policy": samples.greedy(model, asked, LENGTH, lambda made: None)}
        with divergence.reference(model):
            kept["reference"] = samples.greedy(model, asked, LENGTH, lambda made: None)
        model.finish_validation_step()
        Path(config.exp_manager.explicit_log_dir, "greedy.json").write_text(json.dumps(kept))
        return usual(model, config, pairs, progress)

    evaluate.evaluate = and_keep


def trained(train: Any, folder: Path, model: str, nemo: Path, pairs: dict[str, Path], **changes: Any) -> Sweep:
    """A sweep of three trained trials, one a beta, far enough from the reference to answer otherwise."""
    from omegaconf import OmegaConf

    trials = []
    for beta in BETAS:
        settings = {"trainer.dpo.max_steps": 6, "trainer.dpo.val_check_interval": 6, "trainer.dpo.save_interval": 6}
        settings |= {"evaluation": {"kl_pairs": 0, "samples": 0, "sample_tokens": 0, "after_training": False}}
        settings |= {"model.dpo.ref_policy_kl_penalty": beta, **changes}
        config = OmegaConf.load(write_trial(folder / f"config{beta}", model, nemo, pairs, settings) / "config.yaml")
        trials.append(([f"model.dpo.ref_policy_kl_penalty={beta}"], OmegaConf.to_container(config)))
    made = Sweep.create(folder / "sweep", command=["main.py"], experiment={"name": "t"}, trials=trials)  # type: ignore[arg-type]
    for trial in made.trials:
        ran = train(trial.folder, change=keep_greedy_answers)
        assert ran.exit_codes == [0], ran.said()
    return made


def check(sweep: Sweep, base: Path) -> None:
    from launcher.evaluate import generation, models
    from launcher.evaluate.generation import Sampling, Stop

    model = models.AnsweringModel(base, models.choose_device())
    differ = 0
    for trial in sweep.trials:
        kept = json.loads((trial.folder / "results" / "greedy.json").read_text())
        begun = [(str(number), tokens) for number, tokens in enumerate(kept["prompts"])]
        stop = Stop((model.tokenizer.eos_token_id,), ())
        how = (Sampling(2, 1.0, LENGTH, 1), stop)  # samples beside the greedy answers must not change these
        with models.exported(sweep, trial, base) as adapter, model.adapted(adapter):
            policy = generation.answers(model.current, model.tokenizer, begun, *how)
            with model.reference() as without:
                reference = generation.answers(without, model.tokenizer, begun, *how)
        for name, made in (("policy", policy), ("reference", reference)):
            own = [(row[0].tokens[: len(row[0].tokens) - row[0].ended], row[0].ended) for row in made]
            assert own == [(tokens, ended) for tokens, ended in kept[name]], (trial.name, name)
        differ += kept["policy"] != kept["reference"]
    assert differ, "no policy answered otherwise than the reference: the comparison means little"


def test_tiny(train, tiny_hf, tiny_nemo, pairs, tmp_path):
    check(trained(train, tmp_path, "tiny", tiny_nemo, pairs, **{"model.optim.lr": 2e-2}), tiny_hf)


@pytest.mark.slow
def test_smollm2(train, pairs, tmp_path):
    from data_prep import convert_checkpoint
    from data_prep.models import nemo_to_hf

    nemo = convert_checkpoint.convert("smollm2_135m", tmp_path / "smollm2_135m.nemo", verify=False)
    batch = {"model.micro_batch_size": 1, "model.global_batch_size": 4, "model.optim.lr": 1e-3}
    sweep = trained(train, tmp_path, "smollm2_135m", nemo, pairs, **batch)
    check(sweep, nemo_to_hf.convert(nemo, tmp_path / "base"))
