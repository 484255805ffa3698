"""The signal upside down: every statistic looks for a rise, this makes one of a fall.

Input: a figure. Output: its negative. It keeps no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Negate:
    """First in a chain, before a statistic that knows up from down."""

    name = "negate"

    def update(self, x: float) -> float:
        return -x

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert state == {}
