"""Pairs as a row, and attention in it by every way against its definition."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from launcher.train.nemo_aligner.savings import attention, row  # noqa: E402

HEADS, GROUPS, SIZE = 6, 2, 8
LENGTHS = [
    ((5, 3, 4),),
    ((5, 3, 4), (1, 2, 0), (7, 0, 3), (4, 0, 0)),
    ((0, 3, 2), (6, 1, 1)),
    ((150, 130, 3), (2, 2, 2), (0, 129, 140)),
]


def batch(*pairs: tuple[str, str, str], padded: int = 12) -> dict[str, Any]:
    """Of pairs of (prompt, chosen, rejected), a character a token, labelled as NeMo-Aligner labels them."""
    columns: dict[str, list[Any]] = {name: [] for name in ("chosen", "chosen_labels", "rejected", "rejected_labels")}
    for prompt, *sides in pairs:
        for side, response in zip(("chosen", "rejected"), sides, strict=True):
            tokens = [ord(letter) for letter in prompt + response]
            labels = [-100] * len(prompt) + tokens[len(prompt) :]
            columns[side].append(tokens[:-1] + [0] * (padded - len(tokens) + 1))
            columns[f"{side}_labels"].append(labels[1:] + [-100] * (padded - len(labels) + 1))
    return {name: torch.tensor(column) for name, column in columns.items()}


def read(made: row.Row) -> str:
    return "".join(chr(token) for token in made.tokens[0].tolist())


def test_the_prompt_stands_once_and_positions_of_the_rejected_go_on_from_it() -> None:
    made = row.of_batch(batch(("prompt", "abc", "xy"), ("no", "12", "34")))
    assert read(made) == "prompt" + "ab" + "x" + "no" + "1" + "3"
    assert made.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6, 0, 1, 2, 2]
    assert made.lengths.tolist() == [[6, 2, 1], [2, 1, 1]]


def test_the_last_position_of_the_prompt_predicts_both_first_tokens() -> None:
    pairs = batch(("prompt", "abc", "xy"), ("no", "12", "34"))
    made = row.of_batch(pairs)
    labels = torch.cat((pairs["chosen_labels"], pairs["rejected_labels"])).t().reshape(-1)[made.labels_at]
    predicted = [(read(made)[int(place)], chr(int(label))) for place, label in zip(made.places, labels, strict=True)]
    chosen = [("t", "a"), ("a", "b"), ("b", "c"), ("o", "1"), ("1", "2")]
    assert sorted(predicted) == sorted([*chosen, ("t", "x"), ("x", "y"), ("o", "3"), ("3", "4")])
    assert predicted.index(("o", "1")) + 1 == predicted.index(("o", "3"))  # position by position


def test_words_that_both_responses_begin_with_are_shared_too() -> None:
    pairs = batch(("prompt", "I am", "I do"))
    made = row.of_batch(pairs)
    assert read(made) == "promptI " + "a" + "d"
    assert made.places.tolist() == [5, 5, 6, 6, 7, 7, 8, 9]


def test_equal_responses_and_one_that_is_the_beginning_of_the_other() -> None:
    assert row.of_batch(batch(("ab", "cd", "cd"))).lengths.tolist() == [[3, 0, 0]]
    assert row.of_batch(batch(("ab", "cde", "cd"))).lengths.tolist() == [[3, 1, 0]]


def test_a_pair_without_labels_has_no_positions() -> None:
    pairs = batch(("ab", "cd", "ef"), ("gh", "ij", "kl"))
    for side in ("chosen", "rejected"):
        pairs[f"{side}_labels"][0] = -100
    assert read(row.of_batch(pairs)) == "gh" + "i" + "k"
    for side in ("chosen", "rejected"):
        pairs[f"{side}_labels"][1] = -100
    empty = row.of_batch(pairs)
    assert empty.lengths.sum() == len(empty.places) == len(empty.labels_at) == 1


@pytest.mark.parametrize(("multiple", "length"), [(1, 4), (4, 4), (16, 16)])
def test_padding_at_the_end_is_a_pair_of_its_own(multiple: int, length: int) -> None:
    made = row.of_batch(batch(("ab", "cd", "ef")), multiple)
    assert made.tokens.shape == (1, length) and len(made.positions) == length
    assert made.lengths.tolist() == [[2, 1, 1], [length - 4, 0, 0]][: 1 + (length > 4)]
    assert made.places.tolist() == [1, 1, 2, 3]


def given(lengths: row.Lengths, dtype: Any = torch.float32) -> list[Any]:
    torch.manual_seed(0)
    n = sum(map(sum, lengths))
    return [torch.randn(n, heads, SIZE, dtype=dtype, requires_grad=True) for heads in (HEADS, GROUPS, GROUPS)]


def test_a_response_sees_the_prompt_and_itself_alone() -> None:
    mask = attention.seen(((2, 2, 2), (1, 1, 0)), "cpu")
    words = ["1", "11", "111", "1111", "11001", "110011"]
    assert [mask[query].int().tolist() for query in range(6)] == [[int(x) for x in w.ljust(8, "0")] for w in words]
    assert mask[6:].int().tolist() == [[0] * 6 + [1, 0], [0] * 6 + [1, 1]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("attend", [attention.masked, attention.blocks], ids=lambda way: way.__name__)
def test_ways_of_a_cpu_are_the_definition(attend: attention.Attention, lengths: row.Lengths) -> None:
    _same_as_plain(attend, lengths)


def _same_as_plain(attend: attention.Attention, lengths: row.Lengths) -> None:
    outer = torch.randn(sum(map(sum, lengths)), HEADS, SIZE)
    found = []
    for way in (attention.plain, attend):
        parts = given(lengths)
        answer = way(*parts, lengths, SIZE**-0.5)
        found.append([answer, *torch.autograd.grad(answer, parts, outer)])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=2e-6)


def test_blocks_do_not_leave_the_precision_they_are_given() -> None:
    parts = given(LENGTHS[1], torch.bfloat16)
    answer = attention.blocks(*parts, LENGTHS[1], SIZE**-0.5)
    assert answer.dtype == torch.bfloat16
    exact = attention.plain(*(part.float() for part in parts), LENGTHS[1], SIZE**-0.5)
    assert float((answer.float() - exact).detach().abs().max()) < 0.02


@pytest.mark.parametrize("attend", [attention.masked, attention.blocks], ids=lambda way: way.__name__)
def test_nothing_leaks_over_a_boundary(attend: attention.Attention) -> None:
    """A change of one position shows where the mask lets it be seen, and nowhere else, not by a bit."""
    lengths = ((3, 2, 2), (2, 1, 2), (4, 0, 0))
    parts = [part.detach() for part in given(lengths)]
    before, mask = attend(*parts, lengths, 1.0), attention.seen(lengths, "cpu")
    for place in range(len(before)):
        others = [part.clone() for part in parts]
        for part in others:
            part[place] += 1.0
        changed = (attend(*others, lengths, 1.0) != before).any(-1).any(-1)
        assert torch.equal(changed, mask[:, place]), place
        for part in parts:
            part.requires_grad_(True)
        gradients = torch.autograd.grad(attend(*parts, lengths, 1.0)[place].sum(), parts[1:])
        for gradient in gradients:
            assert not gradient[~mask[place]].any(), place


def _varlen(
    query: Any, key: Any, value: Any, query_ends: Any, key_ends: Any, longest: tuple[int, int], scale: float
) -> Any:
    """Kernels' definition: each sequence of queries with its own keys, causal from the bottom right."""
    answers = []
    queries, keys = query_ends.tolist(), key_ends.tolist()
    for (begin, end), (first, last) in zip(pairwise(queries), pairwise(keys), strict=True):
        assert 0 < end - begin <= longest[0] and end - begin <= last - first <= longest[1]
        repeats = query.shape[1] // key.shape[1]
        q, k, v = (
            part.transpose(0, 1)
            for part in (
                query[begin:end],
                key[first:last].repeat_interleave(repeats, 1),
                value[first:last].repeat_interleave(repeats, 1),
            )
        )
        mask = torch.ones(end - begin, last - first, dtype=torch.bool).tril((last - first) - (end - begin))
        answers.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(0, 1))
    return torch.cat(answers)


