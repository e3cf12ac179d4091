"""Attention in rows of pairs on a GPU: every way that works there, against the definition in fp32, and its time.

    python tests/gpu/compare_attention.py          # at Llama-3-8B's shape: 32 heads, 8 groups of 128

Exit codes: 0 they agree, 1 one differs by more than rounding, 3 there is no GPU here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from launcher.train.nemo_aligner.savings import attention
from launcher.train.nemo_aligner.savings.row import Lengths

NO_GPU = 3
HEADS, GROUPS, SIZE = 32, 8, 128
ROWS: dict[str, Lengths] = {
    "a pair as long as HH's": ((125, 45, 45),),
    "16 pairs and padding": (*(((125, 45, 45), (40, 7, 90)) * 8), (24, 0, 0)),
    "equal responses, none shared, one empty": ((200, 0, 0), (0, 130, 60), (70, 0, 9)),
    "a long pair": ((2600, 700, 700),),
}
#: Times the largest value: bf16 has 8 bits, and a sum of products is rounded to them once.
TOLERANCE = 0.02


def ways() -> Iterator[attention.Way]:
    yield attention.Way("mask", attention.masked)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        print("flash_attn is not installed here")
    else:
        yield attention.Way("flash-attn", attention.varlen(attention.flash_attn_kernel(flash_attn_varlen_func)))
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        print("this torch has no varlen_attn")
    else:
        yield attention.Way("torch's varlen_attn", attention.varlen(attention.torch_kernel(varlen_attn)))


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU here (torch.cuda.is_available() is False): nothing was compared", file=sys.stderr)
        return NO_GPU
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; chosen: {attention.choose('gpu', 'bf16').name}")
    agree = True
    for what, lengths in ROWS.items():
        print(f"\n{what}, {sum(map(sum, lengths))} positions")
        for way in ways():
            apart, milliseconds = compare(way.attend, lengths)
            good = max(apart) <= TOLERANCE
            agree &= good
            figures = ", ".join(f"{value:.4f}" for value in apart)
            print(f"  {way.name:22} {milliseconds:7.2f} ms   apart: {figures}{'' if good else '   TOO MUCH'}")
    print("all ways agree" if agree else "ways DIFFER")
    return 0 if agree else 1


def compare(attend: attention.Attention, lengths: Lengths) -> tuple[list[float], float]:
    """(largest differences of output and gradients, as shares of the largest value; milliseconds forth and back)."""
    torch.manual_seed(0)
    n = sum(map(sum, lengths))
    parts = [torch.randn(n, heads, SIZE, device="cuda", dtype=torch.bfloat16) for heads in (HEADS, GROUPS, GROUPS)]
    outer = torch.randn(n, HEADS, SIZE, device="cuda", dtype=torch.bfloat16)

    def run(way: attention.Attention, dtype: torch.dtype) -> list[torch.Tensor]:
        given = [part.to(dtype).requires_grad_() for part in parts]
        answer = way(*given, lengths, SIZE**-0.5)
        return [answer, *torch.autograd.grad(answer, given, outer.to(dtype))]

    expected, found = run(attention.plain, torch.float32), run(attend, torch.bfloat16)
    apart = [
        float((mine.float() - exact).abs().max() / exact.abs().max())
        for mine, exact in zip(found, expected, strict=True)
    ]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        run(attend, torch.bfloat16)
    end.record()
    torch.cuda.synchronize()
    return apart, begin.elapsed_time(end) / 20


if __name__ == "__main__":
    sys.exit(main())
