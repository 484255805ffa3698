"""What a guard answers to alarms, rung by rung, and what it remembers between them.

Input: RL phases and their outcomes. Output: the same phases, interrupted by alarms of level *act*
and followed by the answers of a :class:`Ladder`; their parts come back as one outcome.

Left out: which scheme is guarded (``schemes.guarded``) and what raises alarms (``detectors``).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from statistics import fmean

from toolrl_box.errors import ConfigError, unknown
from toolrl_box.phases import RL, SFT, Context, GroupResult, Outcome, Phase, Rollback, unsolved
from toolrl_box.types import Alarm, Kind, Task

TEXT_SLOTS = ("start_text_due", "inside_text", "end_text")
"""Slots of the probe (``probe.bank``) in messages without a call; all others are a call's."""
ACTIONS = ("sft", "rollback", "lr", "kl", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """For ``grace`` RL steps after an answer no alarm interrupts; ``updates`` of SFT an answer;
    ``window``: RL steps that count as lately. What the actions and other knobs mean:
    ``schemes.guarded``."""

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
    aim: bool = False

    def __post_init__(self) -> None:
        for action in (action for rung in self.ladder for action in rung.split("+")):
            if action not in ACTIONS:
                raise unknown("action of scheme guarded", action, ACTIONS)
        for name in ("updates", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"scheme guarded: {name} = {getattr(self, name)} must be >= 1")
        if not 0 < self.lr_cut <= 1:
            raise ConfigError(f"scheme guarded: lr_cut = {self.lr_cut} must be in (0, 1]")


class Guard:
    """What a guard remembers: outcomes, its answers, and what they changed for good."""

    def __init__(self, settings: Ladder, ctx: Context) -> None:
        self._settings, self._ctx = settings, ctx
        self._groups: list[GroupResult] = []
        self._answers, self._rung, self._since = 0, -1, 0
        self._lr_factor = 1.0
        self._beta: float | None = None
        self.stopped = False

    def watch(self, phase: RL) -> Generator[Phase, Outcome, Outcome]:
        """The phase, interrupted by alarms; its parts as one outcome."""
        steps, alarm, moved = 0, None, None
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
            if part.alarm is not None:
                alarm, moved = part.alarm, part.moved
            if part.alarm is None or not asked.ends_with(part.alarm, part.steps):
                break
            if part.alarm.step != max((g.step for g in part.groups), default=0):
                break
            yield from self._answer(part.alarm, part.moved)
            if self.stopped or steps >= phase.steps:
                break
        return Outcome(steps, groups, alarm, moved)

    def _answer(self, alarm: Alarm, moved: str | None) -> Generator[Phase, Outcome, None]:
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
            tasks, kind = self._aimed(self._lesson(), moved)
            yield SFT(tasks, steps=settings.updates, lr=settings.sft_lr, messages=kind)

    def _aimed(
        self, tasks: tuple[Task, ...], moved: str | None
    ) -> tuple[tuple[Task, ...], Kind | None]:
        """The tasks whose gold has messages like the one that the slot stands in, and that kind of
        message; without such tasks, or unless ``aim``, all of them and every message."""
        if not self._settings.aim or moved is None:
            return tasks, None
        kind: Kind = "text" if moved in TEXT_SLOTS else "call"
        written = [
            task
            for task in tasks
            if any(m.role == "assistant" and m.kind == kind for m in task.gold)
        ]
        return (tuple(written), kind) if written else (tasks, None)

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
