"""RL alone: GRPO from the first step to the last (the arm that collapses; arXiv 2606.26027 §3)."""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.phases import Context, Phases
from toolrl_box.schedule import Lesson, Rounds, alternate


@dataclass(frozen=True, slots=True)
class RLOnly:
    """The budget is the run's ``steps``. It may be cut in phases of relative ``lengths``, for the
    sake of a learning rate ``rl_lr`` each; moments go on from phase to phase, so that cutting
    alone changes nothing."""

    lengths: tuple[int, ...] = ()
    rl_lr: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        Rounds(self.lengths, self.rl_lr)

    def phases(self, ctx: Context) -> Phases:
        rounds = Rounds(self.lengths, self.rl_lr)
        yield from alternate(ctx, rounds, Lesson(), lambda outcome: (), fresh_optimizer=False)
