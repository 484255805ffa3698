"""The training story with a backend that only counts: order, budget, stopping, going on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from toolrl_box.phases import RL, SFT, Context, Outcome, Phase, Phases, Scheme
from toolrl_box.schemes.erroneous import Erroneous
from toolrl_box.schemes.interleaved import Interleaved
from toolrl_box.schemes.reflection import Reflection
from toolrl_box.schemes.rl import RLOnly
from toolrl_box.schemes.sft import SFTOnly
from toolrl_box.schemes.sft_then_rl import SFTThenRL
from toolrl_box.testing import echo_task
from toolrl_box.train import OnStep, Progress, StepResult, drive
from toolrl_box.types import Alarm, Group, Rollout

TASKS = [echo_task([word]) for word in "abcdef"]
STEPS = 11
CTX = Context(
    STEPS,
    {task.id: task for task in TASKS},
    reflect=lambda keys, texts: tuple(echo_task([str(key.step), key.task_id]) for key in keys),
)
SCHEMES: list[Scheme] = [
    RLOnly(),
    SFTOnly(updates=7, every=3),
    SFTThenRL(updates=3),
    Interleaved(every=3, rule="any_failed", updates=2),
    Interleaved(every=3, rule="all_failed", updates=0, epochs=2),
    Interleaved(every=2, updates=2, fresh_optimizer=True),
    Interleaved(every=4, updates=0, epochs=0),
    Erroneous(window=2, rl_lr=(1e-3, 1e-4, 1e-5)),
    Reflection(rule="all_failed", updates=2),
]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)


@dataclass
class FakeBackend:
    """Takes every step without doing anything; rewards are a function of the RL step."""

    calls: list[tuple[object, ...]] = field(default_factory=list)

    def rl(self, phase: RL, steps: int, first: int, *, on_step: OnStep) -> None:
        self.calls.append(("rl", first, phase.fresh_optimizer and steps == phase.steps))
        for rl_step in range(first, first + steps):
            if on_step(StepResult({"loss": float(rl_step)}, (group_of(rl_step),))):
                return

    def sft_steps(self, phase: SFT) -> int:
        return phase.steps if phase.steps is not None else len(phase.tasks) * phase.epochs

    def sft(self, phase: SFT, done: int, seed_step: int, *, on_step: OnStep) -> None:
        self.calls.append(("sft", done, seed_step))
        for update in range(done, self.sft_steps(phase)):
            if on_step(StepResult({"loss": float(update)})):
                return


def group_of(rl_step: int) -> Group:
    task = TASKS[rl_step % len(TASKS)]
    rewards = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)][rl_step % 3]
    return Group(task, tuple(Rollout(task, (), (), "done", reward=reward) for reward in rewards))


@dataclass
class Notes:
    """Writes everything down; stops after global step ``stop_at``; may sound an alarm."""

    stop_at: int | None = None
    alarm_at: int | None = None
    told: list[tuple[object, ...]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    saved: str = ""

    def begin(self, progress: Progress) -> None:
        self.told.append(("begin", progress.step))

    def phase_start(self, progress: Progress, phase: Phase) -> None:
        self.told.append(("phase_start", progress.phase, phase))

    def step(self, progress: Progress, result: StepResult) -> bool:
        if progress.step == self.alarm_at:
            progress.alarm = Alarm("damage", progress.step, 2.0, 1.5, "act")
        self.told.append(("step", json.dumps(progress.to_json()), dict(result.figures)))
        self.saved = json.dumps(progress.to_json())
        return progress.step == self.stop_at

    def rollback(self, progress: Progress, before: int) -> None:
        self.told.append(("rollback", progress.step, before))

    def phase_end(self, progress: Progress, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.told.append(("phase_end", progress.phase, outcome))

    def finish(self, progress: Progress) -> None:
        self.told.append(("finish", progress.step, progress.rl_step))


def run(scheme: Scheme, ctx: Context = CTX) -> Notes:
    notes = Notes()
    assert drive(scheme, ctx, FakeBackend(), notes) == "done"
    return notes


def steps_of(notes: Notes) -> list[dict[str, object]]:
    return [json.loads(str(entry[1])) for entry in notes.told if entry[0] == "step"]


@every_scheme
def test_everything_is_told_in_order(scheme: Scheme) -> None:
    notes = run(scheme)
    names = [str(entry[0]) for entry in notes.told]
    assert (names[0], names[-1]) == ("begin", "finish")
    open_phase = False
    for name in names[1:-1]:
        assert (name == "phase_start") != open_phase or name == "step"
        open_phase = name != "phase_end"
    assert not open_phase


@every_scheme
def test_the_rl_budget_is_never_exceeded(scheme: Scheme) -> None:
    rl_steps = [step for step in steps_of(run(scheme)) if step["phase_kind"] == "rl"]
    assert len(rl_steps) == (0 if isinstance(scheme, SFTOnly) else STEPS)


@every_scheme
def test_steps_count_both_kinds_and_rl_steps_one(scheme: Scheme) -> None:
    progress = steps_of(run(scheme))
    assert [p["step"] for p in progress] == list(range(1, len(progress) + 1))
    kinds = [p["phase_kind"] for p in progress]
    assert [p["rl_step"] for p in progress] == [
        kinds[: i + 1].count("rl") for i in range(len(kinds))
    ]


@dataclass(frozen=True)
class Greedy:
    """Asks for more than there is, for ever."""

    def phases(self, ctx: Context) -> Phases:
        while True:
            yield RL(ctx.steps - 1)


def test_a_scheme_that_asks_for_more_is_cut_off_at_the_budget() -> None:
    notes = run(Greedy())
    starts = [entry[2] for entry in notes.told if entry[0] == "phase_start"]
    assert starts == [RL(STEPS - 1), RL(1)]
    assert notes.told[-1] == ("finish", STEPS, STEPS)


def test_an_outcome_holds_the_groups_of_its_phase_only() -> None:
    notes = run(Interleaved(every=3, rule="any_failed", updates=2))
    rl = [outcome for outcome in notes.outcomes if outcome.groups]
    assert [len(outcome.groups) for outcome in rl] == [3, 3, 3, 2]
    assert [group.step for group in rl[1].groups] == [6, 7, 8]
    expected = [group_of(i) for i in range(3, 6)]
    assert [g.rewards_G for g in rl[1].groups] == [g.rewards_G for g in expected]
    assert [g.task_id for g in rl[1].groups] == [g.task.id for g in expected]


def test_an_alarm_is_part_of_the_outcome_of_the_phase_it_fell_in() -> None:
    notes = Notes(alarm_at=4)
    drive(Interleaved(every=3, updates=2), CTX, FakeBackend(), notes)
    alarms = [outcome.alarm.step if outcome.alarm else None for outcome in notes.outcomes]
    assert alarms[:3] == [None, 4, None]


def test_only_the_beginning_of_a_phase_has_a_fresh_optimizer() -> None:
    backend = FakeBackend()
    notes = Notes(stop_at=6)
    scheme = Interleaved(every=3, updates=2, fresh_optimizer=True)
    assert drive(scheme, CTX, backend, notes) == "stopped"
    resume(scheme, notes, backend)
    rl = [call for call in backend.calls if call[0] == "rl"]
    assert rl[:3] == [("rl", 0, True), ("rl", 3, True), ("rl", 4, False)]


def resume(scheme: Scheme, stopped: Notes, backend: FakeBackend) -> Notes:
    """Go on from what a checkpoint and the journal hold."""
    notes = Notes()
    progress = Progress.from_json(json.loads(stopped.saved))
    outcomes = [Outcome.from_json(json.loads(json.dumps(o.to_json()))) for o in stopped.outcomes]
    assert drive(scheme, CTX, backend, notes, progress, outcomes) == "done"
    return notes


@every_scheme
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(scheme: Scheme) -> None:
    """Mid-phase, exactly at the end of a phase, and after the very last step."""
    whole = run(scheme)
    for stop_at in range(1, len(steps_of(whole)) + 1):
        stopped = Notes(stop_at=stop_at)
        assert drive(scheme, CTX, FakeBackend(), stopped) == "stopped"
        resumed = resume(scheme, stopped, FakeBackend())
        assert stopped.told + resumed.told == whole.told, stop_at


@every_scheme
def test_a_run_can_be_stopped_at_every_single_step(scheme: Scheme) -> None:
    whole = run(scheme)
    told: list[tuple[object, ...]] = []
    outcomes: list[Outcome] = []
    progress: Progress | None = None
    for stop_at in range(1, len(steps_of(whole)) + 1):
        notes = Notes(stop_at=stop_at)
        arguments: Sequence[object] = () if progress is None else (progress, list(outcomes))
        assert drive(scheme, CTX, FakeBackend(), notes, *arguments) == "stopped"  # type: ignore[arg-type]
        told += notes.told
        outcomes += notes.outcomes
        progress = Progress.from_json(json.loads(notes.saved))
    last = Notes()
    assert drive(scheme, CTX, FakeBackend(), last, progress, outcomes) == "done"
    assert told + last.told == whole.told


@every_scheme
def test_a_run_resumed_before_its_first_step_starts_from_the_beginning(scheme: Scheme) -> None:
    notes = Notes()
    drive(scheme, CTX, FakeBackend(), notes, Progress(), [])
    assert notes.told == run(scheme).told[1:]  # all but `begin`


@every_scheme
def test_a_run_resumed_between_two_phases_goes_on_with_the_next(scheme: Scheme) -> None:
    """The journal knows the outcome, the checkpoint is that of the phase's last step."""
    whole = run(scheme)
    ends = [i for i, entry in enumerate(whole.told) if entry[0] == "phase_end"]
    for number, end in enumerate(ends):
        before = [entry for entry in whole.told[:end] if entry[0] == "step"][-1]
        progress = Progress.from_json(json.loads(str(before[1])))
        notes = Notes()
        drive(scheme, CTX, FakeBackend(), notes, progress, whole.outcomes[: number + 1])
        assert notes.told == whole.told[end + 1 :]


def test_progress_survives_json() -> None:
    for step in steps_of(run(SCHEMES[3])):
        assert json.loads(json.dumps(Progress.from_json(step).to_json())) == step
