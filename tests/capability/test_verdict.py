"""The verdict on a collapsed checkpoint: thresholds, intervals, and what is no collapse."""

from __future__ import annotations

import numpy as np
import pytest

from toolrl_box.capability.verdict import HALF, INTACT, LOST, Verdict, judge

TASKS = 40


def solved(count: int, total: int = TASKS) -> np.ndarray:
    """Scores of which the first ``count`` are 1."""
    return np.arange(total) < count


def verdict(reference: int, checkpoint: int, *others: int, total: int = TASKS) -> Verdict:
    named = {f"way {i}": solved(count, total) for i, count in enumerate(others)}
    rng = np.random.default_rng(0)
    return judge(solved(reference, total), solved(checkpoint, total), named, rng)


def test_what_comes_back_nearly_whole_is_intact_and_obscured() -> None:
    made = verdict(30, 0, 27)
    assert made.name == "intact and obscured"
    assert made.recovered is not None
    assert made.recovered.share == pytest.approx(0.9)
    assert made.recovered.share >= INTACT
    assert HALF < made.recovered.low <= made.recovered.share <= made.recovered.high


def test_what_stays_away_is_lost() -> None:
    made = verdict(30, 0, 1)
    assert made.name == "lost"
    assert made.recovered is not None
    assert made.recovered.share <= LOST


def test_half_of_it_is_partly() -> None:
    assert verdict(30, 0, 15).name == "partly"


def test_too_few_tasks_make_no_strong_verdict() -> None:
    """The share is 5 of 6 as it is 25 of 30, but six tasks could have come out otherwise."""
    assert verdict(25, 0, 21).name == "intact and obscured"
    assert verdict(6, 0, 5, total=7).name == "partly"


def test_the_best_way_decides_and_each_is_told() -> None:
    made = verdict(30, 2, 2, 28, 10)
    assert made.best == "way 1"
    assert made.each is not None
    assert [way.share for way in made.each.values()] == pytest.approx([0, 26 / 28, 8 / 28])
    assert made.recovered is not None
    assert made.recovered.share == made.each["way 1"].share


def test_half_of_the_base_is_no_collapse_and_less_is() -> None:
    for checkpoint, name in ((20, "not collapsed"), (15, "not collapsed"), (14, "partly")):
        made = verdict(30, checkpoint, 22)
        assert made.name == name
        assert (made.recovered is None) == (name == "not collapsed")


def test_a_fall_that_could_be_chance_is_no_collapse() -> None:
    made = verdict(2, 0, 2)
    assert made.name == "not collapsed"
    assert made.fall.low <= 0 < made.fall.high


def test_a_base_that_solves_nothing_leaves_nothing_to_lose() -> None:
    assert verdict(0, 0, 0).name == "not collapsed"


def test_tasks_are_drawn_with_all_their_scores() -> None:
    """The counterfactual solves exactly what the base solves: paired, the share has no spread."""
    made = verdict(25, 0, 25)
    assert made.recovered is not None
    assert (made.recovered.low, made.recovered.high) == (1.0, 1.0)


def test_a_counterfactual_may_make_things_worse_or_better_than_the_base() -> None:
    worse, better = verdict(30, 5, 2), verdict(30, 5, 40)
    assert worse.recovered is not None
    assert better.recovered is not None
    assert worse.recovered.share < 0 < 1 < better.recovered.share


def test_the_same_seed_gives_the_same_verdict() -> None:
    assert verdict(30, 3, 17, 12) == verdict(30, 3, 17, 12)


def test_one_task_or_no_counterfactual_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        verdict(1, 0, 1, total=1)
    with pytest.raises(ValueError, match="no counterfactual"):
        verdict(30, 0)
