"""RL alone: GRPO from the first step to the last (the arm that collapses; arXiv 2606.26027 §3)."""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.phases import RL, Context, Phases


@dataclass(frozen=True, slots=True)
class RLOnly:
    """No knobs: the budget is the run's ``steps``."""

    def phases(self, ctx: Context) -> Phases:
        yield RL(ctx.steps)
