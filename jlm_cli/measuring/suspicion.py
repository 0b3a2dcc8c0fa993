"""Which judgments to look at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jlm_cli.intervals import Codes
from jlm_cli.measuring.columns import NONE, Columns, confidence

LOW_CONFIDENCE = 0.5
POINTS = {
    "failed": 4.0,
    "against gold": 2.0,
    "inconsistent": 2.0,
    "judges differ": 1.0,
    "flagged": 1.0,
    "low confidence": 0.5,
}


@dataclass(frozen=True)
class Suspicion:
    """What is odd about each of N judgments. `reasons` are masks [N]; `points` [N] add up what
    each reason counts, and the doubt that the judge itself has (1 − p of the verdict)."""

    reasons: dict[str, NDArray[Any]]
    points: NDArray[np.float64]

    def order(self) -> Codes:
        """The rows, those with the most points first."""
        return np.argsort(-self.points, kind="stable")

    def of(self, row: int) -> list[str]:
        return [name for name, mask in self.reasons.items() if mask[row]]


def suspicion_of(columns: Columns, differ: Codes | None = None) -> Suspicion:
    """`differ` [N] tells where another judge said something else."""
    judged = columns.verdict != NONE
    sure = confidence(columns.final, columns.final_p)
    doubt = np.where(np.isfinite(sure), 1 - sure, 0.0)
    swapped = judged & (columns.swapped != NONE)
    reasons = {
        "failed": ~judged,
        "against gold": judged & (columns.gold < NONE) & (columns.verdict != columns.gold),
        "inconsistent": swapped & (columns.verdict != columns.swapped),
        "judges differ": np.zeros(len(columns), bool) if differ is None else differ,
        "flagged": columns.flags > 0,
        "low confidence": doubt > 1 - LOW_CONFIDENCE,
    }
    points = doubt + sum(POINTS[name] * mask for name, mask in reasons.items())
    return Suspicion(reasons, points)
