"""Detectors are quiet on a steady run, tell a collapse, and go on exactly after a restart."""

from __future__ import annotations

import json
import math

import pytest

from toolrl_box.detectors import DETECTORS, Detector
from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.types import Alarm, Reading


def reading(step: int, nll: float = 0.5, kl: float = 0.0, **values: float) -> Reading:
    return Reading(step, {"bank_nll": nll, "bank_kl": kl, **values})


def fed(detector: Detector, readings: list[Reading]) -> list[Alarm | None]:
    return [detector.update(one) for one in readings]


def test_names_are_those_of_the_table() -> None:
    assert {name: make().name for name, make in DETECTORS.items()} == {n: n for n in DETECTORS}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_steady_run_raises_no_alarm(name: str) -> None:
    steady = [reading(s, nll=0.5 + 0.02 * math.sin(s), kl=0.5, unhealthy=0.1) for s in range(100)]
    assert fed(DETECTORS[name](), steady) == [None] * 100


@pytest.mark.parametrize("name", DETECTORS)
def test_nothing_is_judged_within_the_reference_window(name: str) -> None:
    wild = [reading(step, nll=10.0**step, kl=9.0, unhealthy=step / 5) for step in range(5)]
    assert fed(DETECTORS[name](), wild) == [None] * 5


def collapse() -> list[Reading]:
    """Thirty steps, broken from step 10 on."""
    return [
        reading(s, 0.5, 0.1, unhealthy=0.1) if s < 10 else reading(s, 3.0, 2.0, unhealthy=0.6)
        for s in range(30)
    ]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_collapse_raises_an_alarm_to_act_that_says_why(name: str) -> None:
    alarms = [alarm for alarm in fed(DETECTORS[name](), collapse()) if alarm]
    assert 10 <= alarms[0].step <= 11
    assert len(alarms) >= 18
    for alarm in alarms:
        assert (alarm.detector, alarm.level) == (name, "act")
        assert alarm.value > alarm.threshold


def test_damage_without_movement_is_only_a_warning() -> None:
    readings = [reading(s, 0.5) for s in range(5)] + [reading(s, 3.0, kl=0.2) for s in range(5, 9)]
    assert {alarm.level for alarm in fed(Damage(), readings) if alarm} == {"warn"}


def test_movement_without_damage_is_none() -> None:
    readings = [reading(s, 0.5 * 0.9**s, kl=float(s)) for s in range(40)]
    assert fed(Damage(), readings) == [None] * 40


def test_the_value_of_damage_is_the_smoothed_ratio_to_the_start() -> None:
    detector = Damage(smoothing=1.0, ratio=1.5)
    fed(detector, [reading(s, 0.49) for s in range(5)])
    assert detector.update(reading(5, 0.73)) is None
    alarm = detector.update(reading(6, 0.99, kl=1.0))
    assert alarm is not None
    assert alarm.value == pytest.approx(2.0)
    assert alarm.threshold == 1.5


def test_one_bad_step_is_smoothed_away() -> None:
    readings = [reading(s, unhealthy=0.3 if s == 20 else 0.1) for s in range(40)]
    assert fed(Unhealthy(), readings) == [None] * 40


def test_unhealthy_is_relative_to_the_start() -> None:
    noisy = [reading(s, unhealthy=0.5) for s in range(40)]
    assert fed(Unhealthy(), noisy) == [None] * 40


def test_steps_without_messages_are_passed_over() -> None:
    with_sft = [one for pair in zip(collapse(), [reading(0)] * 30, strict=True) for one in pair]
    alarms = fed(Unhealthy(), with_sft)
    assert alarms[1::2] == [None] * 30
    assert alarms[::2] == fed(Unhealthy(), collapse())


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("at", [0, 3, 5, 11, 29])
def test_a_restored_detector_goes_on_exactly(name: str, at: int) -> None:
    uninterrupted, before, after = (DETECTORS[name]() for _ in range(3))
    expected = fed(uninterrupted, collapse())
    fed(before, collapse()[:at])
    after.restore(json.loads(json.dumps(before.state())))
    assert fed(after, collapse()[at:]) == expected[at:]
    assert after.state() == uninterrupted.state()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_restored_detector_shares_nothing_with_the_state(name: str) -> None:
    first, second = DETECTORS[name](), DETECTORS[name]()
    first.update(reading(0, unhealthy=0.1))
    second.restore(first.state())
    second.update(reading(1, unhealthy=0.1))
    assert len(first.state()["start"]) == 1
