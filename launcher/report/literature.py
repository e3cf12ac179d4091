"""What others found at which beta, to hold a sweep's own figures against. From the papers and recipes named."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    """One source."""

    who: str
    beta: str
    beside: str


NOTE = (
    "A sweep over beta at one learning rate confounds the two. Losses of different betas cannot be compared; accuracy, "
    "KL and length can. A higher beta is not by law more diverse (Shi et al. 2410.11677)."
)
TABLE = (
    Found("DPO (Rafailov et al. 2305.18290), HH", "0.1", "learning rate 1e-6, 64 pairs a step"),
    Found(
        "NeMo-Aligner's documentation", "0.1 to 1, at times 5", "learning rate 9e-7 or 5e-7, 256 to 512 pairs a step"
    ),
    Found("alignment-handbook, betas 0.01 to 0.9", "Zephyr 0.01, OpenHermes 0.6", "the best depends on model and data"),
    Found("SimPO's DPO baselines (2405.14734)", "0.01 in six of six settings", "the learning rate matters more"),
    Found("SmolLM2-1.7B", "0.5", "learning rate 1e-6, 3 epochs"),
    Found("Llama 3 (2407.21783)", "0.1", "0.2 x NLL on the chosen, format tokens masked, learning rate 1e-5"),
    Found("Tulu 3 (2411.15124)", "5", "length-normalised, so not comparable; learning rate 5e-7"),
    Found("beta-DPO (2407.08639), HH", "0.1", "win rate against chosen 26 % (410M), 43 % (1.4B), 52 % (2.8B)"),
)
