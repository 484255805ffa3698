"""SFT alone, on gold dialogues of all training tasks: the control that every mix is held against.

SFT on gold repairs a noisy base by itself (lab.md, confound 1), so a mix must beat *this* with the
same number of supervised updates, not only RL alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.errors import ConfigError
from toolrl_box.phases import Context, Phases
from toolrl_box.schedule import Lesson


@dataclass(frozen=True, slots=True)
class SFTOnly:
    """``updates`` supervised updates (0: as many as the run's ``steps``), a phase of ``every`` at
    a time and at ``sft_lr``, so that the schedule can be matched to an interleaved run's."""

    updates: int = 0
    every: int = 5
    sft_lr: float | None = None

    def __post_init__(self) -> None:
        if self.updates < 0 or self.every < 1:
            raise ConfigError(
                f"scheme sft: updates = {self.updates} must be >= 0, every = {self.every} >= 1"
            )
        Lesson(sft_lr=self.sft_lr)

    def phases(self, ctx: Context) -> Phases:
        tasks = tuple(ctx.tasks.values())
        left = self.updates or ctx.steps
        while left > 0:
            sft = Lesson(updates=min(self.every, left), sft_lr=self.sft_lr).on(tasks)
            assert sft is not None, "a run has at least one training task"
            outcome = yield sft
            left -= outcome.steps
