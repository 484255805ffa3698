"""HBG, hint-based guidance: some rollouts are sampled with a summary of the solution in sight.

The paper (arXiv 2606.26027) hints 2 of 8 rollouts in the system message; the sequence that is
optimised does not show the hint, so their tokens are off-policy and enter with the ratio to the
un-hinted policy of the same step.

Left out: hints that grow shorter over time.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.phases import RL, Context, Phases
from toolrl_box.signals import HintPosition, Hints, HintSource


@dataclass(frozen=True, slots=True)
class Hint:
    """``count`` rollouts of each group are hinted at ``position``, with a summary of the ``gold``
    dialogue or an ``llm``'s. With ``count`` 0 this is RL alone, bit for bit."""

    count: int = 2
    position: HintPosition = "system"
    source: HintSource = "gold"
    rl_lr: float | None = None

    def __post_init__(self) -> None:
        self._hints()

    def phases(self, ctx: Context) -> Phases:
        yield RL(ctx.steps, lr=self.rl_lr, hints=self._hints())

    def _hints(self) -> Hints:
        return Hints(self.count, self.position, self.source)
