"""OPS, off-policy supervision: the gold trajectory takes the place of rollouts in each group.

The paper (arXiv 2606.26027) replaces 1 of 8 and *means* p / (p + 0.1) for the expert's tokens
(LUFFY); its published code never switches that loss on. Both are here: ``gamma`` 0 is the plain
ratio of the code, 0.1 the text.

Left out: gold from a stronger model. An expert rollout is the task's gold dialogue, executed.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.phases import RL, Context, Phases
from toolrl_box.signals import Experts


@dataclass(frozen=True, slots=True)
class OffPolicy:
    """``count`` rollouts of each group become the expert's, or with ``only_failed`` only where
    none of the group earned anything. With ``count`` 0 this is RL alone, bit for bit."""

    count: int = 1
    only_failed: bool = False
    gamma: float = 0.1
    rl_lr: float | None = None

    def __post_init__(self) -> None:
        self._experts()

    def phases(self, ctx: Context) -> Phases:
        yield RL(ctx.steps, lr=self.rl_lr, experts=self._experts())

    def _experts(self) -> Experts:
        return Experts(self.count, self.only_failed, self.gamma)
