"""python -m launcher evaluate on made-up trials of the tiny model: what is generated, kept, shared, and refused."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from launcher import __main__ as command
from launcher import whole_file
from launcher.evaluate import answers
from launcher.report import gather
from launcher.sweep import checkpoints, evaluation
from launcher.sweep.folder import Sweep
from tests.integration.minimal_trial import write_pairs
from tests.unit.evaluate.evaluated import answered, evaluate, scores

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from launcher.evaluate import generation, run  # noqa: E402
from launcher.evaluate.models import AnsweringModel, choose_device  # noqa: E402
from tests.unit.export_sweep import matrices, states  # noqa: E402

# -- the command -------------------------------------------------------------------------------------------------------


def test_all_that_is_done(sweep, capsys, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # restored afterwards
    del os.environ["GOMP_SPINCOUNT"]
    assert evaluate(sweep.folder) == 0
    assert os.environ["GOMP_SPINCOUNT"], "its idle threads give up their core"
    assert [evaluation.read(trial.folder).text for trial in sweep.trials] == ["evaluated", "evaluated", ""]
    found = answered(sweep)
    assert [answer.source for answer in found.values()].count("heldout") == 3
    assert [answer.source for answer in found.values()].count("instructions") == 2
    for answer in found.values():
        assert answer.prompt.startswith("\n\nHuman: ") and answer.prompt.endswith("\n\nAssistant:")
        assert len(answer.samples) == len(answer.kl_nats) == 2
        assert all(1 <= len(tokens) <= 6 for tokens in answer.tokens)
        assert (answer.chosen is None) == (answer.source == "instructions") == (answer.instructions is not None)
    assert set(scores(sweep)["prompt_ids"]) == set(found)
    assert len(scores(sweep)["per_pair"]["log_ratio_chosen"]) == 4
    out = capsys.readouterr().out
    assert "trial 1 (beta 0.1)" in out and "KL on own answers" in out and "instructions followed" in out


def test_nothing_is_made_twice_unless_asked_for(sweep, monkeypatch, capsys):
    assert evaluate(sweep.folder, 0) == 0
    before = answered(sweep)
    monkeypatch.setattr(generation, "answers", lambda *args, **named: pytest.fail("generated again"))
    assert evaluate(sweep.folder, 0) == 0
    assert "evaluated already" in capsys.readouterr().out
    monkeypatch.undo()
    assert evaluate(sweep.folder, 0, "--again") == 0
    assert answered(sweep) == before, "the seed is fixed"
    assert evaluate(sweep.folder, 0, "--samples", 1, "--temperature", 0.5) == 0
    assert all(len(answer.samples) == 1 for answer in answered(sweep).values())


def test_the_reference_answers_once(sweep, monkeypatch):
    evaluator = run.Evaluator(sweep, {}, print)
    evaluator.trial(sweep.trials[0])
    evaluator.trial(sweep.trials[1])
    assert evaluator.reference_generated == 5
    again = run.Evaluator(sweep, {}, print, again=True)
    again.trial(sweep.trials[0])
    assert again.reference_generated == 0
    assert scores(sweep, 0)["per_prompt"]["reference_length"] == scores(sweep, 1)["per_prompt"]["reference_length"]


def test_an_interrupted_evaluation_goes_on(sweep, monkeypatch):
    evaluate(sweep.folder, 0)
    whole, folder = answered(sweep), sweep.trials[0].folder / "evaluation"
    lines = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "answers.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed while it wrote
    (folder / "scores.json").unlink()
    usual, asked = generation.answers, []

    def noted(model: Any, tokenizer: Any, begun: Any, *rest: Any, **named: Any) -> Any:
        asked.extend(begun)
        return usual(model, tokenizer, begun, *rest, **named)

    monkeypatch.setattr(generation, "answers", noted)
    assert evaluate(sweep.folder, 0) == 0
    assert len(asked) == 3
    assert {key: (a.greedy, a.samples) for key, a in answered(sweep).items()} == {
        key: (a.greedy, a.samples) for key, a in whole.items()
    }


def test_an_error_is_noted_and_the_others_are_evaluated(sweep, capsys):
    (sweep.trials[0].folder / "results" / "checkpoints" / "megatron_gpt.nemo").unlink()
    assert evaluate(sweep.folder) == 1
    assert "adapters" in evaluation.read(sweep.trials[0].folder).text
    assert evaluation.read(sweep.trials[1].folder).text == "evaluated"
    assert "trial 0 (beta 0.05) could not be evaluated" in capsys.readouterr().err


def test_a_trial_that_is_not_done(sweep, capsys):
    assert evaluate(sweep.folder, 2) == 1
    assert "not done" in capsys.readouterr().err


def test_beside(sweep, models, tmp_path, capsys):
    command.main(["export", str(sweep.folder), "0", "--out", str(tmp_path / "mine")])
    assert evaluate(sweep.folder, 0, "--beside", tmp_path / "mine", "--beside", models / "hf" / "tiny") == 0
    for name in ("mine", "tiny"):
        assert (sweep.folder / "evaluation" / name / "scores.json").exists()
    mine = {a.prompt_id: a for a in answers.read(sweep.folder / "evaluation" / "mine" / "answers.jsonl")}
    assert mine == answered(sweep)
    base = answers.read(sweep.folder / "evaluation" / "tiny" / "answers.jsonl")
    assert max(abs(value) for answer in base for value in answer.kl_nats) < 1e-4, "the reference against itself"
    assert evaluate(sweep.folder, 0, "--beside", tmp_path) == 1
    assert "neither" in capsys.readouterr().err


def test_policies_of_one_name_beside_a_sweep_are_refused(sweep, models, tmp_path, capsys):
    """Their results have one place: the second would take the first one's."""
    command.main(["export", str(sweep.folder), "0", "--out", str(tmp_path / "a" / "tiny")])
    both = ("--beside", models / "hf" / "tiny", "--beside", tmp_path / "a" / "tiny")
    assert evaluate(sweep.folder, 0, *both) == 2
    assert "give one of them another name" in capsys.readouterr().err
    assert evaluate(sweep.folder, 0, *both[:2]) == 0
    before = (sweep.folder / "evaluation" / "tiny" / "scores.json").read_bytes()
    assert evaluate(sweep.folder, 0, *both[2:]) == 1
    assert "has the name of" in capsys.readouterr().err
    assert (sweep.folder / "evaluation" / "tiny" / "scores.json").read_bytes() == before


