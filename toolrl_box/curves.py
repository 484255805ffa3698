"""A figure by step, and its trailing mean: what verdicts, change points and figures are made of.

Input: steps and values. Output: :class:`Curve`. Left out: what a curve means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at increasing steps, without gaps (steps that have no value are left out)."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, steps: Sequence[int], values: Sequence[float]) -> Curve:
        """Drops the steps whose value is NaN."""
        kept = [(int(s), float(v)) for s, v in zip(steps, values, strict=True) if not math.isnan(v)]
        return cls(tuple(s for s, _ in kept), tuple(v for _, v in kept))

    def trailing_mean(self, window: int) -> Curve:
        """Mean of the last ``window`` values, from the first full window on."""
        means = [
            sum(self.values[end - window : end]) / window
            for end in range(window, len(self.values) + 1)
        ]
        return Curve(self.steps[window - 1 :], tuple(means))

    def plus(self, other: Curve) -> Curve:
        """The sum at this curve's steps; where ``other`` has no value it counts as 0."""
        extra = dict(zip(other.steps, other.values, strict=True))
        sums = (v + extra.get(s, 0.0) for s, v in zip(self.steps, self.values, strict=True))
        return Curve(self.steps, tuple(sums))


NOTHING = Curve((), ())
