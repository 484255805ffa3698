"""ETS, erroneous trajectories: growing RL phases, and SFT on gold of what was just failed between.

Source: arXiv 2606.26027 §4; the selection rules are those of its text and of its code.
What sets it apart from ``interleaved``: phases of 50, 100 and 150 steps in place of equal short
ones, tasks of the *last* ``window`` steps in place of the whole phase, whole epochs in place of a
fixed number of updates, RL's moments dropped after each SFT phase, and no SFT after the last RL
phase. The paper's numbers, with ``window`` and ``epochs``, are the defaults; lengths are scaled to
the run's budget (10, 20 and 30 of the laboratory's 60 steps).

Left out: the paper's rows of one message each. A whole gold dialogue trains the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from toolrl_box.errors import ConfigError, unknown
from toolrl_box.phases import Context, Phases, Rule, unsolved
from toolrl_box.schedule import Lesson, Rounds, alternate


@dataclass(frozen=True, slots=True)
class Erroneous:
    """``lengths`` of the RL phases (scaled) at ``rl_lr`` (none, one, or one each); ``rule`` and
    ``window`` choose the tasks; ``epochs`` (or exactly ``updates``) at ``sft_lr`` train their gold
    dialogues. With ``epochs`` and ``updates`` both 0 this is RL alone, bit for bit."""

    lengths: tuple[int, ...] = (50, 100, 150)
    rule: Rule = "any_failed"
    window: int = 10
    epochs: int = 2
    updates: int = 0
    rl_lr: tuple[float, ...] = ()
    sft_lr: float | None = None
    fresh_optimizer: bool = True

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise unknown("rule of scheme erroneous", self.rule, get_args(Rule))
        if not self.lengths or self.window < 1:
            raise ConfigError(
                f"scheme erroneous: window = {self.window} must be >= 1, "
                f"lengths = {list(self.lengths)} not empty"
            )
        self._rounds()
        self._lesson()

    def phases(self, ctx: Context) -> Phases:
        yield from alternate(
            ctx,
            self._rounds(),
            self._lesson(),
            lambda outcome: unsolved(outcome, ctx.tasks, self.rule, self.window),
            fresh_optimizer=self.fresh_optimizer,
        )

    def _rounds(self) -> Rounds:
        return Rounds(self.lengths, self.rl_lr)

    def _lesson(self) -> Lesson:
        return Lesson(self.epochs, self.updates, self.sft_lr)
