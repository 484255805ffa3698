"""Supervision that enters an RL step: expert rollouts, hints, demonstrations, a supervised term.

Plain values that a scheme puts on an :class:`~toolrl_box.phases.RL` phase; the neutral value of
each (``None``, 0) is RL alone, bit for bit. What they do to rollouts is in
:mod:`toolrl_box.collect`, what they do to the loss in ``trl_backend``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from toolrl_box.errors import ConfigError, unknown

HintPosition = Literal["system", "user", "prefix"]
HintSource = Literal["gold", "llm"]
Weighting = Literal["constant", "decayed", "entropy", "uncertainty"]


@dataclass(frozen=True, slots=True)
class Experts:
    """``count`` rollouts of a group give way to the gold trajectory, executed and scored like any
    other (OPS, arXiv 2606.26027); with ``only_failed`` only where no rollout of the group earned
    anything. ``gamma`` 0: their tokens enter the loss with the plain ratio; above 0 with
    p / (p + gamma) in its place (LUFFY's policy shaping; the paper means 0.1)."""

    count: int = 1
    only_failed: bool = False
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 0 or self.gamma < 0:
            raise ConfigError(
                f"experts: count = {self.count} and gamma = {self.gamma} must be >= 0"
            )


@dataclass(frozen=True, slots=True)
class Hints:
    """``count`` rollouts of a group are sampled with a hint that the optimised sequence does not
    show (HBG, arXiv 2606.26027). ``position``: at the end of the system message, at the end of
    the user's message, or as a ``prefix`` of the first assistant message. ``source``: a summary
    of the gold dialogue, or an LLM's (``reflection.judge``)."""

    count: int = 2
    position: HintPosition = "system"
    source: HintSource = "gold"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"hints: count = {self.count} must be >= 0")
        if self.position not in get_args(HintPosition):
            raise unknown("hint position", self.position, get_args(HintPosition))
        if self.source not in get_args(HintSource):
            raise unknown("hint source", self.source, get_args(HintSource))


@dataclass(frozen=True, slots=True)
class SFTTerm:
    """A supervised term in the RL step's own loss: ``weight`` x NLL (nats a token) of the gold
    dialogues of the step's tasks.

    ``weighting``: ``constant``; ``decayed`` goes in a line from ``weight`` to ``final`` over the
    run's first ``steps`` RL steps and stays there; ``entropy`` scales it by exp(-H), H the
    policy's mean entropy on the gold tokens (SRFT); ``uncertainty`` weighs each token by
    p (1 - p) (CHORD-phi).
    """

    weight: float
    weighting: Weighting = "constant"
    final: float = 0.0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise unknown("weighting of the supervised term", self.weighting, get_args(Weighting))
        if self.weight < 0 or self.final < 0:
            raise ConfigError(
                f"supervised term: weight = {self.weight} and final = {self.final} must be >= 0"
            )

    def at(self, rl_step: int) -> float:
        """The weight in the run's RL step ``rl_step`` (from 0)."""
        if self.weighting != "decayed":
            return self.weight
        share = min(1.0, rl_step / max(1, self.steps - 1))
        return self.weight + (self.final - self.weight) * share
