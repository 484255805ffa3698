"""The four alarms of the shipped sets, on invented courses and on runs that were logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from toolrl_box.detector_file import ComposedSpec, load, make, scorer
from toolrl_box.types import Reading
from toolrl_box.warning_data import Logged, load_dataset

FIRST_LOOKS = Path(__file__).parents[2] / "results" / "first_looks" / "data"
STEPS, BREAKS = 60, 30
Alarms = dict[tuple[str, str], int]


def course(
    nll: float = 0.5, kl: float = 0.1, unhealthy: float = 0.2, reward: float = 0.4
) -> list[Reading]:
    """Steady but for ripples until step 30; within ten steps it goes to the given figures."""
    readings = []
    for step in range(1, STEPS + 1):
        gone = min(1.0, max(0.0, (step - BREAKS) / 10))
        steady = {"bank_nll": 0.5, "bank_kl": 0.1, "unhealthy": 0.2, "reward": 0.4}
        ends = {"bank_nll": nll, "bank_kl": kl, "unhealthy": unhealthy, "reward": reward}
        ripple = 1 + 0.05 * math.sin(step)
        values = {k: (steady[k] + gone * (ends[k] - steady[k])) * ripple for k in steady}
        readings.append(Reading(step, values))
    return readings


def first_alarms(readings: list[Reading] | tuple[Reading, ...]) -> Alarms:
    """(detector, level) -> step, of the default set."""
    found: Alarms = {}
    detectors = make(load("default"))
    for reading in readings:
        for detector in detectors:
            alarm = detector.update(reading)
            if alarm is not None:
                found.setdefault((alarm.detector, alarm.level), reading.step)
    return found


COURSES: Mapping[str, tuple[Callable[[], list[Reading]], set[tuple[str, str]]]] = {
    "steady": (course, set()),
    "learning moves the policy": (partial(course, nll=0.3, kl=1.0, reward=0.8), set()),
    "damage": (partial(course, nll=1.5), {("damage", "warn")}),
    "damage and movement": (partial(course, nll=1.5, kl=0.6), {("damage", "act")}),
    "broken messages": (partial(course, unhealthy=0.6), {("unhealthy", "act")}),
    "content": (partial(course, reward=0.0), {("content", "warn")}),
    "less reward": (partial(course, reward=0.26), set()),
    "reward and messages": (partial(course, unhealthy=0.6, reward=0.0), {("unhealthy", "act")}),
}


@pytest.mark.parametrize("name", COURSES)
def test_the_default_tells_what_is_wrong_and_nothing_else(name: str) -> None:
    make_course, expected = COURSES[name]
    found = first_alarms(make_course())
    assert set(found) - {("damage", "warn")} == expected - {("damage", "warn")}
    assert expected <= set(found)
    assert all(step > BREAKS for step in found.values())


CANDIDATES = {
    "bank_nll": partial(course, nll=1.5),
    "bank_nll_and_kl": partial(course, nll=1.5, kl=0.6),
    "unhealthy_share": partial(course, unhealthy=0.6),
    "content": partial(course, reward=0.0),
}


def highest(spec: ComposedSpec, readings: list[Reading]) -> float:
    detector = scorer(spec)
    scores = [detector.score(reading) for reading in readings]
    return max((score for score in scores if score is not None), default=-math.inf)


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_of_the_guard_scores_highest_where_its_own_harm_is_done(name: str) -> None:
    spec = next(one for one in load("guard").detectors if one.name == name)
    assert isinstance(spec, ComposedSpec)
    quiet = highest(spec, course())
    assert highest(spec, CANDIDATES[name]()) > max(quiet, 0.0) + 0.2
    others = (course(kl=0.6), course(reward=0.5), course(unhealthy=0.1))
    assert all(highest(spec, other) < max(quiet, 0.0) + 0.2 for other in others)


@pytest.fixture(scope="module")
def logged() -> dict[str, Logged]:
    return {run.entry.run: run for run in load_dataset(FIRST_LOOKS)}


REAL: Mapping[str, Alarms] = {
    "rl/seed1": {("damage", "warn"): 11, ("damage", "act"): 12, ("unhealthy", "act"): 18},
    # Reward went before the messages did.
    "rl/seed8": {
        **{("damage", "warn"): 10, ("damage", "act"): 12},
        **{("content", "warn"): 15, ("unhealthy", "act"): 23},
    },
    "rl-low-lr/seed1": {},
    # More than half of the evaluated success is lost, and less of the reward in training.
    "interleaved/seed3": {("damage", "warn"): 117},
}


@pytest.mark.parametrize("run", REAL)
def test_the_default_on_a_run_that_was_logged(run: str, logged: dict[str, Logged]) -> None:
    assert first_alarms(logged[run].readings) == REAL[run]
