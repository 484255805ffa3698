"""Adding up: sums, groups, and bounds on everything that could grow."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

from toolrl_box.diagnose.aggregate import (
    EXAMPLES,
    EXCERPT,
    OTHERS,
    Aggregate,
    shown,
)
from toolrl_box.diagnose.blame import blame
from toolrl_box.diagnose.evidence import reward_of, spread_of
from toolrl_box.probe.states import KINDS
from toolrl_box.types import Finding

if TYPE_CHECKING:
    from tests.diagnose.conftest import Logs

HEALTHY = Finding("healthy_call", "call", 0, 4)
LOOP = Finding("collapsed", "loop", 0, 4)


def test_a_steps_reward_and_spread_are_those_of_its_rollouts_and_groups(logs: Logs) -> None:
    aggregate = Aggregate()
    for group, rewards in (("a", (0.0, 1.0)), ("b", (1.0, 1.0))):
        for reward in rewards:
            aggregate.add_rollout(logs.rollout(3, reward=reward, group=group), [("x", HEALTHY)])
    (found,) = aggregate.bins()
    assert reward_of(found) == 0.75
    assert spread_of(found) == 0.25  # of 0.5 and 0
    assert (found.first, found.last, found.messages) == (3, 3, 4)


def test_a_logged_mean_goes_before_that_of_the_logged_rollouts(logs: Logs) -> None:
    aggregate = Aggregate()
    aggregate.add_rollout(logs.rollout(0, reward=1.0), [("x", HEALTHY)])
    for record in logs.scalars(1, reward=lambda step: 0.25):
        aggregate.add_scalars(record)
    assert reward_of(aggregate.bins()[0]) == 0.25


def test_a_million_steps_become_few_rows_that_lose_nothing(logs: Logs) -> None:
    aggregate = Aggregate(max_bins=50)
    for step in range(0, 1_000_000, 997):
        finding = LOOP if step > 500_000 else HEALTHY
        aggregate.add_rollout(logs.rollout(step, reward=float(step > 500_000)), [("x", finding)])
    bins = aggregate.bins()
    assert 25 <= len(bins) <= 50
    assert sum(bin_.messages for bin_ in bins) == aggregate.messages == 1004
    assert sum(bin_.kinds.get("loop", 0) for bin_ in bins) == sum(
        1 for step in range(0, 1_000_000, 997) if step > 500_000
    )
    assert [bin_.first for bin_ in bins] == sorted(bin_.first or 0 for bin_ in bins)
    assert all(len(kept) <= EXAMPLES for b in bins for _, kept in b.examples.values())
    assert bins[0].first == 0
    assert bins[-1].last == 999_991


def test_steps_that_come_out_of_order_are_sorted(logs: Logs) -> None:
    aggregate = Aggregate(max_bins=4)
    for step in (9, 3, 7, 1, 5, 0, 8):
        aggregate.add_rollout(logs.rollout(step), [("x", HEALTHY)])
    bins = aggregate.bins()
    assert [bin_.first for bin_ in bins] == [0, 5, 8]
    assert [bin_.last for bin_ in bins] == [3, 7, 9]


def test_memory_does_not_grow_with_the_log(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolrl_box.diagnose.aggregate.MAX_OPEN_GROUPS", 200)

    def peak(rollouts: int) -> int:
        aggregate = Aggregate(max_bins=20)
        tracemalloc.start()
        for number in range(rollouts):
            rollout = logs.rollout(
                number,
                id=f"id {number}",
                group=f"group {number}",
                category=f"category {number}",
                model=f"model {number}",
            )
            text = f"<tag{number}> " + "x" * 2000
            aggregate.add_rollout(rollout, [(text, Finding("text_pollution", "stray_tag", 0, 9))])
        aggregate.bins()
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high

    peak(100)
    small, large = peak(700), peak(2100)
    assert large < 1.3 * small


def test_too_many_categories_and_figures_count_together(logs: Logs) -> None:
    aggregate = Aggregate()
    for number in range(200):
        aggregate.add_rollout(logs.rollout(0, category=f"c{number}"), [("x", HEALTHY)])
    (found,) = aggregate.bins()
    assert found.slices["category", OTHERS].rollouts == 200 - 48
    assert "category" in aggregate.left_out


def test_examples_are_a_seeded_sample(logs: Logs) -> None:
    def sample(seed: int) -> list[int]:
        aggregate = Aggregate(seed=seed)
        for number in range(500):
            aggregate.add_rollout(logs.rollout(0, id=str(number)), [("x", HEALTHY)])
        return sorted(int(message.rollout) for message in aggregate.examples())

    assert sample(1) == sample(1)
    assert len(sample(1)) == EXAMPLES
    assert len({number for seed in range(30) for number in sample(seed)}) > 40


def test_an_excerpt_is_cut_around_its_span(logs: Logs) -> None:
    text = "a" * 5000 + "<tool_call>" + "b" * 5000
    cut = shown(logs.rollout(0), 0, text, Finding("text_pollution", "stray_tag", 5000, 5011))
    assert len(cut.text) == EXCERPT
    assert cut.text[cut.start : cut.end] == "<tool_call>"
    whole = shown(logs.rollout(0), 0, "short", Finding("healthy_response", "response", 0, 5))
    assert (whole.text, whole.start, whole.end) == ("short", 0, 5)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"call", "response"}))
def test_every_defect_has_a_token_and_a_slot(kind: str) -> None:
    found = blame("Well <tool_call> then", Finding(KINDS[kind], kind, 5, 16))
    assert found.token
    assert found.slot


def test_a_misplaced_tag_is_named_as_it_stands() -> None:
    finding = Finding("text_pollution", "stray_tag", 5, 16)
    assert blame("Well <tool_call> then", finding).token == "<tool_call>"  # noqa: S105
