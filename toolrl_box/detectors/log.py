"""The logarithm of a signal, so that differences after it are nats.

Input: a figure that is not negative (an NLL, a KL, a norm, a share). Output: log(x + offset). The
offset keeps a signal that goes to 0 from ruling everything. It keeps no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from toolrl_box.errors import ConfigError


@dataclass
class Log:
    """A negative figure counts as 0: rounding makes a KL of 0 one."""

    offset: float = 0.01

    name = "log"

    def __post_init__(self) -> None:
        if self.offset <= 0:
            raise ConfigError(f"log: offset = {self.offset} must be > 0")

    def update(self, x: float) -> float:
        return math.log(max(x, 0.0) + self.offset)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert state == {}
