"""The signal itself, so that a threshold on it is a level threshold.

Input: a figure. Output: the same. It keeps no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Level:
    """In the units of the signal."""

    name = "level"

    def update(self, x: float) -> float:
        return x

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert state == {}
