"""Synchronous mixing: a supervised term in the loss of every RL step.

The counterpart of ``interleaved``: the same gold dialogues, in the same update rather than between
updates, so that timing and signal can be told apart. Weightings: constant, decayed, by the
policy's entropy (SRFT, arXiv 2506.19767) or by each token's p (1 - p) (CHORD, arXiv 2508.11408).

Left out: CHORD's (1 - mu) on the RL loss; the ratio of the two is all that Adam sees of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.phases import RL, Context, Phases
from toolrl_box.signals import SFTTerm, Weighting


@dataclass(frozen=True, slots=True)
class Mixed:
    """``weight`` of the term, which ``decayed`` takes to ``final`` over the run. With ``weight``
    (and ``final``) 0 this is RL alone, bit for bit."""

    weight: float = 0.5
    weighting: Weighting = "constant"
    final: float = 0.0
    rl_lr: float | None = None

    def __post_init__(self) -> None:
        self._term(1)

    def phases(self, ctx: Context) -> Phases:
        yield RL(ctx.steps, lr=self.rl_lr, sft=self._term(ctx.steps))

    def _term(self, steps: int) -> SFTTerm:
        return SFTTerm(self.weight, self.weighting, self.final, steps)
