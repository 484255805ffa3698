"""A detector file says which detectors watch a run; a bad one is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolrl_box import detector_file
from toolrl_box.conditions import Composed
from toolrl_box.detector_file import (
    Base,
    ComposedSpec,
    DetectorFile,
    can_alarm,
    dump,
    fitted,
    load,
    make,
)
from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.errors import ConfigError
from toolrl_box.runlog import RIGHT_TOKEN
from toolrl_box.types import Reading

DRIFT = {
    "signal": "bank_nll",
    "statistics": [{"name": "log"}, {"name": "drift", "smoothing": 1.0}],
    "above": 0.4,
}
KL = {"signal": "bank_kl", "statistics": [{"name": "level"}], "above": 0.25}


def one(when: Any = DRIFT, **changes: Any) -> dict[str, Any]:
    return {"version": 1, "detectors": [{"name": "one", "level": "act", "when": when} | changes]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], str]:
    def write(value: Any) -> str:
        path = tmp_path / "detector.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(path)

    return write


def test_the_default_has_the_two_forms_of_the_prototype_with_their_own_numbers() -> None:
    damage, unhealthy, content = make(load("default"))
    assert (damage, unhealthy) == (Damage(), Unhealthy())
    assert content.name == "content"
    assert "no threshold from data" in load("default").limits[1]


def test_what_a_detector_reads_decides_whether_it_can_ever_alarm() -> None:
    bank = ("bank_nll", "bank_kl")
    both, either = {"all_of": [DRIFT, KL]}, {"any_of": [DRIFT, KL]}
    for when, signals, can in (
        *((DRIFT, bank, True), (DRIFT, ("bank_kl",), False)),
        *((both, bank, True), (both, ("bank_kl",), False)),
        *((either, ("bank_kl",), True), (either, ("reward",), False)),
    ):
        (spec,) = DetectorFile.model_validate(one(when)).detectors
        assert can_alarm(spec, signals) == can
    assert [can_alarm(spec, bank) for spec in load("default").detectors] == [True, False, False]


@pytest.mark.parametrize("name", ["default", "guard", "field"])
def test_what_ships_is_sound_and_survives_writing(name: str, write: Callable[[Any], str]) -> None:
    file = load(name)
    assert file.limits
    assert load(write(dump(file))) == file


@pytest.mark.parametrize("name", ["guard", "field"])
def test_candidates_have_no_thresholds_and_watch_no_run(name: str) -> None:
    with pytest.raises(ConfigError, match="no threshold yet: fit it with `toolrl calibrate`"):
        make(load(name))


def test_the_example_of_the_documentation_is_a_detector_file(write: Callable[[Any], str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "warning.md").read_text()
    example = page.split("```json\n")[1].split("```")[0]
    assert [detector.name for detector in make(load(write(example)))] == ["damage", "nll_and_kl"]


def test_detectors_of_one_file_are_fresh_each_time(write: Callable[[Any], str]) -> None:
    file = load(write(one()))
    (first,), (second,) = make(file), make(file)
    for step in range(6):
        first.update(Reading(step, {"bank_nll": 1.0}))
    assert first.state() != second.state()


def test_a_detector_is_built_as_written(write: Callable[[Any], str]) -> None:
    (detector,) = make(load(write(one({"all_of": [DRIFT, {"any_of": [KL, KL]}]}))))
    quiet, loud = {"bank_nll": 1.0, "bank_kl": 0.3}, {"bank_nll": 2.0, "bank_kl": 0.3}
    for step in range(5):
        assert detector.update(Reading(step, quiet)) is None
    assert detector.update(Reading(5, loud | {"bank_kl": 0.2})) is None
    alarm = detector.update(Reading(6, loud))
    assert alarm is not None
    assert (alarm.detector, alarm.level, alarm.threshold) == ("one", "act", 0.4)


def test_fitting_moves_the_leading_threshold_alone(write: Callable[[Any], str]) -> None:
    (spec,) = load(write(one({"all_of": [{**DRIFT, "above": None}, KL]}))).detectors
    assert isinstance(spec, ComposedSpec)
    made = DetectorFile(detectors=(fitted(spec, 0.7),)).model_dump()["detectors"][0]["when"]
    assert [part["above"] for part in made["all_of"]] == [0.7, 0.25]


def test_a_scorer_needs_no_threshold(write: Callable[[Any], str]) -> None:
    (spec,) = load(write(one({**KL, "above": None}))).detectors
    assert isinstance(spec, ComposedSpec)
    scorer = detector_file.scorer(spec)
    assert isinstance(scorer, Composed)
    assert scorer.score(Reading(0, {"bank_kl": 0.1})) == 0.1


BAD: list[tuple[Any, str]] = [
    ("{", "is not a detector file: "),
    ("[]", "is not a detector file: it names no version"),
    ({"detectors": []}, "is not a detector file: it names no version"),
    ({"version": 2}, "is a detector file of version 2; this toolrl reads version 1"),
    ({"version": 1, "detectors": []}, "detectors: tuple should have at least 1 item"),
    ({"version": 1}, "detectors: field required"),
    (one(level="panic"), "level: input should be 'warn' or 'act'"),
    (one(color="red"), "color: extra inputs are not permitted"),
    (one({**DRIFT, "signal": "bank_nl"}), "unknown signal 'bank_nl'; did you mean 'bank_nll'?"),
    (one({**DRIFT, "statistics": []}), "statistics: tuple should have at least 1 item"),
    (one({**DRIFT, "statistics": [{"name": "drif"}]}), "unknown statistic 'drif'; did you mean"),
    (one({**DRIFT, "statistics": [{"name": "log", "of": 1}]}), "unknown key 'statistics.of'"),
    (
        one({**DRIFT, "statistics": [{"name": "slope", "window": 1}]}),
        "detector 'one': slope: window = 1 must be >= 2",
    ),
    (
        one({**DRIFT, "statistics": [{"name": "slope", "window": "five"}]}),
        "statistics.window = 'five': input should be a valid integer",
    ),
    (one({**DRIFT, "statistics": [{"name": "drift", "_ewma": 1}]}), "unknown key 'statistics._e"),
    (one({"all_of": [DRIFT]}), "all_of: tuple should have at least 2 items"),
    (
        one({"all_of": [DRIFT, {**KL, "above": None}]}),
        "only the leading threshold is fitted: 'above' is null elsewhere",
    ),
    ('{"version": 1, "detectors": [{"form": "damage", "kl": NaN}]}', "NaN is no JSON number"),
    ({**one(), "date": "today"}, "date: extra inputs are not permitted"),
    ({"version": 1, "detectors": [{"form": "damge"}]}, "unknown form 'damge'; did you mean"),
    (
        {"version": 1, "detectors": [{"form": "damage", "ratoi": 2}]},
        "unknown key 'detector.ratoi' for form 'damage'; did you mean 'ratio'?",
    ),
    (
        {"version": 1, "detectors": [{"form": "damage"}, {"form": "damage"}]},
        "two detectors are called 'damage'",
    ),
]


@pytest.mark.parametrize(("content", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_a_bad_file_is_refused_in_one_line_that_names_it(
    content: Any, says: str, write: Callable[[Any], str]
) -> None:
    source = write(content)
    with pytest.raises(ConfigError) as error:
        load(source)
    assert says in str(error.value)
    assert source in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_file_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError) as error:
        load("defualt")
    assert str(error.value) == (
        "no detector file 'defualt'; did you mean 'default'? one of: default, field, guard, "
        "or a file of `toolrl calibrate`"
    )


def rows(**right: float) -> list[dict[str, Any]]:
    return [
        {"slot": slot, "token": token, "mean_logprob": mean, "n": 8}
        for slot, value in right.items()
        for token, mean in ((RIGHT_TOKEN, value), ("<tool_call>", -9.0), ("}}", -9.0))
    ]


def test_a_base_is_what_the_probe_saw_of_it() -> None:
    base = Base.of(rows(after_call=-0.5, end_text=-0.1))
    assert base.tokens == ("<tool_call>", "}}")
    assert base.positions == {"after_call": 8, "end_text": 8}
    assert base.right == {"after_call": -0.5, "end_text": -0.1}


def test_a_base_is_the_same_on_another_machine_and_another_one_elsewhere() -> None:
    base = Base.of(rows(after_call=-0.5, end_text=-0.1))
    assert base.difference(Base.of(rows(after_call=-0.501, end_text=-0.1))) is None
    other = base.difference(Base.of(rows(after_call=-0.5, end_text=-0.4)))
    assert other is not None
    assert other.startswith("another model (mean log-prob of the right token in end_text: -0.100")
    assert base.difference(Base.of(rows(after_call=-0.5))) == "another bank or tool format"
