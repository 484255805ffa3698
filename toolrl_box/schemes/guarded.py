"""Guarded: any scheme, watched by the probe; an alarm interrupts its RL and climbs a ladder.

Each alarm of level *act* ends the running RL phase; the guard answers with the next rung of
``ladder``, then goes on with what was left of the phase. An alarm that comes more than ``relapse``
RL steps after the last answer starts at the bottom again. A rung is one action or several, as in
``rollback+sft+lr``:

    sft       supervised updates on gold of tasks that failed lately, of the categories that fell
    rollback  back to the newest checkpoint at least ``margin`` steps before the alarm
    lr        the learning rate times ``lr_cut``, from now on
    kl        a KL penalty of ``beta``, from now on
    stop      the run ends here

Warnings are in the journal and change nothing. More than ``budget`` answers end the run: a guard
never loops for ever. That SFT repairs what RL broke is arXiv 2606.26027's finding; the ladder is
ours.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from toolrl_box.errors import ConfigError, unknown
from toolrl_box.phases import (
    RL,
    SFT,
    Context,
    GroupResult,
    Outcome,
    Phase,
    Phases,
    Rollback,
    unsolved,
)
from toolrl_box.types import Alarm, Task

ACTIONS = ("sft", "rollback", "lr", "kl", "stop")


@dataclass(frozen=True, slots=True)
class Guarded:
    """``inner`` and its ``knobs``: the scheme that is guarded. For ``grace`` RL steps after an
    answer no alarm interrupts; ``updates`` of SFT an answer; ``window``: RL steps that count as
    lately. A ladder without rungs changes nothing: the inner scheme, bit for bit."""

    inner: str = "rl"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    ladder: tuple[str, ...] = ("sft", "rollback+sft+lr", "stop")
    updates: int = 6
    sft_lr: float | None = None
    grace: int = 3
    relapse: int = 15
    budget: int = 8
    margin: int = 5
    window: int = 5
    lr_cut: float = 0.5
    beta: float = 0.1

    def __post_init__(self) -> None:
        for action in (action for rung in self.ladder for action in rung.split("+")):
            if action not in ACTIONS:
                raise unknown("action of scheme guarded", action, ACTIONS)
        if self.inner == "guarded":
            raise ConfigError("scheme guarded: inner = guarded; a guard guards another scheme")
        for name in ("updates", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"scheme guarded: {name} = {getattr(self, name)} must be >= 1")
        if not 0 < self.lr_cut <= 1:
            raise ConfigError(f"scheme guarded: lr_cut = {self.lr_cut} must be in (0, 1]")

    def phases(self, ctx: Context) -> Phases:
        inner, guard = ctx.build_scheme(self.inner, self.knobs).phases(ctx), _Guard(self, ctx)
        phase: Phase | None = next(inner, None)
        while phase is not None and not guard.stopped:
            if isinstance(phase, RL) and self.ladder:
                outcome = yield from guard.watch(phase)
            else:
                outcome = yield phase
            phase = _next(inner, outcome)


def _next(phases: Phases, outcome: Outcome) -> Phase | None:
    try:
        return phases.send(outcome)
    except StopIteration:
        return None


class _Guard:
    """What a guard remembers: outcomes, its answers, and what they changed for good."""

    def __init__(self, settings: Guarded, ctx: Context) -> None:
        self._settings, self._ctx = settings, ctx
        self._groups: list[GroupResult] = []
        self._answers, self._rung, self._since = 0, -1, 0
        self._lr_factor = 1.0
        self._beta: float | None = None
        self.stopped = False

    def watch(self, phase: RL) -> Generator[Phase, Outcome, Outcome]:
        """The phase, interrupted by alarms; its parts as one outcome."""
        steps, alarm = 0, None
        groups: tuple[GroupResult, ...] = ()
        while True:
            asked = replace(
                phase,
                steps=phase.steps - steps,
                until="act",
                grace=self._settings.grace if self._answers else 0,
                lr_factor=phase.lr_factor * self._lr_factor,
                beta=phase.beta if self._beta is None else self._beta,
                fresh_optimizer=phase.fresh_optimizer and steps == 0,
            )
            part = yield asked
            steps, groups = steps + part.steps, (*groups, *part.groups)
            self._groups += part.groups
            self._since += part.steps
            alarm = part.alarm or alarm
            if part.alarm is None or not asked.ends_with(part.alarm, part.steps):
                break
            if part.alarm.step != max((g.step for g in part.groups), default=0):
                break
            yield from self._answer(part.alarm)
            if self.stopped or steps >= phase.steps:
                break
        return Outcome(steps, groups, alarm)

    def _answer(self, alarm: Alarm) -> Generator[Phase, Outcome, None]:
        settings = self._settings
        relapsed = self._answers > 0 and self._since <= settings.relapse
        self._rung = min(self._rung + 1, len(settings.ladder) - 1) if relapsed else 0
        self._answers, self._since = self._answers + 1, 0
        actions = settings.ladder[self._rung].split("+")
        if "stop" in actions or self._answers > settings.budget:
            self.stopped = True
            return
        if "rollback" in actions:
            yield Rollback(alarm.step - settings.margin)
        if "lr" in actions:
            self._lr_factor *= settings.lr_cut
        if "kl" in actions:
            self._beta = settings.beta
        if "sft" in actions:
            yield SFT(self._lesson(), steps=settings.updates, lr=settings.sft_lr)

    def _lesson(self) -> tuple[Task, ...]:
        """Tasks that failed lately in the categories that fell; without any, all that failed."""
        tasks, window = self._ctx.tasks, self._settings.window
        failed = unsolved(Outcome(0, tuple(self._groups)), tasks, "any_failed", window)
        first = max(group.step for group in self._groups) - window
        before, lately = self._success(0, first), self._success(first, None)
        fell = {c for c, share in lately.items() if share < before.get(c, 0.0)}
        return tuple(task for task in failed if task.category in fell) or failed

    def _success(self, after: int, up_to: int | None) -> dict[str, float]:
        """Mean reward by category of the steps after ``after``, up to and with ``up_to``."""
        rewards: dict[str, list[float]] = {}
        for group in self._groups:
            if group.step > after and (up_to is None or group.step <= up_to):
                category = self._ctx.tasks[group.task_id].category
                rewards.setdefault(category, []).extend(group.rewards_G)
        return {category: fmean(values) for category, values in rewards.items()}
