"""One-sided CUSUM: what a signal has risen in all above its noise.

Input: a figure a step. Output: S = max(0, S + z - allowance), z in deviations of a reference window
(mean and sample deviation), None while it is taken (Page 1954).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Cusum:
    """``allowance`` is the rise that is free, in deviations; half of the shift that matters is the
    textbook's choice. ``floor`` is the least deviation that is believed, in the signal's units."""

    reference_steps: int = 5
    allowance: float = 0.5
    floor: float = 0.01
    _start: list[float] = field(default_factory=list, init=False)
    _sum: float = field(default=0.0, init=False)

    name = "cusum"

    def __post_init__(self) -> None:
        if self.reference_steps < 2:
            raise ConfigError(f"cusum: reference_steps = {self.reference_steps} must be >= 2")
        if self.allowance < 0 or self.floor <= 0:
            raise ConfigError(
                f"cusum: allowance = {self.allowance} must be >= 0 and floor = {self.floor} > 0"
            )

    def update(self, x: float) -> float | None:
        if len(self._start) < self.reference_steps:
            self._start.append(x)
            return None
        z = (x - fmean(self._start)) / max(stdev(self._start), self.floor)
        self._sum = max(0.0, self._sum + z - self.allowance)
        return self._sum

    def state(self) -> dict[str, Any]:
        return {"start": list(self._start), "sum": self._sum}

    def restore(self, state: dict[str, Any]) -> None:
        self._start, self._sum = list(state["start"]), state["sum"]
