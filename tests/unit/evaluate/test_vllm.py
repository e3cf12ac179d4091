"""Answers by vLLM in a process of its own, with a stand-in for vLLM: what it is asked, and what happens if it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import whole_file
from launcher.evaluate import answers
from launcher.findings import Refused
from launcher.report import recorded_scores
from launcher.sweep import evaluation, kept_code
from launcher.sweep.folder import Sweep
from tests.unit.evaluate.evaluated import answered, evaluate, scores
from tests.unit.evaluate.stand_in_vllm import StandIn

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from launcher.evaluate import engine, generation, vllm_engine, vllm_process  # noqa: E402
from launcher.evaluate.models import ModelDevice  # noqa: E402
from launcher.evaluate.options import Asked  # noqa: E402


@pytest.fixture
def vllm(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "vllm")


def by_vllm(sweep: Sweep, vllm: StandIn, *words: object) -> int:
    return evaluate(sweep.folder, *words, "--engine", "vllm", "--vllm-python", vllm.python)


def test_one_vllm_answers_for_all_policies_of_a_sweep(sweep: Sweep, vllm: StandIn) -> None:
    assert by_vllm(sweep, vllm) == 0
    (started,) = vllm.said("start")
    assert started["start"]["max_lora_rank"] == 8 and started["start"]["dtype"] == "float32"
    asked = vllm.said("adapter")
    numbers = [it["adapter"] for it in asked]
    assert [it["prompts"] for it in asked] == [15, 15, 15], "five prompts, greedily and two samples"
    assert numbers[1] is None and None not in (numbers[0], numbers[2]) and numbers[0] != numbers[2]
    greedy, first, second = asked[0]["sampling"][:3]
    assert greedy["temperature"] == 0 and "seed" not in greedy
    assert first["temperature"] == second["temperature"] == 1 and first["seed"] != second["seed"]
    assert all(one["max_tokens"] == 6 and one["stop_token_ids"] for it in asked for one in it["sampling"])
    assert asked[0]["sampling"] == asked[2]["sampling"], "trials that are compared draw from equal seeds"
    for answer in answered(sweep).values():
        assert [len(tokens) for tokens in answer.tokens] == [6, 6] and min(answer.kl_nats) > 0
    assert not list((sweep.folder / "evaluation").glob("vllm.*")), "there is no log of what went well"


def test_answers_of_two_engines_are_never_mixed(
    sweep: Sweep, vllm: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert by_vllm(sweep, vllm, 0) == 0
    own = answered(sweep)
    kept = whole_file.read_json(sweep.trials[0].folder / "evaluation" / "settings.json")
    assert isinstance(kept, dict) and kept["made_with"]["engine"].startswith("vllm 9.9.9, torch ")
    assert by_vllm(sweep, vllm, 0) == 0
    assert "evaluated already" in capsys.readouterr().out and len(vllm.said("start")) == 1
    assert evaluate(sweep.folder, 1) == 0
    made = [recorded_scores.scores(scores(sweep, number)) for number in (0, 1)]
    assert [it.made["engine"].split(",")[0] for it in made if it] == ["vllm 9.9.9", "transformers"]
    kept_references = [trial.folder / "evaluation" / "reference.jsonl" for trial in sweep.trials[:2]]
    by_one, by_other = ({it.greedy for it in answers.read(file)} for file in kept_references)
    assert len(by_one) == len(by_other) == 5 and not by_one & by_other
    assert evaluate(sweep.folder, 0) == 0
    assert "other settings than before" in capsys.readouterr().out
    assert not {it.greedy for it in own.values()} & {it.greedy for it in answered(sweep).values()}


def test_scores_from_before_there_were_engines_are_transformers() -> None:
    found = recorded_scores.scores({"prompt_ids": ["a"], "made": {"seed": 1}})
    assert found is not None and found.made["engine"] == "transformers"


def test_one_that_dies_in_the_middle_and_what_is_asked_next(
    sweep: Sweep, vllm: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert by_vllm(sweep, vllm, 0) == 0
    whole = {key: it.samples for key, it in answered(sweep).items()}
    monkeypatch.setattr(vllm_engine.VllmEngine, "rows", lambda self, device: 6)
    vllm.behave("die")
    assert by_vllm(sweep, vllm, 0, "--again") == 1
    told = capsys.readouterr().err
    assert "vLLM ended (killed by SIGKILL)" in told and "an illegal memory access" in told
    assert "killed by SIGKILL" in evaluation.read(sweep.trials[0].folder).text
    assert len(answered(sweep)) == 2, "the batch before is kept"
    assert len(list((sweep.folder / "evaluation").glob("vllm.*.log"))) == 1
    vllm.behave("")
    assert by_vllm(sweep, vllm, 0) == 0
    assert {key: it.samples for key, it in answered(sweep).items()} == whole


def test_a_trial_that_vllm_fails_on_holds_back_no_other(sweep: Sweep, vllm: StandIn) -> None:
    vllm.behave("memory")
    assert by_vllm(sweep, vllm) == 1
    assert len({it["process"] for it in vllm.said("start")}) == 2


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("memory", ["vLLM failed: ValueError: Free memory on device", "evaluation.answers.vllm_memory", "its log is"]),
        ("odd", ["vLLM said something else than answers", "its log is"]),
        ("abort", ["vLLM failed: RuntimeError: an answer ended by 'abort'"]),
    ],
)
def test_errors_name_what_vllm_said(
    sweep: Sweep, vllm: StandIn, capsys: pytest.CaptureFixture[str], how: str, words: list[str]
) -> None:
    vllm.behave(how)
    assert by_vllm(sweep, vllm, 0) == 1
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert answered(sweep) == {}
    (started,) = vllm.said("start")
    assert not Path(f"/proc/{started['process']}").exists()


def test_one_that_says_something_else_than_a_reply(
    sweep: Sweep, vllm: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.greet("hello")
    assert by_vllm(sweep, vllm, 0) == 1
    assert "vLLM said something else than a reply: hello" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("python", "why"), [(sys.executable, "it has no vllm"), ("/nowhere/python", "cannot be run"), ("true", "nothing")]
)
def test_without_vllm_the_remedy_is_named(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], python: str, why: str
) -> None:
    assert evaluate(sweep.folder, 0, "--engine", "vllm", "--vllm-python", python) == 1
    told = capsys.readouterr().err
    assert why in told and "evaluation.answers.vllm_python" in told and "--engine transformers" in told


def test_auto_takes_vllm_where_there_are_a_gpu_and_vllm(
    vllm: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # the folder vllm in it is no vLLM
    assert engine.choose(Asked(), ModelDevice("cuda", torch.bfloat16, 256)) is None
    gpu, cpu = ModelDevice("cuda", torch.bfloat16, 256), ModelDevice("cpu", torch.float32, 40)
    named = Asked(vllm_python=str(vllm.python))
    taken = engine.choose(named, gpu)
    assert taken is not None and taken.version.startswith("vllm 9.9.9")
    assert engine.choose(named, cpu) is None
    assert engine.choose(Asked(engine="transformers", vllm_python=str(vllm.python)), gpu) is None
    with pytest.raises(Refused, match="cannot be run"):  # what is named must not be passed over in silence
        engine.choose(Asked(vllm_python="/nowhere/python"), gpu)


def test_another_model_beside_has_a_vllm_of_its_own_one_after_the_other(
    sweep: Sweep, vllm: StandIn, models: Path
) -> None:
    assert by_vllm(sweep, vllm, 0, "--beside", models / "hf" / "tiny") == 0
    first, second = vllm.said("start")
    assert first["start"]["model"] != second["start"]["model"] == str(models / "hf" / "tiny")
    assert "enable_lora" not in second["start"]
    assert {it["process"] for it in vllm.said("adapter")} == {first["process"], second["process"]}
    beside = answers.read(sweep.folder / "evaluation" / "tiny" / "answers.jsonl")
    assert max(abs(value) for it in beside for value in it.kl_nats) < 1e-4


def test_a_prompt_that_is_too_long_loses_its_beginning(sweep: Sweep, vllm: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "' + "many words " * 3000 + '"}\n')
    assert by_vllm(sweep, vllm, 0, "--prompts", file) == 0
    (started,) = vllm.said("start")
    assert started["start"]["max_model_len"] == 2048, "the model's own longest"


def test_seeds_belong_to_the_prompt_and_the_sample() -> None:
    sampling = generation.Sampling(2, 1.0, 8, 5)
    assert generation.sample_seed(sampling, "a", 1) == 0x14FC2DE60ED5EF, "as it was when answers were kept"
    other = generation.Sampling(9, 0.5, 80, 6)
    seeds = {generation.sample_seed(how, name, n) for how in (sampling, other) for name in "ab" for n in (1, 2)}
    assert len(seeds) == 8 and max(seeds) < 2**56


def test_it_ends_when_the_evaluation_is_killed(sweep: Sweep, vllm: StandIn) -> None:
    """Even by kill -9, and while the model loads."""
    vllm.behave("hang")
    words = ["evaluate", str(sweep.folder), "0", "--engine", "vllm", "--vllm-python", str(vllm.python)]
    evaluation_of = subprocess.Popen([sys.executable, "-m", "launcher", *words], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not vllm.said("hangs") and time.monotonic() < deadline:
            time.sleep(0.1)
        (hanging,) = vllm.said("hangs")
        assert alive(hanging["process"])
    finally:
        evaluation_of.send_signal(signal.SIGKILL)
        evaluation_of.wait()
    deadline = time.monotonic() + 20
    while (left := alive(hanging["process"])) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        os.kill(hanging["process"], signal.SIGKILL)
    assert not left and not Path(hanging["folder"]).exists()


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_it_is_out_of_the_terminals_reach_and_ends_when_told_to(vllm: StandIn, tmp_path: Path) -> None:
    found = vllm_process.found(str(vllm.python))
    process = vllm_process.VllmProcess(found, {"model": "m"}, tmp_path / "log")
    (started,) = vllm.said("start")
    assert os.getsid(started["process"]) == started["process"], "Ctrl-C in the terminal does not reach it"
    process.close(keep_log=True)
    assert not alive(started["process"])
    assert "what vLLM prints is no reply" in (tmp_path / "log").read_text()


def test_the_worker_is_in_the_code_that_a_sweep_keeps(tmp_path: Path) -> None:
    """Trials import the launcher from an archive: what vLLM's Python runs is taken out of it."""
    kept_code.write(tmp_path, 0)
    archive = next(tmp_path.rglob(kept_code.ARCHIVE))
    look = "import pkgutil; print(pkgutil.get_data('launcher.evaluate', 'vllm_worker.py').decode())"
    told = subprocess.run(
        [sys.executable, "-c", look], env={"PYTHONPATH": str(archive)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert "vllm.LLM(" in told.stdout, told.stderr
