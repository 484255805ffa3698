"""SFT alone, on gold dialogues of all training tasks: the control that every mix is held against.

SFT on gold repairs a noisy base by itself (lab.md, confound 1), so a mix must beat *this* with the
same number of supervised updates, not only RL alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.errors import ConfigError
from toolrl_box.phases import SFT, Context, Phases


@dataclass(frozen=True, slots=True)
class SFTOnly:
    """``updates`` supervised updates (0: as many as the run's ``steps``), a phase of ``every`` at
    a time, so that the schedule can be matched to an interleaved run's."""

    updates: int = 0
    every: int = 5

    def __post_init__(self) -> None:
        if self.updates < 0 or self.every < 1:
            raise ConfigError(
                f"scheme sft: updates = {self.updates} must be >= 0, every = {self.every} >= 1"
            )

    def phases(self, ctx: Context) -> Phases:
        tasks = tuple(ctx.tasks.values())
        left = self.updates or ctx.steps
        while left > 0:
            outcome = yield SFT(tasks, steps=min(self.every, left))
            left -= outcome.steps
