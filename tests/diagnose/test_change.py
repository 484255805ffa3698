"""Change points on invented curves whose change is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toolrl_box.curves import Curve
from toolrl_box.diagnose.change import change_point, jumps

REFERENCE = Path(__file__).parents[1] / "data" / "ruptures.json"
Make = Callable[[np.random.Generator], tuple[np.ndarray, int]]


def curve(values: np.ndarray) -> Curve:
    return Curve(tuple(range(1, len(values) + 1)), tuple(float(v) for v in values))


def jump(count: int, place: int, size: float) -> Make:
    """Down by ``size`` deviations from point ``place`` on."""
    return lambda rng: (rng.normal(0, 1, count) - size * (np.arange(count) >= place), place)


def decline(count: int, start: int, end: int, size: float) -> Make:
    """Down in a line; the first point that is lower is ``start``."""
    line = np.interp(np.arange(count), [start - 1, end], [0.0, -size])
    return lambda rng: (rng.normal(0, 1, count) + line, start)


def test_a_single_jump_is_where_ruptures_finds_it() -> None:
    rows = json.loads(REFERENCE.read_text())["rows"]
    for row in rows:
        x = np.asarray(row["curve"])
        upward = x[row["change"] :].mean() > x[: row["change"]].mean()
        found = int(jumps((x if upward else -x)[None, :])[0])
        assert found == row["change"]
    assert len(rows) == 40


@pytest.mark.parametrize(
    "make",
    [jump(60, 30, 2.0), jump(60, 20, 1.5), decline(60, 20, 39, 6.0)],
    ids=["2sd", "1.5sd early", "decline"],
)
def test_the_interval_holds_the_true_step(make: Make) -> None:
    """100 seeds each; docs/diagnose.md has the figures of 300 seeds and more curves."""
    held = found = 0
    for seed in range(100):
        values, truth = make(np.random.default_rng(seed))
        change = change_point(curve(values), "down", seed)
        if change is not None:
            found += 1
            held += change.low <= truth + 1 <= change.high
    assert found >= 95
    # A sound 95% interval holds 88 of 100 or fewer once in 500 times.
    assert held / found >= 0.88


def test_noise_alone_has_no_change_point() -> None:
    found = [
        change_point(curve(np.random.default_rng(seed).normal(0, 1, 60)), "down", seed)
        for seed in range(100)
    ]
    assert sum(change is not None for change in found) <= 8


def test_a_change_in_the_other_direction_is_none() -> None:
    values = np.r_[np.zeros(20), np.ones(20)] + 0.01 * np.sin(np.arange(40))
    assert change_point(curve(values), "down") is None
    change = change_point(curve(values), "up")
    assert change is not None
    assert (change.step, change.agree) == (21, True)
    assert (change.before, change.after) == pytest.approx((0.0, 1.0), abs=0.02)


def test_fewer_than_ten_points_are_not_judged() -> None:
    assert change_point(curve(np.r_[np.zeros(5), np.ones(4)]), "up") is None


def test_a_rise_before_the_fall_does_not_hide_it() -> None:
    rng = np.random.default_rng(3)
    values = np.r_[np.linspace(0.2, 0.6, 40), np.zeros(20)] + rng.normal(0, 0.05, 60)
    change = change_point(curve(values), "down")
    assert change is not None
    assert change.step == 41


def test_a_very_long_curve_is_averaged_and_keeps_its_own_steps() -> None:
    rng = np.random.default_rng(5)
    values = np.r_[np.ones(1200), np.zeros(800)] + rng.normal(0, 0.1, 2000)
    change = change_point(Curve(tuple(range(0, 20000, 10)), tuple(values)), "down")
    assert change is not None
    assert change.low <= 12000 <= change.high
    assert abs(change.step - 12000) <= 90


def test_the_same_seed_gives_the_same_interval() -> None:
    values, _ = jump(60, 30, 1.5)(np.random.default_rng(1))
    assert change_point(curve(values), "down", 7) == change_point(curve(values), "down", 7)
