"""The law of over-optimisation: R = d (alpha - beta log d), d = sqrt(KL), R the reward gained.

Gao et al. 2022 (arXiv 2210.10760) for reinforcement learning; Rafailov et al. 2024 (arXiv 2406.02900) find the same
form for DPO over betas and checkpoints, with the win rate in place of the reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FEWEST = 4
"""Points that a fit needs: two of them would be met by any two coefficients."""


@dataclass(frozen=True)
class Law:
    alpha: float
    beta: float

    def gained(self, divergence: float) -> float:
        """R at a KL in nats."""
        distance = math.sqrt(divergence)
        return distance * (self.alpha - self.beta * math.log(distance)) if distance else 0.0


def fit(points: Sequence[tuple[float, float]]) -> Law | None:
    """The law through (KL, R), by least squares; None with fewer than FEWEST points of a KL above 0."""
    rows = [(math.sqrt(x), -math.sqrt(x) * math.log(math.sqrt(x)), y) for x, y in points if x > 0]
    if len(rows) < FEWEST:
        return None
    aa, ab, bb = (math.fsum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    ay, by = (math.fsum(row[i] * row[2] for row in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    if determinant <= 1e-12 * aa * bb:
        return None
    return Law((bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant)
