"""The training story on one page: a scheme yields phases, a backend runs them, everything is told.

Job: :func:`drive` a scheme to its end, or on from a checkpoint. Input: a scheme, a backend, and an
observer of steps. Output: the run folder (through the observer) and the reason of the end.

A resumed run replays the recorded outcomes through a fresh generator of the same scheme, arrives
in the interrupted phase, and continues it at the step of the checkpoint.

Left out: how a step is trained (``trl_backend``) and what is logged about it (``recorder``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from toolrl_box.phases import RL, SFT, Context, GroupResult, Outcome, Phase, Rollback, Scheme
from toolrl_box.types import Alarm, Group

OnStep = Callable[["StepResult"], bool]
"""Called after every update step; True ends the phase now."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One update step: figures of the optimisation and, for RL, the groups it learned from."""

    figures: Mapping[str, float]
    groups: tuple[Group, ...] = ()


class Backend(Protocol):
    """Runs phases on one model."""

    def rl(self, phase: RL, steps: int, first: int, *, on_step: OnStep) -> None:
        """The phase's last ``steps`` GRPO steps (all of them, or what was left when the run was
        stopped); ``first`` is the number of RL steps that the run has done before."""

    def sft_steps(self, phase: SFT) -> int:
        """Updates that the phase takes in all."""

    def sft(self, phase: SFT, done: int, seed_step: int, *, on_step: OnStep) -> None:
        """The phase's updates from number ``done`` on; ``seed_step`` fixes their order."""


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint.

    ``step`` counts update steps of both kinds, ``rl_step`` those of RL. Within phase number
    ``phase``, ``done`` steps have been taken since global step ``phase_first``; ``groups`` and
    ``alarm`` and ``moved`` are what its outcome will hold.
    """

    step: int = 0
    rl_step: int = 0
    phase: int = -1
    phase_kind: str = ""
    phase_first: int = 0
    done: int = 0
    groups: list[GroupResult] = field(default_factory=list)
    alarm: Alarm | None = None
    moved: str | None = None

    def outcome(self) -> Outcome:
        return Outcome(self.done, tuple(self.groups), self.alarm, self.moved)

    def to_json(self) -> dict[str, Any]:
        counters = ("step", "rl_step", "phase", "phase_kind", "phase_first", "done")
        return {name: getattr(self, name) for name in counters} | {
            "outcome": self.outcome().to_json()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progress:
        outcome = Outcome.from_json(value["outcome"])
        counters = {name: v for name, v in value.items() if name != "outcome"}
        return cls(
            **counters, groups=list(outcome.groups), alarm=outcome.alarm, moved=outcome.moved
        )


class Observer(Protocol):
    """Is told everything, in order; owns the run folder."""

    def begin(self, progress: Progress) -> None:
        """Before the first step of a new run."""

    def phase_start(self, progress: Progress, phase: Phase) -> None: ...

    def step(self, progress: Progress, result: StepResult) -> bool:
        """After a step (``progress`` counts it); True asks for the run to stop now."""

    def rollback(self, progress: Progress, before: int) -> None:
        """Put model and detectors back: see :class:`~toolrl_box.phases.Rollback`."""

    def phase_end(self, progress: Progress, outcome: Outcome) -> None: ...

    def finish(self, progress: Progress) -> None: ...


def drive(
    scheme: Scheme,
    ctx: Context,
    backend: Backend,
    observer: Observer,
    progress: Progress | None = None,
    outcomes: list[Outcome] | None = None,
) -> Literal["done", "stopped"]:
    """Run the scheme to its end; with ``progress`` and the ``outcomes`` of the phases before it,
    go on from there. The RL budget ``ctx.steps`` is never exceeded."""
    fresh_run = progress is None
    progress = progress or Progress()
    phases = scheme.phases(ctx)
    phase: Phase | None = next(phases, None)
    if fresh_run:
        observer.begin(progress)
    for outcome in outcomes or []:
        phase = _send(phases, outcome)
    resuming = not fresh_run and progress.phase == len(outcomes or [])
    while phase is not None:
        if isinstance(phase, RL):
            budget = ctx.steps - progress.rl_step + (progress.done if resuming else 0)
            phase = replace(phase, steps=min(phase.steps, budget))
            if phase.steps <= 0:
                break
        if not resuming:
            progress.phase += 1
            progress.phase_kind = phase.kind
            progress.phase_first = progress.step
            progress.done, progress.groups = 0, []
            progress.alarm = progress.moved = None
            observer.phase_start(progress, phase)
        resuming = False
        if _run(phase, backend, observer, progress):
            return "stopped"
        outcome = progress.outcome()
        observer.phase_end(progress, outcome)
        phase = _send(phases, outcome)
    observer.finish(progress)
    return "done"


def _send(phases: Any, outcome: Outcome) -> Phase | None:
    try:
        phase: Phase = phases.send(outcome)
    except StopIteration:
        return None
    return phase


def _run(phase: Phase, backend: Backend, observer: Observer, progress: Progress) -> bool:
    """Run what is left of a phase; True when the observer stopped the run."""
    stopped = False

    def on_step(result: StepResult) -> bool:
        nonlocal stopped
        progress.step += 1
        progress.done += 1
        if isinstance(phase, RL):
            progress.rl_step += 1
        progress.groups += [
            GroupResult(progress.step, group.task.id, tuple(r.reward for r in group.own))
            for group in result.groups
        ]
        stopped = observer.step(progress, result)
        return stopped or ended()

    def ended() -> bool:
        alarm = progress.alarm
        if not isinstance(phase, RL) or alarm is None or alarm.step != progress.step:
            return False
        return phase.ends_with(alarm, progress.done)

    if isinstance(phase, Rollback):
        observer.rollback(progress, phase.before)
    elif isinstance(phase, RL):
        left = phase.steps - progress.done
        if left > 0 and not ended():
            backend.rl(phase, left, progress.rl_step, on_step=on_step)
    elif progress.done < backend.sft_steps(phase):
        backend.sft(phase, progress.done, progress.phase_first, on_step=on_step)
    return stopped
