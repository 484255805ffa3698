"""Whether a signal rises faster and faster: the mean step of late less the mean step before.

Input: a figure a step. Output: units of the signal per figure, None until there are figures for
both halves: (x_t - x_{t-n}) / n - (x_{t-n} - x_{t-2n}) / n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Acceleration:
    """``half`` is n, the figures in each half."""

    half: int = 3
    _last: list[float] = field(default_factory=list, init=False)

    name = "acceleration"

    def __post_init__(self) -> None:
        if self.half < 1:
            raise ConfigError(f"acceleration: half = {self.half} must be >= 1")

    def update(self, x: float) -> float | None:
        self._last = [*self._last, x][-2 * self.half - 1 :]
        if len(self._last) <= 2 * self.half:
            return None
        return (self._last[-1] - 2 * self._last[self.half] + self._last[0]) / self.half

    def state(self) -> dict[str, Any]:
        return {"last": list(self._last)}

    def restore(self, state: dict[str, Any]) -> None:
        self._last = list(state["last"])
