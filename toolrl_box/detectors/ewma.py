"""EWMA control chart: the smoothed signal in standard deviations of its own noise.

Input: a figure a step. Output: the z-score of the EWMA against mean and sample deviation of a
reference window, None while it is taken. The deviation of an EWMA after t steps is
sd * sqrt(s / (2 - s) * (1 - (1 - s)^2t)) (Roberts 1959; exact, not the limit of large t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Ewma:
    """``floor`` is the least deviation that is believed, in the signal's units: a handful of
    reference steps may agree by chance."""

    reference_steps: int = 5
    smoothing: float = 0.4
    floor: float = 0.01
    _start: list[float] = field(default_factory=list, init=False)
    _ewma: float = field(default=0.0, init=False)
    _seen: int = field(default=0, init=False)

    name = "ewma"

    def __post_init__(self) -> None:
        if self.reference_steps < 2:
            raise ConfigError(f"ewma: reference_steps = {self.reference_steps} must be >= 2")
        if not 0 < self.smoothing <= 1:
            raise ConfigError(f"ewma: smoothing = {self.smoothing} must be above 0, at most 1")
        if self.floor <= 0:
            raise ConfigError(f"ewma: floor = {self.floor} must be > 0")

    def update(self, x: float) -> float | None:
        if len(self._start) < self.reference_steps:
            self._start.append(x)
            return None
        self._seen += 1
        self._ewma += self.smoothing * (x - fmean(self._start) - self._ewma)
        shrunk = self.smoothing / (2 - self.smoothing)
        shrunk *= 1 - (1 - self.smoothing) ** (2 * self._seen)
        return self._ewma / (max(stdev(self._start), self.floor) * math.sqrt(shrunk))

    def state(self) -> dict[str, Any]:
        return {"start": list(self._start), "ewma": self._ewma, "seen": self._seen}

    def restore(self, state: dict[str, Any]) -> None:
        self._start, self._ewma = list(state["start"]), state["ewma"]
        self._seen = state["seen"]
