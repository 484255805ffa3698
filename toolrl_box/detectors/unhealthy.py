"""The safety net that costs nothing: a smoothed share of structurally unhealthy sampled messages.

Input: ``unhealthy``, the share of a step's messages whose structure is broken (text_pollution and
collapsed, without well-formed calls that are merely wrong). Output: *act*
when its EWMA exceeds its level by the start of the run plus ``margin``. The margin comes from the
prototype (lab.md, third prototype) and is unconfirmed like the rest; relative to the start,
because a noisy base is unhealthy from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from toolrl_box.types import Alarm, Reading


@dataclass
class Unhealthy:
    """``update`` in O(1); steps without sampled messages (SFT) are passed over."""

    margin: float = 0.12
    smoothing: float = 0.4
    reference_steps: int = 5
    _start: list[float] = field(default_factory=list, init=False)
    _ewma: float | None = field(default=None, init=False)

    name = "unhealthy"

    def update(self, reading: Reading) -> Alarm | None:
        if "unhealthy" not in reading.values:
            return None
        share = reading.values["unhealthy"]
        if len(self._start) < self.reference_steps:
            self._start.append(share)
            return None
        reference = median(self._start)
        previous = reference if self._ewma is None else self._ewma
        self._ewma = previous + self.smoothing * (share - previous)
        threshold = reference + self.margin
        if self._ewma <= threshold:
            return None
        return Alarm(self.name, reading.step, self._ewma, threshold, "act")

    def state(self) -> dict[str, Any]:
        return {"start": self._start, "ewma": self._ewma}

    def restore(self, state: dict[str, Any]) -> None:
        self._start, self._ewma = list(state["start"]), state["ewma"]