def flash_attn_varlen_func(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Any = None,
) -> Any:  # fmt: skip
    """flash-attn 2.7's parameters."""
    assert causal and softmax_scale and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    return _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, (max_seqlen_q, max_seqlen_k), softmax_scale)


def torch_varlen_attn(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Any:  # fmt: skip
    """Those of torch's parameters that are used."""
    assert window_size == (-1, 0) and enable_gqa and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    return _varlen(query, key, value, cu_seq_q, cu_seq_k, (max_q, max_k), scale)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "kernel",
    [attention.flash_attn_kernel(flash_attn_varlen_func), attention.torch_kernel(torch_varlen_attn)],
    ids=["flash_attn", "torch"],
)
def test_kernels_of_a_gpu_are_told_the_right_sequences(kernel: Any, lengths: row.Lengths) -> None:
    _same_as_plain(attention.varlen(kernel), lengths)


def test_torch_takes_the_parameters_that_it_is_given() -> None:
    function = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    asked = inspect.signature(torch_varlen_attn).parameters
    assert asked.keys() <= inspect.signature(function).parameters.keys()
    flash = torch.ops.aten._flash_attention_forward.default._schema.arguments
    assert {"window_size_left", "window_size_right", "cum_seq_q", "cum_seq_k"} <= {argument.name for argument in flash}


def test_which_way_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention.choose("cpu", "bf16").attend is attention.blocks
    assert attention.choose("gpu", "32").attend is attention.masked
    assert "varlen_attn" in attention.choose("gpu", "bf16").name
    import sys
    import types

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    assert "flash_attn" in attention.choose("gpu", "bf16").name
