"""The guard with invented alarms: what it answers, when it climbs, and that it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from toolrl_box.errors import ConfigError
from toolrl_box.ladder import TEXT_SLOTS
from toolrl_box.phases import RL, SFT, Context, GroupResult, Outcome, Phase, Rollback
from toolrl_box.probe.bank import SLOTS, call_slots, text_slots
from toolrl_box.schemes import build_scheme
from toolrl_box.schemes.guarded import Guarded
from toolrl_box.schemes.interleaved import Interleaved
from toolrl_box.testing import echo_task
from toolrl_box.types import Alarm, Message, Task, ToolCall

TASKS = {
    task.id: task
    for task in (
        replace(echo_task(["a"]), category="base"),
        replace(echo_task(["b"]), category="long"),
    )
}
EASY, FELL = TASKS
Rewards = Callable[[int], Mapping[str, tuple[float, ...]]]


def falling(step: int) -> Mapping[str, tuple[float, ...]]:
    """One category stays as it is (half solved), the other is lost after step 10."""
    return {EASY: (1.0, 0.0), FELL: (1.0, 1.0) if step <= 10 else (0.0, 0.0)}


def play(
    scheme: Guarded,
    steps: int,
    alarms: Mapping[int, str],
    rewards: Rewards = falling,
    moved: str = "after_call",
    tasks: Mapping[str, Task] = TASKS,
) -> list[Phase]:
    """The phases of a run whose detectors alarm after the given global steps, as `drive` plays
    them; SFT updates count as steps, too."""
    phases: list[Phase] = []
    generator = scheme.phases(Context(steps, tasks, build_scheme=build_scheme))
    outcome, step, rl_left = None, 0, steps
    while True:
        try:
            phase = next(generator) if outcome is None else generator.send(outcome)
        except StopIteration:
            return phases
        phases.append(phase)
        if isinstance(phase, RL):
            if rl_left == 0:
                return phases[:-1]
            done, groups, alarm = 0, [], None
            while done < min(phase.steps, rl_left):
                step, done = step + 1, done + 1
                groups += [GroupResult(step, t, r) for t, r in rewards(step).items()]
                if step in alarms:
                    alarm = Alarm("damage", step, 2.0, 1.5, alarms[step])  # type: ignore[arg-type]
                    if phase.ends_with(alarm, done):
                        break
            rl_left -= done
            outcome = Outcome(done, tuple(groups), alarm, None if alarm is None else moved)
        else:
            step += phase.steps or 0
            outcome = Outcome(phase.steps or 0)


def kinds(phases: list[Phase]) -> list[str]:
    return [phase.kind for phase in phases]


def test_without_alarms_the_inner_scheme_is_seen_with_an_ear_open() -> None:
    plain = list(play(Guarded(inner="interleaved", knobs={"every": 4}, ladder=()), 12, {}))
    watched = play(Guarded(inner="interleaved", knobs={"every": 4}), 12, {})
    assert [replace(p, until=None) if isinstance(p, RL) else p for p in watched] == plain
    assert plain[0] == next(Interleaved(every=4).phases(Context(12, TASKS)))


def test_a_warning_changes_nothing() -> None:
    assert play(Guarded(), 30, {10: "warn"}) == play(Guarded(), 30, {})


def test_the_first_alarm_is_answered_with_sft_on_what_fell_and_rl_goes_on() -> None:
    first, answer, rest = play(Guarded(grace=3), 40, {14: "act"})
    assert first == RL(40, until="act")
    assert answer == SFT((TASKS[FELL],), steps=6)
    assert rest == RL(26, until="act", grace=3)


def with_gold(*messages: Message) -> dict[str, Task]:
    """The tasks, with this gold in the one that fails."""
    return {**TASKS, FELL: replace(TASKS[FELL], gold=messages)}


CALL = Message("assistant", "", (ToolCall("echo", {"word": "b"}),))
TEXT = Message("assistant", "Done.")


@pytest.mark.parametrize(
    ("moved", "kind"),
    [("after_call", "call"), ("start_call_due", "call"), ("end_text", "text")],
)
def test_an_aimed_answer_learns_the_messages_of_the_slot_that_moved(moved: str, kind: str) -> None:
    tasks = with_gold(CALL, Message("tool", "b"), TEXT)
    phases = play(Guarded(aim=True), 40, {14: "act"}, moved=moved, tasks=tasks)
    assert phases[1] == SFT((tasks[FELL],), steps=6, messages=kind)  # type: ignore[arg-type]
    unaimed = play(Guarded(), 40, {14: "act"}, moved=moved, tasks=tasks)
    assert unaimed[1] == SFT((tasks[FELL],), steps=6)


def test_gold_without_such_messages_is_learned_as_a_whole() -> None:
    tasks = with_gold(CALL)
    phases = play(Guarded(aim=True), 40, {14: "act"}, moved="inside_text", tasks=tasks)
    assert phases[1] == SFT((tasks[FELL],), steps=6)


def test_every_slot_is_in_a_call_or_in_a_text() -> None:
    assert set(TEXT_SLOTS) == set(text_slots(5))
    in_calls = set(call_slots(12, range(0, 2), range(8, 10)))
    assert in_calls == set(SLOTS) - set(TEXT_SLOTS)


def test_an_alarm_within_the_grace_does_not_interrupt() -> None:
    # Step 14, six updates of SFT, then RL steps 21, 22, 23.
    alarms = {14: "act", 21: "act", 23: "act"}
    assert kinds(play(Guarded(grace=3), 40, alarms)) == ["rl", "sft", "rl"]
    assert kinds(play(Guarded(grace=2), 40, alarms)) == ["rl", "sft", "rl", "rollback", "sft", "rl"]


def test_a_relapse_climbs_the_ladder_and_a_late_alarm_starts_anew() -> None:
    phases = play(Guarded(relapse=15, margin=5), 60, {14: "act", 30: "act"})
    assert kinds(phases) == ["rl", "sft", "rl", "rollback", "sft", "rl"]
    assert phases[3] == Rollback(25)
    assert phases[5] == RL(36, until="act", grace=3, lr_factor=0.5)
    late = play(Guarded(relapse=15), 60, {14: "act", 40: "act"})
    assert kinds(late) == ["rl", "sft", "rl", "sft", "rl"]


def test_the_last_rung_stops_the_run() -> None:
    phases = play(Guarded(grace=1), 60, {14: "act", 24: "act", 36: "act"})
    assert kinds(phases) == ["rl", "sft", "rl", "rollback", "sft", "rl"]
    assert kinds(play(Guarded(ladder=("stop",)), 60, {14: "act"})) == ["rl"]


def test_it_never_answers_more_often_than_its_budget() -> None:
    always = dict.fromkeys(range(1, 10_000), "act")
    phases = play(Guarded(ladder=("sft",), budget=4, grace=1), 500, always)
    assert kinds(phases) == ["rl", "sft"] * 4 + ["rl"]


def test_a_penalty_is_raised_for_the_rest_of_the_run() -> None:
    phases = play(Guarded(ladder=("kl",), beta=0.2), 30, {8: "act"})
    assert phases == [RL(30, until="act"), RL(22, until="act", grace=3, beta=0.2)]


def test_the_inner_scheme_is_told_of_its_phase_as_one() -> None:
    phases = play(Guarded(inner="interleaved", knobs={"every": 20, "updates": 2}), 40, {14: "act"})
    assert kinds(phases) == ["rl", "sft", "rl", "sft", "rl", "sft"]
    assert [phase.steps for phase in phases] == [20, 6, 6, 2, 20, 2]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"ladder": ["sft", "rolback"]}, "unknown action .* 'rolback'; did you mean 'rollback'"),
        ({"inner": "guarded"}, "a guard guards another scheme"),
        ({"updates": 0}, "updates = 0 must be >= 1"),
        ({"lr_cut": 0.0}, r"lr_cut = 0.0 must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_is_one_line(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_scheme("guarded", knobs)


def test_an_unknown_inner_scheme_is_refused_at_its_first_phase() -> None:
    with pytest.raises(ConfigError, match="unknown scheme 'interleavd'"):
        play(Guarded(inner="interleavd"), 10, {})
