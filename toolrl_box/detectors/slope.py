"""How fast a signal rises: the least-squares slope over a window of its last figures.

Input: a figure a step. Output: units of the signal per figure, None until the window is full. The
window is fixed, so a step costs the same however long the run is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Slope:
    """``window`` figures, the newest included."""

    window: int = 5
    _last: list[float] = field(default_factory=list, init=False)

    name = "slope"

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ConfigError(f"slope: window = {self.window} must be >= 2")

    def update(self, x: float) -> float | None:
        self._last = [*self._last, x][-self.window :]
        if len(self._last) < self.window:
            return None
        middle = (self.window - 1) / 2
        moment = sum((place - middle) * value for place, value in enumerate(self._last))
        return moment / (self.window * (self.window**2 - 1) / 12)

    def state(self) -> dict[str, Any]:
        return {"last": list(self._last)}

    def restore(self, state: dict[str, Any]) -> None:
        self._last = list(state["last"])
