"""Answers by a real vLLM, held against transformers'. VLLM_PYTHON names the Python that has it; without, nothing runs.

vLLM's attention on a CPU knows no head of tiny's 16 numbers: the model here is as tiny, with heads of 32.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import __main__ as command
from launcher.evaluate import answers
from launcher.sweep.folder import Sweep
from tests.unit.evaluate.evaluated import answered, evaluate, scores

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from launcher.evaluate import vllm_engine, vllm_process  # noqa: E402
from launcher.evaluate.engine import Transformers  # noqa: E402
from launcher.evaluate.generation import Sampling, Stop  # noqa: E402
from launcher.evaluate.models import AnsweringModel, choose_device  # noqa: E402
from tests.unit import export_sweep  # noqa: E402

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM: VLLM_PYTHON=/path/to/a/python/that/has/it"),
]
VLLM = ("--engine", "vllm", "--vllm-python", PYTHON)
LONG = ("--max-tokens", 24, "--samples", 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from data_prep import convert_checkpoint
    from data_prep.models import small_models

    folder = tmp_path_factory.mktemp("models")
    hf = folder / "hf" / "tiny"
    hf.mkdir(parents=True)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    small_models.write_random_llama(hf, **heads, head_dim=32)
    convert_checkpoint.convert(str(hf), folder / "tiny.nemo", verify=False)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"num_attention_heads": 2, "num_query_groups": 1, "kv_channels": 32}.items():
            patched.setitem(export_sweep.MODEL, name, value)
        yield folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of each vLLM that was started."""
    seen: list[Any] = []
    usual = vllm_engine.VllmProcess

    def noted(vllm: Any, arguments: Any, log: Path) -> Any:
        seen.append(dict(arguments))
        return usual(vllm, arguments, log)

    monkeypatch.setattr(vllm_engine, "VllmProcess", noted)
    return seen


def reference(sweep: Sweep) -> dict[str, answers.PromptAnswers]:
    return {it.prompt_id: it for it in answers.read(sweep.trials[0].folder / "evaluation" / "reference.jsonl")}


def kl(policy: Any, base: Any, prompt: list[int], answer: list[int]) -> float:
    """The KL of the next token, summed over an answer, by one pass without cache and torch's own formula."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        own = policy(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        with policy.disable_adapter():
            other = base(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(torch.nn.functional.kl_div(other, own, reduction="sum", log_target=True))


def test_a_sweep_is_answered_by_one_vllm_as_by_transformers(
    sweep: Sweep, models: Path, loads: list[Any], tmp_path: Path
) -> None:
    """Greedily token by token; a prompt that is longer than the model among them."""
    scaled = {place: (into, -0.01 * out) for place, (into, out) in export_sweep.matrices().items()}
    nemo = sweep.trials[1].folder / "results" / "checkpoints" / "megatron_gpt.nemo"
    export_sweep.write_nemo(nemo, export_sweep.states(scaled))
    (tmp_path / "mine.jsonl").write_text('{"prompt": "' + "many words " * 1100 + '"}\n')
    asked = ("--prompts", tmp_path / "mine.jsonl", *LONG)
    assert evaluate(sweep.folder, *VLLM, *asked) == 0
    assert len(loads) == 1 and loads[0]["max_lora_rank"] == 8, "two adapters and the reference by one model"
    assert loads[0]["max_model_len"] == 2048 and not list((sweep.folder / "evaluation").glob("vllm.*"))
    made = [answered(sweep, 0), answered(sweep, 1), reference(sweep)]
    assert "vllm" in scores(sweep)["made"]["engine"]
    assert evaluate(sweep.folder, "--engine", "transformers", *asked) == 0
    assert scores(sweep)["made"]["engine"] == "transformers"
    for own, theirs in zip(made, (answered(sweep, 0), answered(sweep, 1), reference(sweep)), strict=True):
        assert len(own) == 6
        for key, it in theirs.items():
            assert (own[key].greedy, own[key].greedy_ended) == (it.greedy, it.greedy_ended)
    assert len({tuple(it.greedy for it in policy.values()) for policy in made}) == 3, "each says something else"
    command.main(["export", str(sweep.folder), "1", "--out", str(tmp_path / "adapter")])
    base = AnsweringModel(models / "hf" / "tiny", choose_device())
    with base.adapted(tmp_path / "adapter"):
        for it in made[1].values():
            prompt = base.tokens(it.prompt)[24 - 2048 :]
            expected = [kl(base.current, base.current, prompt, list(tokens)) for tokens in it.tokens]
            assert it.kl_nats == pytest.approx(expected, abs=1e-4) and min(expected) > 0.1


def test_one_that_was_interrupted_goes_on_with_the_same_answers(
    sweep: Sweep, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other answers are then in other batches, beside other prompts."""
    assert evaluate(sweep.folder, 0, *VLLM, *LONG) == 0
    whole, folder = answered(sweep), sweep.trials[0].folder / "evaluation"
    lines = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "answers.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    (folder / "scores.json").unlink()
    monkeypatch.setattr(vllm_engine.VllmEngine, "rows", lambda self, device: 8)
    assert evaluate(sweep.folder, 0, *VLLM, *LONG) == 0
    assert len(loads) == 2
    assert {key: (it.greedy, it.tokens) for key, it in answered(sweep).items()} == {
        key: (it.greedy, it.tokens) for key, it in whole.items()
    }


def test_samples_and_ends(models: Path, tmp_path: Path) -> None:
    """First tokens follow the model's probabilities; tokens and texts end answers as they do with transformers; whole
    weights are asked without an adapter."""
    base = AnsweringModel(models / "hf" / "tiny", choose_device())
    begun = [("a", [5, 9, 31]), ("b", [7])]
    engine = vllm_engine.VllmEngine(vllm_process.found(PYTHON), 0.5, tmp_path, print)
    engine.expect(base, 64, 0)
    with contextlib.closing(engine):
        (row, _) = engine.answers(base, begun, Sampling(3000, 0.7, 1, 3), Stop((2,), ()), print)
        counts = torch.zeros(base.current.config.vocab_size)
        for one in row[1:]:
            counts[one.tokens[0]] += 1
        with torch.no_grad():
            expected = (base.current(torch.tensor([begun[0][1]])).logits[0, -1] / 0.7).softmax(-1)
        errors = (expected * (1 - expected) / 3000).sqrt()
        assert float(((counts / 3000 - expected) / errors).abs().max()) < 5

        how = Sampling(0, 1.0, 20, 1)
        whole = [rows[0].tokens for rows in Transformers().answers(base, begun, how, Stop((2,), ()), print)]
        text = base.tokenizer.decode(whole[0])
        for stop in (Stop((2, whole[0][5], whole[1][7]), ()), Stop((2,), (text[len(text) // 2 :][:4],))):
            made = engine.answers(base, begun, how, stop, print)
            assert made == Transformers().answers(base, begun, how, stop, print)
            assert made[0][0].ended and len(made[0][0].tokens) < 20
        last = Stop((whole[0][19],), ())
        assert engine.answers(base, begun, how, last, print) == Transformers().answers(base, begun, how, last, print)
        assert set(listening(engine)) <= {"0100007F"}, "on the loopback interface alone"
    assert engine.started == 1


def listening(engine: vllm_engine.VllmEngine) -> list[str]:
    """The addresses, in hexadecimal digits as the kernel writes them, that vLLM's process listens on."""
    assert engine._process is not None
    process = Path(f"/proc/{engine._process._process.pid}")
    own = {os.readlink(link) for link in (process / "fd").iterdir()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in (process / "net" / name).read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]
