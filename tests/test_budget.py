"""Thresholds promise what an order statistic can promise, and nothing is promised without runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.budget import check_budget, threshold
from toolrl_box.errors import ConfigError
from toolrl_box.stats import proportion_interval


def test_with_19_runs_the_highest_of_them_is_the_threshold_for_one_in_twenty() -> None:
    found = threshold([float(x) for x in range(19)], 0.05)
    assert found.value == 18.0
    assert (found.above, found.runs, found.expected) == (0, 19, 0.05)
    assert found.upper == pytest.approx(1 - 0.05 ** (1 / 19))


def test_with_39_runs_one_may_exceed_it() -> None:
    found = threshold([float(x) for x in range(39)], 0.05)
    assert (found.value, found.above, found.expected) == (37.0, 1, 0.05)


def test_the_bound_is_the_one_sided_clopper_pearson_bound() -> None:
    found = threshold([float(x) for x in range(39)], 0.05)
    assert found.upper == pytest.approx(proportion_interval(1, 39, level=0.9).high)


def test_ties_exceed_nothing() -> None:
    assert threshold([1.0] * 39, 0.05)[:2] == (1.0, 0)


@pytest.mark.parametrize(("budget", "runs", "needs"), [(0.05, 18, 19), (0.1, 8, 9), (0.01, 0, 99)])
def test_too_few_runs_are_refused_with_the_number_that_is_needed(
    budget: float, runs: int, needs: int
) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{runs} healthy.*--false-alarms {budget} needs {needs}$"
    ):
        check_budget(budget, runs)
    check_budget(budget, needs)


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.1, 5.0])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and below 1"):
        check_budget(budget, 100)


@given(
    maxima=st.lists(st.floats(-5, 5), min_size=1, max_size=60),
    budget=st.floats(0.01, 0.9),
)
def test_the_budget_is_kept_on_the_runs_themselves(maxima: list[float], budget: float) -> None:
    if 1 / (len(maxima) + 1) > budget:
        return
    found = threshold(maxima, budget)
    assert found.above == sum(x > found.value for x in maxima)
    assert found.above / len(maxima) <= budget
    assert found.expected <= budget + 1e-9
    assert found.upper > found.expected / 2


def test_fresh_runs_alarm_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    alarms = [rng.random() > threshold(rng.random(29).tolist(), 0.1).value for _ in range(4000)]
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.015)
