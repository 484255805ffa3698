"""SIGINT and SIGTERM as a wish that a run grants after its step.

Job: remember the first signal, so that the run can finish its step, save and end; obey the second
at once. Input: signals of this process. Output: :meth:`Interrupts.asked` and the exit code that
shells expect (128 + signal).

Left out: what is saved (``recorder``) and signals of other processes.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context manager; the second signal raises KeyboardInterrupt inside it."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def asked(self) -> bool:
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self._received or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        # Not print(): the signal may have come in the middle of one.
        name = self._received.name
        os.write(2, f"{name}: finishing this step, then saving; once more aborts\n".encode())
