"""Onsets and classes of runs follow the rules that were fixed beforehand."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.onsets import (
    KINDS,
    Onsets,
    evaluation_means,
    onsets,
    reward_onset,
    structural_onset,
)


def every(steps: int, *values: float) -> list[tuple[int, float]]:
    """Evaluations at 0, steps, 2 steps …"""
    return [(place * steps, value) for place, value in enumerate(values)]


def rl(*shares: float) -> list[tuple[int, float]]:
    """Healthy shares of RL steps 1, 2 …"""
    return list(enumerate(shares, start=1))


WELL = rl(*[0.7] * 20)


def test_a_mean_is_over_the_evaluations_of_the_last_five_steps() -> None:
    assert evaluation_means(every(1, 1, 0, 0, 0, 0, 0))[-2:] == [(4, 0.2), (5, 0.0)]
    assert evaluation_means([(0, 0.2), (2, 0.4), (7, 0.8)]) == [
        (0, 0.2),
        (2, pytest.approx(0.3)),
        (7, 0.8),
    ]


def test_reward_begins_to_fall_where_it_is_below_half_for_good() -> None:
    assert reward_onset(every(10, 0.4, 0.6, 0.5, 0.29, 0.1, 0.0)) == 30


def test_exactly_half_is_not_below_half() -> None:
    assert reward_onset(every(10, 0.5, 0.25, 0.25)) is None


def test_a_fall_that_recovers_to_70_percent_is_no_onset() -> None:
    assert reward_onset(every(10, 0.6, 0.1, 0.42)) is None
    assert reward_onset(every(10, 0.6, 0.1, 0.41)) == 10


def test_the_onset_is_the_fall_that_lasted_not_one_before() -> None:
    assert reward_onset(every(10, 0.6, 0.1, 0.6, 0.2, 0.1)) == 30


def test_a_later_height_does_not_undo_what_is_measured_from_an_earlier_one() -> None:
    assert reward_onset(every(10, 0.4, 0.1, 0.2, 0.6, 0.5)) is None


def test_structure_breaks_where_three_steps_are_below_80_percent_of_the_start() -> None:
    assert structural_onset(rl(*[0.7] * 10, 0.5, 0.5, 0.5, 0.5)) == 13
    assert structural_onset(rl(*[0.7] * 10, 0.56, 0.56, 0.56, 0.56)) is None  # 80% exactly


def test_structure_that_recovers_on_average_is_no_onset() -> None:
    assert structural_onset(rl(*[0.7] * 10, 0.3, 0.3, 0.3, *[0.7] * 10)) is None


def test_a_noisy_base_is_measured_against_itself() -> None:
    assert structural_onset(rl(*[0.5] * 20)) is None
    assert structural_onset(rl(*[0.5] * 10, *[0.3] * 10)) == 12


def test_too_few_rl_steps_have_no_reference() -> None:
    assert structural_onset(rl(0.7, 0.7, 0.1, 0.1)) is None
    assert structural_onset([]) is None


@pytest.mark.parametrize(
    ("evaluations", "healthy", "expected"),
    [
        (every(10, 0.4, 0.5, 0.6), WELL, Onsets("healthy", None, None)),
        (every(10, 0.4, 0.5, 0.1), WELL, Onsets("collapsing", 20, None)),
        (every(10, 0.4, 0.5, 0.34), WELL, Onsets("ambiguous", None, None)),
        (every(10, 0.4, 0.5, 0.5), rl(*[0.7] * 5, *[0.2] * 9), Onsets("ambiguous", None, 6)),
        (every(10, 0.4, 0.1), rl(*[0.7] * 5, *[0.2] * 9), Onsets("collapsing", 10, 6)),
        (every(10, 0.4, 0.5), [], Onsets("healthy", None, None)),
        ([], WELL, Onsets("ambiguous", None, None)),
    ],
    ids=[
        *("rising", "reward gone", "half-way", "structure alone", "both", "SFT alone"),
        "never evaluated",
    ],
)
def test_classes(
    evaluations: list[tuple[int, float]], healthy: list[tuple[int, float]], expected: Onsets
) -> None:
    assert onsets(evaluations, healthy) == expected


def test_the_first_onset_is_the_earlier_one() -> None:
    assert Onsets("collapsing", 20, 15).first == 15
    assert Onsets("collapsing", 20, None).first == 20
    assert Onsets("healthy", None, None).first is None


@given(
    values=st.lists(st.integers(0, 64), min_size=1, max_size=20),
    apart=st.sampled_from([1, 2, 10]),
)
def test_classes_exclude_each_other_and_scale_does_not_matter(
    values: list[int], apart: int
) -> None:
    shares, halves = [v / 64 for v in values], [v / 128 for v in values]
    found = onsets(every(apart, *shares), WELL)
    assert found == onsets(every(apart, *halves), WELL)
    assert (found.kind == "collapsing") == (found.reward is not None)
    means = [mean for _, mean in evaluation_means(every(apart, *shares))]
    if found.kind == "healthy":
        assert means[-1] >= 0.7 * max(means)
    if found.kind == "ambiguous":
        assert means[-1] < 0.7 * max(means)


def test_every_pair_of_levels_has_one_class() -> None:
    kinds = {onsets(every(10, a, b), WELL).kind for a, b in product((0.2, 0.3, 0.6), repeat=2)}
    assert kinds == set(KINDS)
