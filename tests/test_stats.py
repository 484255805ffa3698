"""Statistics: against rliable as an oracle, against cases that can be worked out by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from toolrl_box import stats

DATA = Path(__file__).parent / "data"
STORED: dict[str, Any] = json.loads((DATA / "rliable.json").read_text())
SCORES = {name: np.array(rows) for name, rows in STORED["inputs"].items()}
# Two bootstraps of 5,000 and 50,000 replicates differ by chance; scores are rounded to 0.01.
MONTE_CARLO = 0.012


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """rliable's own answers: computed now where it is installed, else the stored ones."""
    if importlib.util.find_spec("rliable") is None:
        return dict(STORED["reference"])
    path = DATA / "make_rliable_reference.py"
    spec = importlib.util.spec_from_file_location("make_rliable_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.reference(STORED["inputs"]))


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_point_estimates_are_those_of_rliable(reference: dict[str, Any]) -> None:
    for name, scores in SCORES.items():
        assert stats.iqm(scores) == pytest.approx(reference["iqm"][name])
        shares = stats.profile(scores, np.array(STORED["thresholds"]))
        assert shares == pytest.approx(reference["profile"][name])
    for pair, expected in reference["improvement"].items():
        x, y = (SCORES[name] for name in pair.split(","))
        assert stats.improvement(x, y) == pytest.approx(expected)


def test_stratified_intervals_are_those_of_rliable(reference: dict[str, Any]) -> None:
    resampling: Any = {"resample": stats.resample_strata, "reps": 5000}
    thresholds = np.array(STORED["thresholds"])
    for name, scores in SCORES.items():
        ours = stats.iqm_interval(scores, rng(), **resampling)
        assert ours == pytest.approx(reference["iqm_interval"][name], abs=MONTE_CARLO)
        band = stats.bootstrap(scores, lambda s: stats.profile(s, thresholds), rng(), **resampling)
        # Shares move in steps of one score.
        assert np.abs(np.array(band) - reference["profile_band"][name]).max() < 1.5 / scores.size
    x, y = SCORES["x"], SCORES["y"]
    ours = stats.improvement_interval(x, y, rng(), **resampling)
    assert ours == pytest.approx(reference["improvement_interval"]["x,y"], abs=MONTE_CARLO)


def test_the_stored_reference_names_the_command_that_made_it() -> None:
    assert STORED["command"].endswith("make_rliable_reference.py")
    assert STORED["rliable"] == "1.2.0"


def test_the_iqm_forgets_the_extreme_quarters() -> None:
    scores = np.array([[-100.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]])
    assert stats.iqm(scores) == pytest.approx(np.mean([2.0, 3.0, 4.0, 5.0]))
    assert stats.iqm(np.array([[0.5]])) == 0.5


def test_improvement_counts_ties_half_and_its_two_directions_add_up_to_one() -> None:
    low, high = np.zeros((3, 2)), np.ones((4, 2))
    assert stats.improvement(high, low) == 1.0
    assert stats.improvement(low, low) == 0.5
    assert stats.improvement(SCORES["x"], SCORES["y"]) + stats.improvement(
        SCORES["y"], SCORES["x"]
    ) == pytest.approx(1.0)


def test_a_profile_falls_from_one_to_zero_and_counts_scores_strictly_above() -> None:
    scores = np.array([[0.2, 0.4], [0.4, 0.8]])
    assert stats.profile(scores, np.array([0.0, 0.4, 0.8])).tolist() == [1.0, 0.25, 0.0]


def test_whole_runs_stay_together_and_strata_are_drawn_apart() -> None:
    scores = np.array([[0.0, 0.0], [1.0, 1.0]])
    together = stats.resample_runs(scores, 500, rng())
    assert (together[..., 0] == together[..., 1]).all()
    apart = stats.resample_strata(scores, 500, rng())
    assert not (apart[..., 0] == apart[..., 1]).all()
    assert set(np.unique(apart[..., 0])) == {0.0, 1.0}


def test_scores_that_move_together_need_the_wider_interval() -> None:
    level = np.random.default_rng(1).random((8, 1))
    scores = np.repeat(level, 4, axis=1)
    narrow = stats.iqm_interval(scores, rng(), resample=stats.resample_strata)
    wide = stats.iqm_interval(scores, rng())
    assert wide.high - wide.low > 1.4 * (narrow.high - narrow.low)


def test_the_same_generator_state_gives_the_same_interval() -> None:
    assert stats.iqm_interval(SCORES["x"], rng()) == stats.iqm_interval(SCORES["x"], rng())


def test_bootstrap_intervals_of_a_mean_cover_it_about_as_often_as_they_say() -> None:
    source = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        low, high = stats.mean_interval(source.normal(size=20), rng(), reps=400)
        covered += low <= 0.0 <= high
    assert 170 <= covered <= 198  # a percentile interval of 20 values covers a little too rarely


def test_a_band_follows_the_mean_curve_and_vanishes_where_runs_agree() -> None:
    curves = np.array([[0.0, 0.2, 1.0], [0.0, 0.4, 1.0], [0.0, 0.9, 1.0]])
    low, high = stats.curve_band(curves, rng())
    assert low[[0, 2]].tolist() == high[[0, 2]].tolist() == [0.0, 1.0]
    assert 0.2 <= low[1] < curves[:, 1].mean() < high[1] <= 0.9


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 8), (8, 8), (3, 8), (40, 100)])
def test_exact_intervals_are_clopper_pearsons(hits: int, total: int) -> None:
    low, high = stats.proportion_interval(hits, total)
    assert low == pytest.approx(0 if hits == 0 else beta.ppf(0.025, hits, total - hits + 1))
    assert high == pytest.approx(1 if hits == total else beta.ppf(0.975, hits + 1, total - hits))


def test_no_interval_is_invented_for_one_run() -> None:
    one = np.array([[0.3, 0.4]])
    for refused in (
        lambda: stats.iqm_interval(one, rng()),
        lambda: stats.mean_interval(one[:, 0], rng()),
        lambda: stats.curve_band(one, rng()),
        lambda: stats.improvement_interval(SCORES["x"][:, :2], one, rng()),
    ):
        with pytest.raises(ValueError, match=r"1 run\(s\): an interval over runs needs at least 2"):
            refused()
