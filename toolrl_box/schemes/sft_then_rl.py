"""SFT first, then RL: the usual cold start (arXiv 2606.26027, table 1, row "SFT then RL")."""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.errors import ConfigError
from toolrl_box.phases import RL, SFT, Context, Phases


@dataclass(frozen=True, slots=True)
class SFTThenRL:
    """``updates`` supervised updates on gold dialogues of the training tasks, then RL."""

    updates: int = 20

    def __post_init__(self) -> None:
        if self.updates < 0:
            raise ConfigError(f"scheme sft_then_rl: updates = {self.updates} must be >= 0")

    def phases(self, ctx: Context) -> Phases:
        if self.updates:
            yield SFT(tuple(ctx.tasks.values()), steps=self.updates)
        yield RL(ctx.steps)
