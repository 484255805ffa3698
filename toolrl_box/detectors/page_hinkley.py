"""Page–Hinkley test for a rise: the summed excess over the running mean, above its own minimum.

Input: a figure a step. Output: the test statistic in the signal's units, None before ``least``
figures. Same numbers as ``river.drift.PageHinkley(mode="up")`` (tests/data), which starts afresh
after an alarm; this one goes on, because an alarm is somebody else's decision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class PageHinkley:
    """``delta`` is the excess that is free, ``alpha`` the forgetting of the sum (1: none)."""

    least: int = 5
    delta: float = 0.005
    alpha: float = 0.9999
    _seen: int = field(default=0, init=False)
    _mean: float = field(default=0.0, init=False)
    _sum: float = field(default=0.0, init=False)
    _low: float = field(default=0.0, init=False)

    name = "page_hinkley"

    def __post_init__(self) -> None:
        if self.least < 1 or self.delta < 0:
            raise ConfigError(
                f"page_hinkley: least = {self.least} must be >= 1 and delta = {self.delta} >= 0"
            )
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"page_hinkley: alpha = {self.alpha} must be above 0, at most 1")

    def update(self, x: float) -> float | None:
        self._seen += 1
        self._mean += (x - self._mean) / self._seen
        self._sum = self.alpha * self._sum + x - self._mean - self.delta
        self._low = self._sum if self._seen == 1 else min(self._low, self._sum)
        return self._sum - self._low if self._seen >= self.least else None

    def state(self) -> dict[str, Any]:
        return {"seen": self._seen, "mean": self._mean, "sum": self._sum, "low": self._low}

    def restore(self, state: dict[str, Any]) -> None:
        self._seen, self._mean = state["seen"], state["mean"]
        self._sum, self._low = state["sum"], state["low"]
