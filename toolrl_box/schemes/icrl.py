"""ICRL: RL with few-shot demonstrations in the rollout prompt, fewer from stage to stage.

In-Context Reinforcement Learning (arXiv 2603.08068): 3, then 2, then 0 demonstrations, 100 steps
each; they stay in the prompt that is optimised, and no SFT is done. 3, 2, 1, 0 is reported worse.

Left out: its reward, which is a rubric (``rewards``: accuracy 0.8, format 0.2), and its retriever,
which belongs to the search world.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from toolrl_box.errors import ConfigError
from toolrl_box.phases import Context, Phases
from toolrl_box.schedule import Rounds


@dataclass(frozen=True, slots=True)
class ICRL:
    """``shots`` of each stage, never rising; ``lengths`` of the stages (scaled to the budget; none:
    equal). A single stage of 0 shots is RL alone, bit for bit."""

    shots: tuple[int, ...] = (3, 2, 0)
    lengths: tuple[int, ...] = ()
    rl_lr: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shots = list(self.shots)
        if not shots or min(shots) < 0:
            raise ConfigError(f"scheme icrl: shots = {shots} must name stages of >= 0 shots")
        for before, after in pairwise(shots):
            if after > before:
                raise ConfigError(
                    f"scheme icrl: shots = {shots} goes up from {before} to {after}; a curriculum "
                    "takes demonstrations away"
                )
        if self.lengths and len(self.lengths) != len(shots):
            raise ConfigError(
                f"scheme icrl: lengths = {list(self.lengths)} names {len(self.lengths)} stages, "
                f"shots = {shots} {len(shots)}"
            )
        self._rounds()

    def phases(self, ctx: Context) -> Phases:
        stages = self._rounds().within(ctx.steps)
        if len(stages) < len(self.shots):
            raise ConfigError(
                f"scheme icrl: {ctx.steps} steps are too few for the {len(self.shots)} stages of "
                f"shots = {list(self.shots)}"
            )
        for stage, shots in zip(stages, self.shots, strict=True):
            yield replace(stage, shots=shots)

    def _rounds(self) -> Rounds:
        return Rounds(self.lengths or (1,) * len(self.shots), self.rl_lr)
