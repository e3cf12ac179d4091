"""Makes a trial on GPUs repeat itself bit for bit, which `deterministic=true` asks for, at the cost of speed.

On a CPU a trial does so in any case. The variables and their values are those that NVIDIA documents for Megatron-core's
own --deterministic-mode (https://docs.nvidia.com/megatron-core, "Deterministic Training"). The promise holds for the
same number and kind of GPUs and nodes and the same packages. Light to import: torch is imported inside the function.
"""

from __future__ import annotations

import os

from launcher.findings import Finding, Refused

#: Variable -> values that are deterministic. The first is set where the variable is not.
VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),  # cuBLAS divides a multiplication in the same way each time
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),  # Transformer Engine's attention: a backward pass without atomics
    "NCCL_ALGO": ("Ring", "CollnetDirect", "CollnetChain", "^NVLS"),  # a sum in an order that the topology fixes
}


def enable() -> None:
    """Set the variables and torch's switches in this process. Call it before the first multiplication on a GPU.

    Raises Refused if a variable has a value that is not deterministic. torch raises RuntimeError later, in the
    operation itself, if one has no deterministic implementation.
    """
    import torch

    wrong = []
    for name, values in VARIABLES.items():
        value = os.environ.setdefault(name, values[0])
        if value not in values:
            why = "deterministic=true needs another value"
            wrong.append(Finding(name, value, why, f"unset the variable, or set it to {' or '.join(values)}"))
    if wrong:
        raise Refused(wrong)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
