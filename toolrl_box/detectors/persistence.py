"""k of the last n: the k-th largest of the last n figures.

Input: a figure a step. Output: that figure, None before there are k. It exceeds a threshold exactly
when at least k of the last n figures do, and stays in the signal's units, so that its threshold is
fitted like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Persistence:
    """``of`` is n."""

    k: int = 2
    of: int = 3
    _last: list[float] = field(default_factory=list, init=False)

    name = "persistence"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.of:
            raise ConfigError(
                f"persistence: k = {self.k} must be at least 1 and at most of = {self.of}"
            )

    def update(self, x: float) -> float | None:
        self._last = [*self._last, x][-self.of :]
        return None if len(self._last) < self.k else sorted(self._last)[-self.k]

    def state(self) -> dict[str, Any]:
        return {"last": list(self._last)}

    def restore(self, state: dict[str, Any]) -> None:
        self._last = list(state["last"])
