"""When a scheme trains how: lengths and rates of its phases, shared by every scheme.

Input: a scheme's own knobs and the run's budget. Output: phases. :class:`Rounds` are the RL side,
a :class:`Lesson` is the SFT side, :func:`alternate` puts one lesson between two rounds.

Left out: which tasks a lesson is about, which is what schemes differ in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from toolrl_box.errors import ConfigError
from toolrl_box.phases import RL, SFT, Context, Outcome, Phases
from toolrl_box.types import Task


@dataclass(frozen=True, slots=True)
class Rounds:
    """RL phases of relative ``lengths`` (none: a single one) at ``rl_lr``: none for the run's own
    rate, one for all, or one per phase. Raises ConfigError."""

    lengths: tuple[int, ...] = ()
    rl_lr: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.lengths):
            raise ConfigError(f"lengths = {list(self.lengths)}: each must be >= 1")
        for rate in self.rl_lr:
            _positive("rl_lr", rate)
        if len(self.rl_lr) not in (0, 1, len(self.lengths)):
            raise ConfigError(
                f"rl_lr has {len(self.rl_lr)} values for {len(self.lengths) or 1} phases: "
                "give none, one for all, or one per phase"
            )

    def within(self, steps: int) -> tuple[RL, ...]:
        """The phases; scaled to the budget where their lengths do not add up to it (50, 100, 150
        are 10, 20, 30 of 60 steps). One that would have no step is left out."""
        lengths = self.lengths or (1,)
        rates = (self.rl_lr or (None,)) * (len(lengths) if len(self.rl_lr) < 2 else 1)
        total, begun, end = sum(lengths), 0, 0
        phases = []
        for length, rate in zip(lengths, rates, strict=True):
            end += length
            ended = (2 * steps * end + total) // (2 * total)  # rounded, halves up
            if ended > begun:
                phases.append(RL(ended - begun, lr=rate))
            begun = ended
        return tuple(phases)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One SFT phase: ``updates`` of them when that is not 0, else ``epochs`` passes, at ``sft_lr``
    (None: the run's own ``sft.lr``). Raises ConfigError."""

    epochs: int = 0
    updates: int = 0
    sft_lr: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.updates < 0:
            raise ConfigError(f"epochs = {self.epochs} and updates = {self.updates} must be >= 0")
        if self.sft_lr is not None:
            _positive("sft_lr", self.sft_lr)

    def on(self, tasks: Sequence[Task]) -> SFT | None:
        """The phase; None when there is nothing to learn or no update to learn it by."""
        if not tasks or not (self.updates or self.epochs):
            return None
        if self.updates:
            return SFT(tuple(tasks), steps=self.updates, lr=self.sft_lr)
        return SFT(tuple(tasks), epochs=self.epochs, lr=self.sft_lr)


def alternate(
    ctx: Context,
    rounds: Rounds,
    lesson: Lesson,
    choose: Callable[[Outcome], Sequence[Task]],
    *,
    fresh_optimizer: bool,
) -> Phases:
    """RL phases with a lesson on what ``choose`` takes from the last one *between* them.

    ``fresh_optimizer`` restarts RL's moments after each lesson. What an RL phase that ended early
    left of the budget falls to the last one.
    """
    phases, left, taught = rounds.within(ctx.steps), ctx.steps, False
    for number, phase in enumerate(phases, start=1):
        last = number == len(phases)
        steps = left if last else min(phase.steps, left)
        outcome = yield replace(phase, steps=steps, fresh_optimizer=fresh_optimizer and taught)
        left -= outcome.steps
        if last or left <= 0:
            break
        sft = lesson.on(choose(outcome)) if lesson.epochs or lesson.updates else None
        taught = sft is not None
        if sft is not None:
            yield sft


def _positive(name: str, rate: float) -> None:
    if not 0 < rate < float("inf"):
        raise ConfigError(f"{name} = {rate} must be a finite number above 0")
