"""What a scheme gets back, and which tasks it supervises."""

from __future__ import annotations

import json

import pytest

from toolrl_box.phases import RL, SFT, GroupResult, Outcome, RolloutKey, failures, unsolved
from toolrl_box.testing import echo_task
from toolrl_box.types import Alarm

A, B, C = (echo_task([word]) for word in "abc")
TASKS = {task.id: task for task in (A, B, C)}


def groups(*pairs: tuple[str, tuple[float, ...]]) -> Outcome:
    return Outcome(1, tuple(GroupResult(1, task_id, rewards) for task_id, rewards in pairs))


def test_all_failed_is_stricter_than_any_failed() -> None:
    outcome = groups((A.id, (0.0, 0.0)), (B.id, (0.0, 1.0)), (C.id, (1.0, 1.0)))
    assert unsolved(outcome, TASKS, "all_failed") == (A,)
    assert unsolved(outcome, TASKS, "any_failed") == (A, B)


def test_a_part_of_the_reward_is_still_a_failure() -> None:
    assert unsolved(groups((A.id, (0.9, 0.99))), TASKS, "all_failed") == (A,)


def test_each_task_comes_once_in_order_of_appearance() -> None:
    outcome = groups((B.id, (0.0,)), (A.id, (0.0,)), (B.id, (0.0,)))
    assert unsolved(outcome, TASKS, "any_failed") == (B, A)


def test_a_window_counts_the_steps_of_the_outcome_from_its_end() -> None:
    outcome = Outcome(3, tuple(GroupResult(s, t.id, (0.0,)) for s, t in ((7, A), (8, B), (9, C))))
    assert unsolved(outcome, TASKS, "any_failed", window=2) == (B, C)
    assert unsolved(outcome, TASKS, "any_failed", window=99) == (A, B, C)


def test_failures_name_the_latest_failed_rollout_of_each_task_as_the_run_log_does() -> None:
    results = (
        GroupResult(1, A.id, (0.0, 0.0)),
        GroupResult(1, B.id, (1.0, 0.5)),
        GroupResult(2, C.id, (1.0, 1.0)),
        GroupResult(2, A.id, (1.0, 0.0)),
    )
    b, a = RolloutKey(1, 1, 1, B.id), RolloutKey(2, 1, 1, A.id)
    assert failures(Outcome(2, results), "any_failed", None, 9) == (b, a)
    assert failures(Outcome(2, results), "any_failed", None, 1) == (a,)
    assert failures(Outcome(2, results), "any_failed", 1, 9) == (a,)
    assert failures(Outcome(2, results), "all_failed", None, 9) == (RolloutKey(1, 0, 0, A.id),)


def test_no_groups_need_no_supervision() -> None:
    assert unsolved(Outcome(5), TASKS, "any_failed") == ()


@pytest.mark.parametrize("alarm", [None, Alarm("damage", 7, 2.0, 1.5, "act")])
def test_an_outcome_survives_the_journal(alarm: Alarm | None) -> None:
    outcome = Outcome(2, (GroupResult(3, A.id, (0.0, 1.0)),), alarm)
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_phases_name_their_kind() -> None:
    assert (RL(1).kind, SFT((A,)).kind) == ("rl", "sft")
