"""What share of its height a signal has lost: one less its EWMA over the EWMA's highest value.

Input: a figure a step, of a signal that is never negative. Output: the relative drawdown, 0 at the
height and 1 at nothing; None while the first ``reference_steps`` figures are taken, whose mean the
EWMA begins with. A signal that never left zero has nothing to lose: 0. Half of its height is also
what defines a reward onset (:mod:`toolrl_box.onsets`), on evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Drawdown:
    """``smoothing`` is the weight of the newest figure; 1 smooths nothing."""

    reference_steps: int = 5
    smoothing: float = 0.2
    _start: list[float] = field(default_factory=list, init=False)
    _ewma: float = field(default=0.0, init=False)
    _height: float = field(default=0.0, init=False)

    name = "drawdown"

    def __post_init__(self) -> None:
        if self.reference_steps < 1:
            raise ConfigError(f"drawdown: reference_steps = {self.reference_steps} must be >= 1")
        if not 0 < self.smoothing <= 1:
            raise ConfigError(f"drawdown: smoothing = {self.smoothing} must be above 0, at most 1")

    def update(self, x: float) -> float | None:
        if len(self._start) < self.reference_steps:
            self._start.append(x)
            self._ewma = self._height = fmean(self._start)
            return None
        self._ewma += self.smoothing * (x - self._ewma)
        self._height = max(self._height, self._ewma)
        return 1 - self._ewma / self._height if self._height > 0 else 0.0

    def state(self) -> dict[str, Any]:
        return {"start": list(self._start), "ewma": self._ewma, "height": self._height}

    def restore(self, state: dict[str, Any]) -> None:
        self._start = list(state["start"])
        self._ewma, self._height = state["ewma"], state["height"]
