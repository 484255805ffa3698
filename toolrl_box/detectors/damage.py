"""Damage and movement: the bank's NLL rises against its start, and the policy has left the base.

The NLL of gold tokens is one-sided (ordinary learning lowers it), KL is two-sided (it grows with
any learning); a collapse shows in both. Form and thresholds come from the prototype, where they
were chosen in-sample (lab.md, third prototype): **unconfirmed** until issue WARNING has tested
them on fresh seeds. Public name of the statistic: an EWMA of the log-ratio to a reference window.

Input: ``bank_nll`` and ``bank_kl`` in nats, one reading per step. Output: *warn* on the NLL ratio
alone, *act* on ratio and KL together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from toolrl_box.types import Alarm, Reading


@dataclass
class Damage:
    """``update`` in O(1); ``state``/``restore`` go through JSON into checkpoints."""

    ratio: float = 1.5
    kl: float = 0.25
    smoothing: float = 0.4
    reference_steps: int = 5
    _start: list[float] = field(default_factory=list, init=False)
    _ewma: float = field(default=0.0, init=False)

    name = "damage"

    def update(self, reading: Reading) -> Alarm | None:
        x = math.log(reading.values["bank_nll"] + 0.01)
        if len(self._start) < self.reference_steps:
            self._start.append(x)
            return None
        self._ewma += self.smoothing * (x - median(self._start) - self._ewma)
        ratio = math.exp(self._ewma)
        if ratio <= self.ratio:
            return None
        level = "act" if reading.values["bank_kl"] > self.kl else "warn"
        return Alarm(self.name, reading.step, ratio, self.ratio, level)  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        return {"start": self._start, "ewma": self._ewma}

    def restore(self, state: dict[str, Any]) -> None:
        self._start, self._ewma = list(state["start"]), state["ewma"]
