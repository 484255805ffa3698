"""PRS, process reflection: as ETS, plus texts about what went wrong in failed trajectories.

Source: arXiv 2606.26027 §4, with its "at most two texts per trajectory".
A text quotes the log, names the first wrong step and the right calls; a second one is a near case
that needs another call. An offline analyst writes them from the environment's own verdict, or an
LLM judge does (``reflection.judge``): ``ctx.reflect`` knows which. Each is a dialogue of its own,
with the loss on the answer.

Left out: the paper's prompts without a chat template, which its code trains (a fault of it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from toolrl_box.errors import ConfigError, unknown
from toolrl_box.phases import Context, Outcome, Phases, Rule, failures, unsolved
from toolrl_box.schedule import Lesson, Rounds, alternate
from toolrl_box.types import Task


@dataclass(frozen=True, slots=True)
class Reflection:
    """``erroneous``, whose knobs these are, plus at most ``texts`` (0, 1 or 2) about each of at
    most ``trajectories`` failed rollouts per SFT phase: the latest of each task, the latest tasks
    first (each is one question to the judge). With ``texts`` or ``trajectories`` 0 this is
    ``erroneous``, bit for bit."""

    lengths: tuple[int, ...] = (50, 100, 150)
    rule: Rule = "any_failed"
    window: int = 10
    trajectories: int = 24
    texts: int = 2
    epochs: int = 2
    updates: int = 0
    rl_lr: tuple[float, ...] = ()
    sft_lr: float | None = None
    fresh_optimizer: bool = True

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise unknown("rule of scheme reflection", self.rule, get_args(Rule))
        if not self.lengths or self.window < 1 or self.trajectories < 0:
            raise ConfigError(
                f"scheme reflection: window = {self.window} must be >= 1, trajectories = "
                f"{self.trajectories} >= 0, lengths = {list(self.lengths)} not empty"
            )
        if self.texts not in (0, 1, 2):
            raise ConfigError(f"scheme reflection: texts = {self.texts} must be 0, 1 or 2")
        self._rounds()
        self._lesson()

    def phases(self, ctx: Context) -> Phases:
        def choose(outcome: Outcome) -> tuple[Task, ...]:
            hard = unsolved(outcome, ctx.tasks, self.rule, self.window)
            failed = failures(outcome, self.rule, self.window, self.trajectories)
            return (*hard, *(ctx.reflect(failed, self.texts) if failed and self.texts else ()))

        fresh = self.fresh_optimizer
        yield from alternate(ctx, self._rounds(), self._lesson(), choose, fresh_optimizer=fresh)

    def _rounds(self) -> Rounds:
        return Rounds(self.lengths, self.rl_lr)

    def _lesson(self) -> Lesson:
        return Lesson(self.epochs, self.updates, self.sft_lr)
