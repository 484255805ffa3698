"""Each statistic says what its docstring says, goes on exactly after a restart, and forgets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.detectors import DETECTORS, STATISTICS, Statistic
from toolrl_box.detectors.acceleration import Acceleration
from toolrl_box.detectors.cusum import Cusum
from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.drawdown import Drawdown
from toolrl_box.detectors.drift import Drift
from toolrl_box.detectors.ewma import Ewma
from toolrl_box.detectors.level import Level
from toolrl_box.detectors.log import Log
from toolrl_box.detectors.negate import Negate
from toolrl_box.detectors.page_hinkley import PageHinkley
from toolrl_box.detectors.persistence import Persistence
from toolrl_box.detectors.slope import Slope
from toolrl_box.errors import ConfigError
from toolrl_box.types import Reading

RIVER = json.loads((Path(__file__).parents[1] / "data" / "river.json").read_text())

figures = st.lists(st.floats(0, 10), min_size=1, max_size=40)


def fed(statistic: Statistic, xs: list[float]) -> list[float | None]:
    return [statistic.update(x) for x in xs]


def test_names_are_those_of_the_table() -> None:
    assert {name: make().name for name, make in STATISTICS.items()} == {n: n for n in STATISTICS}


@pytest.mark.parametrize("name", STATISTICS)
@given(xs=figures, at=st.integers(0, 40))
def test_a_restored_statistic_goes_on_exactly(name: str, xs: list[float], at: int) -> None:
    uninterrupted, before, after = (STATISTICS[name]() for _ in range(3))
    expected = fed(uninterrupted, xs)
    fed(before, xs[:at])
    after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))
    assert fed(after, xs[at:]) == expected[at:]
    assert after.state() == uninterrupted.state()


@pytest.mark.parametrize("name", STATISTICS)
def test_a_state_that_was_taken_does_not_move(name: str) -> None:
    statistic = STATISTICS[name]()
    statistic.update(1.0)
    state = statistic.state()
    taken = json.dumps(state)
    other = STATISTICS[name]()
    other.restore(state)
    fed(statistic, [2.0, 3.0])
    fed(other, [4.0, 5.0])
    assert json.dumps(state) == taken


@pytest.mark.parametrize("name", STATISTICS)
def test_the_state_does_not_grow_with_the_run(name: str) -> None:
    sizes = []
    for steps in (50, 5000):
        statistic = STATISTICS[name]()
        fed(statistic, [float(x % 7) for x in range(steps)])
        sizes.append([len(v) for v in statistic.state().values() if isinstance(v, list)])
    assert sizes[0] == sizes[1]


RISING: dict[str, Callable[[], Statistic]] = {
    name: make
    for name, make in STATISTICS.items()
    if name not in ("negate", "acceleration", "drawdown")
}


@pytest.mark.parametrize("name", RISING)
def test_a_rise_that_lasts_is_seen_at_its_height(name: str) -> None:
    values = fed(RISING[name](), [1.0] * 10 + [1.0 + 0.2 * x for x in range(20)])
    quiet = [value for value in values[:10] if value is not None]
    assert values[-1] is not None
    assert values[-1] > max(quiet)


@pytest.mark.parametrize("name", ["drift", "ewma", "cusum", "page_hinkley", "slope"])
def test_a_fall_is_no_rise(name: str) -> None:
    values = fed(STATISTICS[name](), [3.0 - 0.1 * x for x in range(25)])
    assert all(value <= 1e-12 for value in values if value is not None)


@pytest.mark.parametrize("name", ["drift", "ewma", "cusum", "page_hinkley", "slope"])
def test_a_fall_upside_down_is_a_rise(name: str) -> None:
    statistic, upside_down = STATISTICS[name](), Negate()
    values = fed(statistic, [upside_down.update(3.0 - 0.1 * x) for x in range(25)])
    assert values[-1] is not None
    assert values[-1] > 0.05


@given(xs=figures)
def test_a_level_is_the_signal(xs: list[float]) -> None:
    assert fed(Level(), xs) == xs


@given(xs=figures)
def test_the_drift_of_logs_is_the_damage_of_the_prototype(xs: list[float]) -> None:
    log, drift, damage = Log(), Drift(), Damage(ratio=0.0)
    for step, x in enumerate(xs):
        mine = drift.update(log.update(x))
        alarm = damage.update(Reading(step, {"bank_nll": x, "bank_kl": 0.0}))
        assert (mine is None) == (alarm is None)
        if mine is not None and alarm is not None:
            assert math.exp(mine) == alarm.value


def test_a_drawdown_is_the_share_of_the_height_that_is_lost() -> None:
    statistic = Drawdown(reference_steps=2, smoothing=0.5)
    assert fed(statistic, [0.3, 0.5]) == [None, None]  # it begins with their mean, .4
    rising, height, falling = fed(statistic, [0.6, 0.7, 0.0])
    assert (rising, height) == (0.0, 0.0)  # .5, then .6
    assert falling == pytest.approx(0.5)


@given(xs=figures)
def test_a_drawdown_is_a_share_and_nothing_to_lose_is_none_lost(xs: list[float]) -> None:
    values = fed(Drawdown(), xs)
    assert all(0 <= value <= 1 for value in values if value is not None)
    assert set(fed(Drawdown(), [0.0] * 9)) == {None, 0.0}


def test_a_figure_below_zero_counts_as_zero_in_a_log() -> None:
    assert Log(offset=0.5).update(-1e-9) == math.log(0.5)


def test_ewma_counts_deviations_of_the_smoothed_signal() -> None:
    statistic = Ewma(reference_steps=3, smoothing=0.5)
    assert fed(statistic, [1.0, 2.0, 3.0]) == [None] * 3
    first, second = fed(statistic, [4.0, 4.0])
    assert first == pytest.approx(1.0 / 0.5)  # half of the excess; variance (1/4) sd^2
    assert second == pytest.approx(1.5 / math.sqrt(0.25 + 0.0625))


def test_ewma_of_noise_has_the_deviation_that_it_claims() -> None:
    rng = np.random.default_rng(0)
    last = []
    for _ in range(400):
        statistic = Ewma(reference_steps=400)
        last.append(fed(statistic, rng.normal(5.0, 2.0, size=410).tolist())[-1])
    assert np.std(np.array(last, dtype=float)) == pytest.approx(1.0, abs=0.12)


def test_a_reference_without_noise_is_not_believed() -> None:
    assert fed(Cusum(floor=0.1), [1.0] * 5 + [1.1])[-1] == pytest.approx(0.5)
    assert fed(Ewma(floor=0.1, smoothing=1.0), [1.0] * 5 + [1.1])[-1] == pytest.approx(1.0)


def test_cusum_adds_up_what_exceeds_the_allowance() -> None:
    statistic = Cusum(reference_steps=3, allowance=0.5)
    assert fed(statistic, [1.0, 2.0, 3.0]) == [None] * 3  # mean 2, deviation 1
    assert fed(statistic, [3.0, 4.0, 2.0, 0.0, 3.0]) == pytest.approx([0.5, 2.0, 1.5, 0.0, 0.5])


@pytest.mark.parametrize("case", RIVER["cases"], ids=lambda c: f"{c['stream']}-{c['settings']}")
def test_page_hinkley_is_rivers(case: dict[str, Any]) -> None:
    settings = dict(case["settings"])
    least = settings.pop("min_instances")
    values = fed(PageHinkley(least=least, **settings), RIVER["inputs"][case["stream"]])
    assert values[: least - 1] == [None] * (least - 1)
    assert values[least - 1 :] == pytest.approx(case["statistic"][least - 1 :], abs=1e-12)
    above = [i for i, v in enumerate(values) if v is not None and v > RIVER["threshold"]]
    assert (above[0] if above else None) == case["first_drift"]


def test_some_of_rivers_cases_alarm_and_some_do_not() -> None:
    assert len({case["first_drift"] is None for case in RIVER["cases"]}) == 2


@given(xs=st.lists(st.floats(-5, 5), min_size=4, max_size=30), window=st.integers(2, 8))
def test_the_slope_is_that_of_least_squares(xs: list[float], window: int) -> None:
    value = fed(Slope(window=window), xs)[-1]
    if len(xs) < window:
        assert value is None
    else:
        expected = np.polyfit(range(window), xs[-window:], 1)[0]
        assert value == pytest.approx(expected, abs=1e-9)


def test_acceleration_is_the_second_difference_per_step() -> None:
    values = fed(Acceleration(half=2), [float(x * x) for x in range(8)])
    assert values[:4] == [None] * 4
    # The mean step grows by 2 a step, over the 2 steps between the middles of the halves.
    assert values[4:] == [4.0] * 4


@given(xs=figures, k=st.integers(1, 4), more=st.integers(0, 3), level=st.floats(0, 10))
def test_persistence_exceeds_a_level_when_k_of_the_last_n_do(
    xs: list[float], k: int, more: int, level: float
) -> None:
    value = fed(Persistence(k=k, of=k + more), xs)[-1]
    above = sum(x > level for x in xs[-k - more :])
    assert (value is not None and value > level) == (above >= k)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Log(offset=0.0), "log: offset = 0.0 must be > 0"),
        (lambda: Drift(reference_steps=0), "drift: reference_steps = 0 must be >= 1"),
        (lambda: Drift(smoothing=0.0), "drift: smoothing = 0.0 must be above 0, at most 1"),
        (lambda: Ewma(reference_steps=1), "ewma: reference_steps = 1 must be >= 2"),
        (lambda: Ewma(smoothing=1.5), "ewma: smoothing = 1.5 must be above 0"),
        (lambda: Ewma(floor=0.0), "ewma: floor = 0.0 must be > 0"),
        (lambda: Cusum(reference_steps=1), "cusum: reference_steps = 1 must be >= 2"),
        (lambda: Cusum(allowance=-1.0), "cusum: allowance = -1.0 must be >= 0"),
        (lambda: PageHinkley(least=0), "page_hinkley: least = 0 must be >= 1"),
        (lambda: PageHinkley(alpha=0.0), "page_hinkley: alpha = 0.0 must be above 0"),
        (lambda: Slope(window=1), "slope: window = 1 must be >= 2"),
        (lambda: Acceleration(half=0), "acceleration: half = 0 must be >= 1"),
        (lambda: Persistence(k=4), "persistence: k = 4 must be at least 1 and at most of = 3"),
    ],
)
def test_a_knob_out_of_range_is_refused_in_one_line(
    make: Callable[[], Statistic], says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert says in str(error.value)


def test_statistics_and_forms_have_names_of_their_own() -> None:
    assert not set(STATISTICS) & set(DETECTORS)


def test_damage_grows_with_every_step_of_a_rise() -> None:
    log, drift = Log(), Drift()
    values = [drift.update(log.update(0.5 * 1.2 ** max(0, x - 5))) for x in range(20)]
    seen = [value for value in values if value is not None]
    assert all(after > before for before, after in pairwise(seen[1:]))
