"""Detectors: readings in, alarms out; incremental and serialisable. One file each.

Two kinds stand here. A *statistic* turns one signal, figure by figure, into another figure that
rises when something is wrong; chains of them with thresholds make detectors in
:mod:`toolrl_box.conditions`. A *form* is a whole detector with its own reading of several signals:
the two of the prototype, frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from toolrl_box.detectors.acceleration import Acceleration
from toolrl_box.detectors.cusum import Cusum
from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.drawdown import Drawdown
from toolrl_box.detectors.drift import Drift
from toolrl_box.detectors.ewma import Ewma
from toolrl_box.detectors.level import Level
from toolrl_box.detectors.log import Log
from toolrl_box.detectors.negate import Negate
from toolrl_box.detectors.page_hinkley import PageHinkley
from toolrl_box.detectors.persistence import Persistence
from toolrl_box.detectors.slope import Slope
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.types import Alarm, Reading


@runtime_checkable
class Detector(Protocol):
    """One instance watches one run."""

    @property
    def name(self) -> str: ...

    def update(self, reading: Reading) -> Alarm | None: ...

    def state(self) -> dict[str, Any]:
        """JSON values from which :meth:`restore` goes on exactly."""

    def restore(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Scored(Detector, Protocol):
    """A detector that also says how alarmed it is, so that its threshold can be fitted."""

    def score(self, reading: Reading) -> float | None:
        """In place of ``update``: the figure that alarms when it is above a threshold, None when
        nothing can alarm at this step."""


class Statistic(Protocol):
    """Follows one signal. ``update`` costs the same at every step."""

    @property
    def name(self) -> str: ...

    def update(self, x: float) -> float | None:
        """The statistic after ``x``; None while there is too little to say."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


DETECTORS: Mapping[str, Callable[[], Detector]] = {"damage": Damage, "unhealthy": Unhealthy}
FORM_SIGNALS: Mapping[str, frozenset[str]] = {
    "damage": frozenset({"bank_nll", "bank_kl"}),
    "unhealthy": frozenset({"unhealthy"}),
}
"""What each form reads; without all of it, it never alarms."""
STATISTICS: Mapping[str, Callable[[], Statistic]] = {
    "level": Level,
    "log": Log,
    "negate": Negate,
    "drift": Drift,
    "drawdown": Drawdown,
    "ewma": Ewma,
    "cusum": Cusum,
    "page_hinkley": PageHinkley,
    "slope": Slope,
    "acceleration": Acceleration,
    "persistence": Persistence,
}
