"""How far a signal has gone from where it began: an EWMA of its distance to a reference window.

Input: a figure a step; a log-prob, or what `log` made, gives nats. Output: the smoothed difference
to the median of the first ``reference_steps`` figures, None while they are taken. With `log` before
it this is the public form of the prototype's damage (lab.md, third prototype).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Drift:
    """``smoothing`` is the weight of the newest figure; 1 smooths nothing."""

    reference_steps: int = 5
    smoothing: float = 0.4
    _start: list[float] = field(default_factory=list, init=False)
    _ewma: float = field(default=0.0, init=False)

    name = "drift"

    def __post_init__(self) -> None:
        if self.reference_steps < 1:
            raise ConfigError(f"drift: reference_steps = {self.reference_steps} must be >= 1")
        if not 0 < self.smoothing <= 1:
            raise ConfigError(f"drift: smoothing = {self.smoothing} must be above 0, at most 1")

    def update(self, x: float) -> float | None:
        if len(self._start) < self.reference_steps:
            self._start.append(x)
            return None
        self._ewma += self.smoothing * (x - median(self._start) - self._ewma)
        return self._ewma

    def state(self) -> dict[str, Any]:
        return {"start": list(self._start), "ewma": self._ewma}

    def restore(self, state: dict[str, Any]) -> None:
        self._start, self._ewma = list(state["start"]), state["ewma"]