def test_kept_checkpoints(sweep, capsys):
    """A checkpoint of another step is evaluated beside the end of training; one of the last step is that end."""
    folder = sweep.trials[0].folder / "results" / "checkpoints"
    scaled = {(place): (into, 3 * out) for place, (into, out) in matrices().items()}
    for step, weights in ((5, scaled), (10, matrices())):
        path = folder / f"megatron_gpt--step={step}.ckpt"
        torch.save({"state_dict": states(weights)[""], "loops": {}}, path)
        checkpoints.write_manifest(path, {path.name: checkpoints.describe(path)}, step, 4 * step)
    assert evaluate(sweep.folder, 0, "--checkpoints") == 0
    (kept,) = (sweep.trials[0].folder / "evaluation").glob("step-*")
    assert kept.name == "step-5" and "step 5" in capsys.readouterr().out
    early = whole_file.read_json(kept / "scores.json")["per_prompt"]["kl_own"]
    assert min(early) > 0 and early != scores(sweep)["per_prompt"]["kl_own"]
    assert [step for step, _ in gather.gather(sweep).trials[0].kept] == [5]


def test_a_checkpoint_that_is_gone_holds_back_nothing_else(sweep, monkeypatch, capsys):
    folder = sweep.trials[0].folder / "results" / "checkpoints"
    gone = checkpoints.Checkpoint(folder / "megatron_gpt--step=5.ckpt", 5, 20, 0.0)
    monkeypatch.setattr(checkpoints, "kept", lambda trial: [gone])
    assert evaluate(sweep.folder, "--checkpoints") == 1
    told = capsys.readouterr()
    assert "is not there any more" in told.err and "Traceback" not in told.err
    assert [evaluation.read(trial.folder).text for trial in sweep.trials[:2]] == ["evaluated"] * 2


def test_an_error_that_nobody_expected_holds_back_no_other_trial(sweep, monkeypatch, capsys):
    real = generation.answers

    def once(*args: Any) -> Any:
        monkeypatch.setattr(generation, "answers", real)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(generation, "answers", once)
    assert evaluate(sweep.folder) == 1
    assert "trial 0 (beta 0.05) could not be evaluated: out of memory" in capsys.readouterr().err
    assert evaluation.read(sweep.trials[1].folder).text == "evaluated"


