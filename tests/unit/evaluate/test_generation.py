"""Answers as they are generated, and the figures that are computed of a policy's logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from launcher.evaluate import prompts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from launcher.evaluate import generation, held_out  # noqa: E402
from launcher.evaluate.generation import Sampling, Stop  # noqa: E402

BEGUN = [("a", [5, 9, 31]), ("b", [7]), ("c", [40, 41, 42, 43, 44, 45, 46])]


def test_greedy_is_what_transformers_generates(tiny):
    model, tokenizer = tiny
    made = generation.answers(model, tokenizer, BEGUN, Sampling(0, 1.0, 12, 1), Stop((2,), ()))
    for (_, tokens), (greedy,) in zip(BEGUN, made, strict=True):
        expected = model.generate(
            torch.tensor([tokens]), do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0
        )
        assert greedy.tokens == expected[0, len(tokens) :].tolist()


def test_answers_do_not_depend_on_what_is_beside_them(tiny):
    model, tokenizer = tiny
    how = (Sampling(3, 0.9, 10, 5), Stop((2,), ()))
    together = generation.answers(model, tokenizer, BEGUN, *how)
    alone = [generation.answers(model, tokenizer, [one], *how)[0] for one in BEGUN]
    assert [[a.tokens for a in row] for row in together] == [[a.tokens for a in row] for row in alone]
    assert len({tuple(a.tokens) for a in together[0]}) == 4, "samples differ"


def test_samples_follow_the_models_probabilities(tiny):
    """The first token of 4,000 samples against the softmax at the temperature: no token is off by 5 standard errors."""
    model, tokenizer = tiny
    (row,) = generation.answers(model, tokenizer, BEGUN[:1], Sampling(4000, 0.7, 1, 3), Stop((2,), ()))
    counts = torch.zeros(model.config.vocab_size)
    for one in row[1:]:
        counts[one.tokens[0]] += 1
    with torch.no_grad():
        expected = (model(torch.tensor([BEGUN[0][1]])).logits[0, -1] / 0.7).softmax(-1)
    errors = (expected * (1 - expected) / 4000).sqrt()
    assert float(((counts / 4000 - expected) / errors).abs().max()) < 5


ANSWERS = [[31, 7, 8], [12], [9, 9, 9, 4]]


def passed(model: Any, answer: list[int]) -> torch.Tensor:
    """The log-probabilities at each token of an answer to BEGUN[0], by one pass without a cache."""
    with torch.no_grad():
        logits = model(torch.tensor([[*BEGUN[0][1], *answer]])).logits[0]
    return logits[len(BEGUN[0][1]) - 1 : -1].log_softmax(-1)


def test_next_token_logits_are_those_of_a_pass_without_cache(tiny):
    model, _ = tiny
    made = generation.next_token_logits(model, BEGUN[0][1], ANSWERS).log_softmax(-1)
    for row, answer in zip(made, ANSWERS, strict=True):
        torch.testing.assert_close(row[: len(answer)], passed(model, answer), atol=1e-4, rtol=0)


def test_divergence(tiny):
    """Against torch's own KL; and as the mean of the log-ratio over all tokens that can be drawn."""
    model, _ = tiny
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight *= 1.5
    for answer in ANSWERS:
        own, reference = passed(model, answer), passed(other, answer)
        expected = torch.nn.functional.kl_div(reference, own, reduction="sum", log_target=True)
        found = generation.divergence(own + 1, reference - 2)  # logits: a constant changes nothing
        assert found == pytest.approx(float(expected), abs=1e-4) and found > 0.01
        by_token = float((own.exp() * (own - reference)).sum())
        assert found == pytest.approx(by_token, abs=1e-4)


def test_an_answer_ends_at_the_humans_next_turn(tiny):
    model, tokenizer = tiny
    (first,) = generation.answers(model, tokenizer, BEGUN[:1], Sampling(0, 1.0, 20, 1), Stop((2,), ()))
    text = tokenizer.decode(first[0].tokens)
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    (cut,) = generation.answers(model, tokenizer, BEGUN[:1], Sampling(0, 1.0, 20, 1), Stop((2,), (stop,)))
    assert cut[0].ended and stop not in cut[0].text and first[0].text.startswith(cut[0].text)
    tokens = cut[0].tokens
    assert stop in tokenizer.decode(tokens) and stop not in tokenizer.decode(tokens[:-1]), "nothing after its end"
    assert tokens == first[0].tokens[: len(tokens)] and len(tokens) % 8, "looked for every 8 tokens"


def test_held_out_columns(tiny):
    model, _ = tiny
    pair = held_out.HeldOutPair([5, 9], ([31, 7, 8], [12]))
    found = held_out.columns(model, [pair, pair], lambda done: None)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 9, 31, 7, 8]])).logits[0, 1:4].log_softmax(-1)
    assert found["log_probability_chosen"] == pytest.approx([float(logits[range(3), [31, 7, 8]].sum())] * 2, abs=1e-4)
    top = logits.topk(10).values
    assert found["mass_top10"][0] == pytest.approx(float(top.exp().sum(-1).mean()), abs=1e-5)
    assert found["entropy_top10"][0] == pytest.approx(float(-(top.exp() * top).sum(-1).mean()), abs=1e-5)
    assert found["tokens_rejected"] == [1, 1]


def test_prompts_are_written_in_the_datas_form(tmp_path):
    (tmp_path / "dataset.json").write_text('{"prompt_format": {"name": "llama3"}}')
    form = prompts.form_of(tmp_path / "test.jsonl", tmp_path)
    text = form.write([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    assert (
        text.startswith("<|begin_of_text|>") and "Be brief." in text and text.endswith("assistant<|end_header_id|>\n\n")
    )
    assert form.stop_tokens == ("<|eot_id|>",)
