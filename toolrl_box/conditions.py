"""Detectors put together from signals, statistics and thresholds.

A *condition* is a signal that goes through a chain of statistics and holds when the result is above
a threshold; or all of several conditions; or any of several. A :class:`Composed` detector alarms at
the steps at which its condition holds.

Input: readings. Output: alarms, or the score that a threshold is fitted on. Fitting moves one
number, the threshold of the *leading* condition (the first of the first …); the others keep
theirs. So the score is the leading figure where the others allow an alarm, minus infinity where
they do not, and plus infinity where an alternative alarms by itself.

A signal without a figure at a step leaves its statistics as they are, and its condition does not
hold. Left out: files (:mod:`toolrl_box.detector_file`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from toolrl_box.detectors import Statistic
from toolrl_box.types import Alarm, Reading


class Found(NamedTuple):
    """One step of a condition: ``value`` against ``threshold`` is what an alarm would show."""

    holds: bool
    value: float
    threshold: float
    score: float


class Condition(Protocol):
    """``update`` once a step, whether or not anybody needs the answer."""

    def update(self, values: Mapping[str, float]) -> Found: ...

    def state(self) -> list[Any]: ...

    def restore(self, state: list[Any]) -> None: ...


@dataclass
class Above:
    """``signal`` through ``statistics`` is above ``threshold``."""

    signal: str
    statistics: Sequence[Statistic]
    threshold: float

    def update(self, values: Mapping[str, float]) -> Found:
        x = values.get(self.signal)
        for statistic in self.statistics:
            x = None if x is None else statistic.update(x)
        value = -math.inf if x is None else x
        return Found(value > self.threshold, value, self.threshold, value)

    def state(self) -> list[Any]:
        return [statistic.state() for statistic in self.statistics]

    def restore(self, state: list[Any]) -> None:
        for statistic, kept in zip(self.statistics, state, strict=True):
            statistic.restore(kept)


@dataclass
class _Several:
    parts: Sequence[Condition]

    def state(self) -> list[Any]:
        return [part.state() for part in self.parts]

    def restore(self, state: list[Any]) -> None:
        for part, kept in zip(self.parts, state, strict=True):
            part.restore(kept)


class AllOf(_Several):
    """An alarm shows the first condition's figure."""

    def update(self, values: Mapping[str, float]) -> Found:
        first, *others = [part.update(values) for part in self.parts]
        allowed = all(other.holds for other in others)
        score = first.score if allowed else -math.inf
        return first._replace(holds=first.holds and allowed, score=score)


class AnyOf(_Several):
    """An alarm shows the figure of the first condition that holds."""

    def update(self, values: Mapping[str, float]) -> Found:
        found = [part.update(values) for part in self.parts]
        shown = next((one for one in found if one.holds), found[0])
        alone = any(other.holds for other in found[1:])
        return shown._replace(score=math.inf if alone else found[0].score)


@dataclass
class Composed:
    """A :class:`~toolrl_box.detectors.Scored` detector."""

    name: str
    level: Literal["warn", "act"]
    condition: Condition

    def update(self, reading: Reading) -> Alarm | None:
        found = self.condition.update(reading.values)
        if not found.holds:
            return None
        return Alarm(self.name, reading.step, found.value, found.threshold, self.level)

    def score(self, reading: Reading) -> float | None:
        score = self.condition.update(reading.values).score
        return None if score == -math.inf else score

    def state(self) -> dict[str, Any]:
        return {"condition": self.condition.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.condition.restore(state["condition"])