def test_the_users_prompts(sweep, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": "Name a colour."}, {"messages": [{"role": "user", "content": "Sing."}], "chosen": "La la."}]
    rows += [{"prompt": "\n\nHuman: Already written.\n\nAssistant:"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(sweep.folder, 0, "--prompts", file) == 0
    found = [answer for answer in answered(sweep).values() if answer.source == "user"]
    assert {answer.prompt for answer in found} == {
        f"\n\nHuman: {text}\n\nAssistant:" for text in ("Name a colour.", "Sing.", "Already written.")
    }
    file.write_text('{"text": "no prompt"}\n')
    assert evaluate(sweep.folder, 0, "--prompts", file) == 1


def test_the_caches_of_others_are_not_used(sweep, tmp_path, monkeypatch):
    evaluate(sweep.folder, 0)
    from launcher.evaluate import reference

    monkeypatch.setattr(reference, "is_own", lambda path: False)
    evaluator = run.Evaluator(sweep, {}, print)
    with pytest.raises(AssertionError):
        monkeypatch.setattr(generation, "answers", lambda *args, **named: (_ for _ in ()).throw(AssertionError))
        evaluator.trial(sweep.trials[1])


# -- judges ------------------------------------------------------------------------------------------------------------


def with_judge(sweep: Sweep, **asked: Any) -> None:
    for trial in sweep.trials:
        found = trial.config()
        found["evaluation"]["judge"] = asked
        (trial.folder / "config.yaml").write_text(json.dumps(found))  # JSON is YAML


def test_a_probe_judges_by_pairs_apart_from_the_prompts(sweep, tmp_path):
    for split in ("validation", "test"):
        write_pairs(tmp_path / "data" / f"{split}.jsonl", 24)
    with_judge(sweep, kind="probe", pairs=40)
    assert evaluate(sweep.folder, 0) == 0
    found = scores(sweep)
    assert found["judges"]["reference"]["name"] == "probe" and not found["judges"]["reference"]["unusable"]
    assert found["judges"]["reference"]["facts"]["held_out_accuracy"] > 0.9, "Gladly. against No."
    assert 21 <= found["judges"]["reference"]["facts"]["pairs"] <= 40
    assert all(0 <= value <= 1 for value in found["per_prompt"]["win"])
    assert [value is None for value in found["per_prompt"]["win_chosen"]] == [
        it != "heldout" for it in found["sources"]
    ]


def test_a_probe_without_a_chosen_answer_to_judge(sweep, tmp_path):
    """No held-out prompt is asked: there is a win rate against the reference policy only."""
    for split in ("validation", "test"):
        write_pairs(tmp_path / "data" / f"{split}.jsonl", 24)
    with_judge(sweep, kind="probe", pairs=40)
    for trial in sweep.trials:
        found = trial.config()
        found["evaluation"]["answers"] |= {"held_out": 0, "instructions": 3}
        (trial.folder / "config.yaml").write_text(json.dumps(found))
    assert evaluate(sweep.folder, 0) == 0
    assert len(scores(sweep)["per_prompt"]["win"]) == 3 and "win_chosen" not in scores(sweep)["per_prompt"]


def test_a_response_of_the_data_is_compared_without_its_end(tiny, models):
    _, tokenizer = tiny
    base = AnsweringModel(models / "hf" / "tiny", choose_device())
    end = tokenizer.eos_token
    assert base.spoken(f" {tokenizer.decode([31, 7])}{end}") == tokenizer.decode([31, 7]).strip()


def test_a_probe_of_too_few_pairs_says_so_and_another_judge_judges_the_same_answers(
    sweep, monkeypatch, tmp_path, capsys
):
    with_judge(sweep, kind="probe", pairs=40)
    assert evaluate(sweep.folder, 0) == 0
    assert "at least 20 prompts" in scores(sweep)["judges"]["reference"]["unusable"]
    assert "win" not in scores(sweep)["per_prompt"]
    monkeypatch.setattr(generation, "answers", lambda *args, **named: pytest.fail("generated again"))
    with_judge(sweep, kind="endpoint", url="http://127.0.0.1:9", model="none")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert evaluate(sweep.folder, 0) == 0
    assert "has not answered" in scores(sweep)["judges"]["reference"]["unusable"]
    with_judge(sweep, kind="reward_model", folder=str(tmp_path / "no-such-model"))
    assert evaluate(sweep.folder, 0) == 0
    assert scores(sweep)["judges"]["reference"]["failed"] and scores(sweep)["per_prompt"]["length"]
    capsys.readouterr()
    assert evaluate(sweep.folder, 0) == 0
    said = capsys.readouterr().out
    assert "no win rate" in said and "evaluated already" not in said, "a judge that failed is asked again"
    with_judge(sweep, kind="reward_model")
    assert evaluate(sweep.folder, 0) == 1
    assert "evaluation.judge.folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--samples", "-1"), ("--temperature", "0"), ("--max-tokens", "x")])
def test_wrong_options(sweep, words, capsys):
    with pytest.raises(SystemExit):
        evaluate(sweep.folder, *words)
