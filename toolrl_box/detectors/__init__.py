"""Detectors: readings in, alarms out; incremental and serialisable. One file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.types import Alarm, Reading


class Detector(Protocol):
    """One instance watches one run."""

    @property
    def name(self) -> str: ...

    def update(self, reading: Reading) -> Alarm | None: ...

    def state(self) -> dict[str, Any]:
        """JSON values from which :meth:`restore` goes on exactly."""

    def restore(self, state: dict[str, Any]) -> None: ...


DETECTORS: Mapping[str, Callable[[], Detector]] = {"damage": Damage, "unhealthy": Unhealthy}
