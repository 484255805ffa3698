"""Schemes with invented outcomes: no model, no backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.errors import ConfigError
from toolrl_box.phases import RL, SFT, Context, GroupResult, Outcome, Phase, Scheme
from toolrl_box.schemes import SCHEMES, build_scheme
from toolrl_box.schemes.interleaved import Interleaved
from toolrl_box.schemes.rl import RLOnly
from toolrl_box.schemes.sft import SFTOnly
from toolrl_box.schemes.sft_then_rl import SFTThenRL
from toolrl_box.testing import echo_task

TASKS = {task.id: task for task in (echo_task([word]) for word in "abc")}
SOLVED, HARD, MIXED = TASKS
Answer = Callable[[Phase], Outcome]


def outcome_of(phase: Phase) -> Outcome:
    """Every RL phase solves one task, fails another and half solves the third."""
    if isinstance(phase, SFT):
        assert phase.steps is not None or phase.epochs
        return Outcome(phase.steps or phase.epochs)
    rewards = {SOLVED: (1.0, 1.0), HARD: (0.0, 0.0), MIXED: (1.0, 0.0)}
    return Outcome(phase.steps, tuple(GroupResult(1, t, r) for t, r in rewards.items()))


def solved(phase: Phase) -> Outcome:
    groups = (GroupResult(1, SOLVED, (1.0, 1.0)),) if isinstance(phase, RL) else ()
    return Outcome(phase.steps or 0, groups)


def run(scheme: Scheme, steps: int, answer: Answer = outcome_of) -> list[Phase]:
    """The phases that a scheme yields."""
    generator = scheme.phases(Context(steps, TASKS, build_scheme=build_scheme))
    phases = [next(generator)]
    while True:
        try:
            phases.append(generator.send(answer(phases[-1])))
        except StopIteration:
            return phases


def names(phase: Phase) -> list[str]:
    assert isinstance(phase, SFT)
    return [task.id for task in phase.tasks]


def test_rl_is_one_phase() -> None:
    assert run(RLOnly(), 60) == [RL(60)]


def test_interleaved_alternates_and_keeps_to_its_budget() -> None:
    phases = run(Interleaved(every=5, updates=4), 12)
    assert [phase.kind for phase in phases] == ["rl", "sft", "rl", "sft", "rl", "sft"]
    assert [phase.steps for phase in phases] == [5, 4, 5, 4, 2, 4]


@pytest.mark.parametrize(
    ("rule", "expected"), [("all_failed", [HARD]), ("any_failed", [HARD, MIXED])]
)
def test_interleaved_supervises_what_its_rule_selects(rule: str, expected: list[str]) -> None:
    phases = run(build_scheme("interleaved", {"rule": rule}), 5)
    assert names(phases[1]) == expected


def test_interleaved_counts_epochs_when_it_has_no_number_of_updates() -> None:
    (_, sft) = run(Interleaved(every=5, epochs=3, updates=0), 5)
    assert isinstance(sft, SFT)
    assert (sft.epochs, sft.steps) == (3, None)


def test_interleaved_goes_on_with_rl_when_all_is_solved() -> None:
    assert run(Interleaved(every=5), 12, solved) == [RL(5), RL(5), RL(2)]


def test_interleaved_without_supervision_is_rl_in_parts() -> None:
    assert run(Interleaved(every=5, epochs=0, updates=0), 12) == [RL(5), RL(5), RL(2)]


def test_interleaved_can_restart_the_moments_of_every_rl_phase() -> None:
    phases = run(Interleaved(every=5, fresh_optimizer=True), 10)
    assert [p.fresh_optimizer for p in phases if isinstance(p, RL)] == [True, True]


@given(every=st.integers(1, 9), steps=st.integers(1, 40), done=st.lists(st.integers(1, 9)))
def test_interleaved_ends_after_its_budget_also_when_phases_end_early(
    every: int, steps: int, done: list[int]
) -> None:
    early = iter(done)

    def answer(phase: Phase) -> Outcome:
        taken = phase.steps or 0
        return Outcome(min(next(early, taken), taken))

    phases = run(Interleaved(every=every), steps, answer)
    taken = [phase.steps for phase in phases]
    assert all(1 <= step <= every for step in taken if step is not None)
    assert len(phases) <= steps


def test_sft_goes_through_its_updates_a_phase_at_a_time() -> None:
    phases = run(SFTOnly(updates=12, every=5), 60)
    assert [phase.steps for phase in phases] == [5, 5, 2]
    assert all(names(phase) == list(TASKS) for phase in phases)


def test_sft_takes_as_many_updates_as_the_run_has_steps() -> None:
    assert sum(phase.steps or 0 for phase in run(SFTOnly(), 13)) == 13


def test_sft_can_match_the_updates_of_an_interleaved_run() -> None:
    mixed = [p for p in run(Interleaved(every=5, updates=4), 15) if isinstance(p, SFT)]
    updates = sum(phase.steps or 0 for phase in mixed)
    alone = run(SFTOnly(updates=updates, every=4), 15)
    assert [phase.steps for phase in alone] == [phase.steps for phase in mixed]


def test_sft_then_rl_does_what_it_says() -> None:
    sft, rl = run(SFTThenRL(updates=20), 60)
    assert (names(sft), sft.steps) == (list(TASKS), 20)
    assert rl == RL(60)
    assert run(SFTThenRL(updates=0), 60) == [RL(60)]
    (sft, _) = run(SFTThenRL(updates=0, epochs=3, sft_lr=1e-4), 60)
    assert sft == SFT(tuple(TASKS.values()), epochs=3, lr=1e-4)


def test_sft_then_rl_can_learn_from_another_domain() -> None:
    other = (echo_task(["x"]), echo_task(["y"]))
    scheme = build_scheme("sft_then_rl", {"data": "other_domain", "updates": 5})
    generator = scheme.phases(Context(60, TASKS, other_tasks=lambda: other))
    assert next(generator) == SFT(other, steps=5)
    assert generator.send(Outcome(5)) == RL(60)


def test_a_world_without_another_domain_is_refused_in_one_line() -> None:
    scheme = build_scheme("sft_then_rl", {"data": "other_domain"})
    with pytest.raises(ConfigError, match="no tasks of another domain"):
        next(scheme.phases(Context(60, TASKS)))


def test_rl_may_change_its_learning_rate_on_the_way() -> None:
    phases = run(build_scheme("rl", {"lengths": [2, 1], "rl_lr": [1e-3, 1e-4]}), 60)
    assert phases == [RL(40, lr=1e-3), RL(20, lr=1e-4)]


def test_interleaved_and_sft_may_have_rates_of_their_own() -> None:
    rl, sft = run(Interleaved(every=5, rl_lr=1e-4, sft_lr=1e-5), 5)
    assert (rl.lr, sft.lr) == (1e-4, 1e-5)
    assert {phase.lr for phase in run(SFTOnly(updates=9, sft_lr=1e-5), 5)} == {1e-5}


@pytest.mark.parametrize("name", SCHEMES)
def test_the_same_outcomes_give_the_same_phases(name: str) -> None:
    scheme = build_scheme(name, {})
    assert run(scheme, 17) == run(scheme, 17) == run(build_scheme(name, {}), 17)


@pytest.mark.parametrize("name", SCHEMES)
def test_rl_steps_never_exceed_the_budget(name: str) -> None:
    phases = run(build_scheme(name, {}), 17)
    assert sum(phase.steps for phase in phases if isinstance(phase, RL)) <= 17


def test_knobs_are_the_fields_of_the_scheme() -> None:
    scheme = build_scheme("interleaved", {"every": 3, "rule": "all_failed"})
    assert scheme == Interleaved(every=3, rule="all_failed")


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("interleavd", {}, r"unknown scheme 'interleavd'; did you mean 'interleaved'\? one of:"),
        (
            "interleaved",
            {"evry": 3},
            r"unknown key 'scheme.evry' for scheme 'interleaved'; did you mean 'every'\? one of: ",
        ),
        ("rl", {"every": 3}, "unknown key 'scheme.every' for scheme 'rl'; one of: lengths, rl_lr"),
        ("interleaved", {"every": "often"}, "scheme.every = 'often': input should be a valid int"),
        ("interleaved", {"every": 0}, "every = 0 must be >= 1"),
        ("interleaved", {"rule": "some_failed"}, "scheme.rule = 'some_failed'"),
        ("interleaved", {"updates": -1}, "updates = -1"),
        ("sft", {"every": 0}, "every = 0"),
        ("sft_then_rl", {"updates": -1}, "updates = -1 must be >= 0"),
        ("sft_then_rl", {"data": "other"}, "scheme.data = 'other'"),
        ("sft_then_rl", {"sft_lr": 0}, "sft_lr = 0.0 must be a finite number above 0"),
        ("erroneous", {"rule": "some"}, "scheme.rule = 'some'"),
        ("erroneous", {"lengths": []}, r"lengths = \[\] not empty"),
        ("erroneous", {"lengths": [5, 0]}, r"lengths = \[5, 0\]: each must be >= 1"),
        ("erroneous", {"window": 0}, "window = 0 must be >= 1"),
        ("erroneous", {"rl_lr": [1e-3, 1e-4]}, "rl_lr has 2 values for 3 phases"),
        ("reflection", {"texts": 3}, "texts = 3 must be 0, 1 or 2"),
        ("reflection", {"trajectories": -1}, "trajectories = -1 >= 0"),
        ("interleaved", {"rl_lr": -1}, "rl_lr = -1.0 must be a finite number above 0"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    name: str, knobs: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build_scheme(name, knobs)
    assert "\n" not in str(raised.value)


def test_a_scheme_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="unknown rule of scheme interleaved 'some'"):
        Interleaved(rule="some")  # type: ignore[arg-type]
