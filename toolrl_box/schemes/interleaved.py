"""SFT-RL interleaved: after every few RL steps, gold dialogues of what was not solved.

The paper's ETS schedule at laboratory scale (arXiv 2606.26027 §4): RL, then SFT on the ground
truth of the tasks that failed in it. Its text selects tasks of which *all* rollouts failed, its
published code tasks with *any* failing rollout; both rules are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from toolrl_box.errors import ConfigError, unknown
from toolrl_box.phases import RL, Context, Phases, Rule, unsolved
from toolrl_box.schedule import Lesson, Rounds


@dataclass(frozen=True, slots=True)
class Interleaved:
    """``every`` RL steps, then ``epochs`` passes over the unsolved tasks' gold dialogues, or
    exactly ``updates`` updates when that is not 0. With ``epochs`` and ``updates`` both 0 this is
    RL alone, bit for bit. ``fresh_optimizer`` restarts RL's moments after each SFT phase, as the
    published code does with its phases of 50 and more steps. ``rl_lr`` and ``sft_lr`` replace the
    run's own rates."""

    every: int = 4
    rule: Rule = "any_failed"
    epochs: int = 0
    updates: int = 6
    fresh_optimizer: bool = False
    rl_lr: float | None = None
    sft_lr: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise unknown("rule of scheme interleaved", self.rule, get_args(Rule))
        if self.every < 1 or self.epochs < 0 or self.updates < 0:
            raise ConfigError(
                f"scheme interleaved: every = {self.every} must be >= 1, "
                f"epochs = {self.epochs} and updates = {self.updates} >= 0"
            )
        Rounds(rl_lr=() if self.rl_lr is None else (self.rl_lr,))
        self._lesson()

    def phases(self, ctx: Context) -> Phases:
        left = ctx.steps
        while left > 0:
            steps = min(self.every, left)
            outcome = yield RL(steps, fresh_optimizer=self.fresh_optimizer, lr=self.rl_lr)
            left -= outcome.steps
            sft = self._lesson().on(unsolved(outcome, ctx.tasks, self.rule))
            if sft is not None:
                yield sft

    def _lesson(self) -> Lesson:
        return Lesson(self.epochs, self.updates, self.sft_lr)
