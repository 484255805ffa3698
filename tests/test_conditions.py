"""Conditions combine signals; a composed detector alarms where they hold and scores for fitting."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.conditions import Above, AllOf, AnyOf, Composed, Condition
from toolrl_box.detectors import Detector, Scored
from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.drift import Drift
from toolrl_box.detectors.level import Level
from toolrl_box.detectors.log import Log
from toolrl_box.detectors.negate import Negate
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.types import Alarm, Reading


def above(signal: str, threshold: float) -> Above:
    return Above(signal, [Level()], threshold)


def alarms(detector: Detector, steps: list[dict[str, float]]) -> list[Alarm]:
    found = [detector.update(Reading(step, values)) for step, values in enumerate(steps)]
    return [alarm for alarm in found if alarm is not None]


def at(condition: Condition, steps: list[dict[str, float]]) -> list[int]:
    return [alarm.step for alarm in alarms(Composed("one", "act", condition), steps)]


AB = [{"a": a, "b": b} for a in (0.0, 2.0) for b in (0.0, 2.0)]


def test_above_is_strict() -> None:
    assert at(above("a", 1.0), [{"a": 1.0}, {"a": 1.1}]) == [1]


def test_all_of_and_any_of() -> None:
    assert at(AllOf([above("a", 1), above("b", 1)]), AB) == [3]
    assert at(AnyOf([above("a", 1), above("b", 1)]), AB) == [1, 2, 3]


def test_a_fall_is_a_rise_upside_down() -> None:
    assert at(Above("a", [Negate()], -0.5), [{"a": 0.6}, {"a": 0.4}]) == [1]


def test_an_alarm_shows_the_figure_that_made_it() -> None:
    both = Composed("both", "warn", AllOf([above("a", 1), above("b", 0)]))
    assert both.update(Reading(7, {"a": 2.0, "b": 3.0})) == Alarm("both", 7, 2.0, 1, "warn")
    either = Composed("either", "act", AnyOf([above("a", 1), above("b", 0)]))
    assert either.update(Reading(7, {"a": 0.5, "b": 3.0})) == Alarm("either", 7, 3.0, 0, "act")


def test_a_missing_signal_holds_nothing_and_moves_nothing() -> None:
    steps = [{"a": 1.0}] * 5 + [{"a": 3.0}]
    gaps = [one for step in steps for one in (step, {"b": 9.0})]
    drift = [Above("a", [Drift(smoothing=1.0)], 1.0) for _ in range(2)]
    assert at(drift[0], steps) == [5]
    assert at(drift[1], gaps) == [10]


def test_every_part_follows_its_signal_whether_or_not_the_others_hold() -> None:
    condition = AllOf([above("a", 1.0), Above("b", [Drift(smoothing=1.0)], 1.0)])
    quiet, loud = {"a": 0.0, "b": 1.0}, {"a": 2.0, "b": 3.0}
    assert at(condition, [quiet] * 5 + [loud]) == [5]


def test_the_score_is_the_leading_figure_where_the_others_allow_an_alarm() -> None:
    both = Composed("both", "act", AllOf([above("a", 99.0), above("b", 1.0)]))
    assert [both.score(Reading(0, values)) for values in AB] == [None, 0.0, None, 2.0]
    either = Composed("either", "act", AnyOf([above("a", 99.0), above("b", 1.0)]))
    assert [either.score(Reading(0, values)) for values in AB] == [0.0, math.inf, 2.0, math.inf]
    assert either.score(Reading(0, {})) is None
    leading_holds = Composed("either", "act", AnyOf([above("a", 1.0), above("b", 1.0)]))
    assert leading_holds.score(Reading(0, {"a": 2.0, "b": 0.0})) == 2.0


levels = st.sampled_from([0.0, 1.0, 2.0])
trees = st.recursive(
    st.builds(above, st.sampled_from("abc"), levels),
    lambda parts: st.builds(
        lambda kind, several: kind(several),
        st.sampled_from([AllOf, AnyOf]),
        st.lists(parts, min_size=2, max_size=3),
    ),
    max_leaves=5,
)


def leading(condition: Condition) -> Above:
    while not isinstance(condition, Above):
        assert isinstance(condition, (AllOf, AnyOf))
        condition = condition.parts[0]
    return condition


@given(
    tree=trees,
    values=st.dictionaries(st.sampled_from("abc"), st.floats(-1, 3)),
)
def test_a_detector_alarms_exactly_where_its_score_is_above_the_leading_threshold(
    tree: Condition, values: dict[str, float]
) -> None:
    detector = Composed("one", "act", tree)
    score = detector.score(Reading(0, values))
    alarm = detector.update(Reading(0, values))
    assert (alarm is not None) == (score is not None and score > leading(tree).threshold)
    assert alarm is None or alarm.value > alarm.threshold


streams = st.lists(
    st.fixed_dictionaries(
        {"bank_nll": st.floats(0, 5), "bank_kl": st.floats(0, 1)},
        optional={"unhealthy": st.floats(0, 1)},
    ),
    max_size=30,
)


def damaged() -> Above:
    return Above("bank_nll", [Log(), Drift()], math.log(1.5))


@given(steps=streams)
def test_damage_is_a_composition(steps: list[dict[str, float]]) -> None:
    whole = alarms(Damage(), steps)
    assert at(damaged(), steps) == [alarm.step for alarm in whole]
    assert at(AllOf([damaged(), above("bank_kl", 0.25)]), steps) == [
        alarm.step for alarm in whole if alarm.level == "act"
    ]


@given(steps=streams)
def test_unhealthy_is_a_composition(steps: list[dict[str, float]]) -> None:
    composed = Composed("one", "act", Above("unhealthy", [Drift()], 0.12))
    form = {a.step: a.value - a.threshold for a in alarms(Unhealthy(), steps)}
    mine = {a.step: a.value - a.threshold for a in alarms(composed, steps)}
    # The same figure up to the order of a sum: they may differ where they touch the threshold.
    for step in form.keys() ^ mine.keys():
        assert abs({**form, **mine}[step]) < 1e-9
    for step in form.keys() & mine.keys():
        assert form[step] == pytest.approx(mine[step])


@given(steps=streams, cut=st.integers(0, 30))
def test_a_restored_detector_goes_on_exactly(steps: list[dict[str, float]], cut: int) -> None:
    def fresh() -> Composed:
        return Composed("one", "act", AllOf([damaged(), AnyOf([damaged(), above("bank_kl", 0.5)])]))

    whole, before, after = fresh(), fresh(), fresh()
    expected = [whole.update(Reading(s, v)) for s, v in enumerate(steps)]
    for s, v in enumerate(steps[:cut]):
        before.update(Reading(s, v))
    after.restore(json.loads(json.dumps(before.state(), allow_nan=False)))
    found = [after.update(Reading(s, v)) for s, v in list(enumerate(steps))[cut:]]
    assert found == expected[cut:]
    assert after.state() == whole.state()


def test_composed_is_scored_and_the_forms_are_not() -> None:
    assert isinstance(Composed("one", "act", damaged()), Scored)
    assert not isinstance(Damage(), Scored)
