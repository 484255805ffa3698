"""Every detector is scored by the same rules, whoever wrote it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box import cli
from toolrl_box.detectors import Detector
from toolrl_box.detectors.damage import Damage
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.onsets import Kind
from toolrl_box.scoring import (
    HORIZON,
    Judged,
    auroc,
    import_detector,
    lines,
    score_alarms,
    score_detector,
)
from toolrl_box.types import Alarm, Reading
from toolrl_box.warning_data import Entry, Logged, Split, run_folders, write_dataset

STEPS = 30


def run(
    figures: Sequence[float],
    kind: Kind = "healthy",
    seed: int = 1,
    split: Split = "test",
    reward: int | None = None,
    structural: int | None = None,
    regime: str = "rl",
) -> Logged:
    entry = Entry(
        **{"run": f"{regime}/{kind}{seed}", "regime": regime, "seed": seed, "split": split},
        **{"kind": kind, "reward_onset": reward, "structural_onset": structural},
        **{"steps": len(figures), "config": {}, "environment": {}},
    )
    readings = tuple(Reading(s, {"entropy": x}) for s, x in enumerate(figures, start=1))
    return Logged(entry, readings)


def rising(alarm: int) -> list[float]:
    """Above 1 from step ``alarm`` on."""
    return [2.0 if step >= alarm else 0.0 for step in range(1, STEPS + 1)]


@dataclass
class Limit:
    """Alarms, with a level of its own, above a level of entropy."""

    limit: float = 1.0
    level: Any = "act"
    name = "limit"

    def update(self, reading: Reading) -> Alarm | None:
        x = reading.values["entropy"]
        return Alarm("limit", reading.step, x, self.limit, self.level) if x > self.limit else None

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert state == {}


@dataclass
class Scores(Limit):
    """The same with scores: entropy, from the second step on."""

    seen: list[int] = field(default_factory=list)
    name = "scores"

    def score(self, reading: Reading) -> float | None:
        self.seen.append(reading.step)
        return None if len(self.seen) == 1 else reading.values["entropy"]


QUIET = [0.0] * STEPS
DATA = [
    run(rising(5), "collapsing", reward=20, structural=15),
    run(rising(17), "collapsing", 2, reward=25, structural=15),
    run(rising(24), "collapsing", 3, reward=20),
    run(QUIET, "collapsing", 4, reward=20, structural=22, regime="mixed"),
    run(QUIET),
    run(rising(9), "healthy", 2),
    run(QUIET, "healthy", 3, regime="mixed"),
    run(rising(1), "ambiguous"),
]


def test_detection_is_an_alarm_and_early_is_before_the_first_onset() -> None:
    score = score_detector(Limit, DATA, 0.05)
    assert (score.detected.hits, score.detected.total) == (3, 4)
    assert (score.early.hits, score.early.total) == (1, 4)
    assert score.early.interval == pytest.approx((0.0063, 0.8059), abs=1e-4)


def test_false_alarms_are_healthy_runs_and_ambiguous_ones_are_apart() -> None:
    score = score_detector(Limit, DATA, 0.05)
    assert (score.false_alarms.hits, score.false_alarms.total) == (1, 3)
    assert (score.ambiguous.hits, score.ambiguous.total) == (1, 1)


def test_leads_are_steps_to_the_onsets_that_a_run_has() -> None:
    score = score_detector(Limit, DATA, 0.05)
    first, structural, reward = (score.lead[name] for name in ("first", "structural", "reward"))
    assert first is not None
    assert (first.runs, first.median) == (3, -2)  # 10, -2, -4
    assert (first.low, first.high) == (-3, 4)
    assert structural is not None
    assert (structural.runs, structural.median) == (2, 4)  # 10, -2
    assert reward is not None
    assert (reward.runs, reward.median) == (3, 8)  # 15, 8, -4
    assert score.lead_share is not None
    assert score.lead_share.median == pytest.approx(-2 / 15)


def test_regimes_are_told_apart() -> None:
    regimes = score_detector(Limit, DATA, 0.05).regimes
    told = {
        regime: {name: (share.hits, share.total) for name, share in shares.items()}
        for regime, shares in regimes.items()
    }
    assert told == {
        "rl": {"false_alarms": (1, 2), "early": (1, 3)},
        "mixed": {"false_alarms": (0, 1), "early": (0, 1)},
    }


def test_only_the_asked_level_counts() -> None:
    assert score_detector(lambda: Limit(level="warn"), DATA, 0.05, "warn").detected.hits == 3
    assert score_detector(lambda: Limit(level="warn"), DATA, 0.05, "act").detected.hits == 0


def test_alarms_of_others_are_scored_by_the_same_rules() -> None:
    own = score_detector(Limit, DATA, 0.05)
    known = [Judged(one.run, one.alarm, {}) for one in own.runs]
    assert score_alarms("limit", known) == own
    silent = score_alarms("silent", [Judged(one.run, None, {}) for one in own.runs])
    assert (silent.detected.hits, silent.false_alarms.hits, silent.lead["first"]) == (0, 0, None)


def calibration(*heights: float) -> list[Logged]:
    return [
        run([0.0, height, 0.0], seed=100 + number, split="calibration")
        for number, height in enumerate(heights)
    ]


def test_a_scored_detector_gets_its_threshold_from_healthy_calibration_runs_alone() -> None:
    collapsed = run([9.0, 9.0], "collapsing", 200, split="calibration", reward=2)
    data = [*DATA, *calibration(0.5, 1.5, 0.1), collapsed]
    score = score_detector(Scores, data, 0.25)
    assert score.threshold is not None
    assert (score.threshold.value, score.threshold.above, score.threshold.runs) == (1.5, 0, 3)
    assert score.detected.hits == 3
    # At half of it one calibration run alarms, and 0.5 is the lowest threshold that spares the
    # others.
    looser = score_detector(Scores, data, 0.5).threshold
    assert looser is not None
    assert (looser.value, looser.above) == (0.5, 1)


def test_the_test_split_moves_no_threshold() -> None:
    louder = [run([50.0] * STEPS, "healthy", 3), *DATA[:4]]
    for data in (DATA, louder):
        score = score_detector(Scores, [*data, *calibration(0.5, 1.5, 0.1)], 0.25)
        assert score.threshold is not None
        assert score.threshold.value == 1.5


def test_a_budget_beyond_the_calibration_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 healthy run.*--false-alarms 0\.05 needs 19"):
        score_detector(Scores, [*DATA, *calibration(0.5, 1.5, 0.1)], 0.05)


@pytest.mark.parametrize("kind", ["collapsing", "healthy"])
def test_without_runs_of_both_classes_nothing_is_scored(kind: str) -> None:
    data = [logged for logged in DATA if logged.entry.kind != kind]
    with pytest.raises(DataError, match=f"the test split holds no {kind} run"):
        score_detector(Limit, data, 0.05)


def judged(scores: dict[int, float], kind: Kind = "healthy", onset: int | None = None) -> Judged:
    return Judged(run([0.0], kind, reward=onset), None, scores)


def test_auroc_asks_for_the_ten_steps_before_the_first_onset() -> None:
    steps = {step: float(step) for step in range(1, 31)}
    perfect = judged(steps, "collapsing", 21)  # 11-20 positive, 1-10 negative, 21- not counted
    assert HORIZON == 10
    assert auroc([perfect]) == 1.0
    assert auroc([judged({10: 0.0, 11: 1.0}, "collapsing", 21)]) == 1.0
    assert auroc([judged({s: -x for s, x in steps.items()}, "collapsing", 21)]) == 0.0


def test_ties_are_worth_half_and_ambiguous_runs_nothing() -> None:
    flat = [judged({1: 1.0, 2: 1.0}, "collapsing", 3), judged({1: 1.0, 2: 1.0})]
    assert auroc(flat) == 0.5
    assert auroc([*flat, judged({1: 9.0}, "ambiguous")]) == 0.5


def test_a_step_without_a_score_ranks_lowest() -> None:
    collapsing = judged({1: -math.inf, 2: 1.0}, "collapsing", 3)
    assert auroc([collapsing, judged({1: 0.0})]) == 0.5


def test_auroc_of_one_class_of_steps_is_none() -> None:
    assert auroc([judged({1: 0.0})]) is None


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=30), st.integers(0, 99))
def test_auroc_is_the_share_of_pairs_in_order(xs: list[float], place: int) -> None:
    onset = 2 + place % (len(xs) - 1)
    one = judged(dict(enumerate(xs, start=1)), "collapsing", onset)
    other = judged(dict(enumerate(xs[::-1], start=1)))
    high = [x for s, x in one.scores.items() if s < onset and onset - s <= HORIZON]
    low = [x for s, x in one.scores.items() if onset - s > HORIZON] + xs
    pairs = [(h > x) + 0.5 * (h == x) for h in high for x in low]
    assert auroc([one, other]) == pytest.approx(sum(pairs) / len(pairs))


# --- other people's detectors ---------------------------------------------------------------


class Broken(Limit):
    def update(self, reading: Reading) -> Alarm | None:
        raise KeyError("bank_nlll")


class Talkative(Limit):
    def update(self, reading: Reading) -> Alarm | None:
        return "alarm!"  # type: ignore[return-value]


class NotANumber(Scores):
    def score(self, reading: Reading) -> float | None:
        return math.nan


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Broken, "detector 'limit' failed at step 1 of rl/collapsing1: KeyError: 'bank_nlll'"),
        (Talkative, "detector 'limit' gave 'alarm!'; it must be Alarm or None"),
        (NotANumber, "gave the score nan at step 1 of rl/healthy100; it must be a number or None"),
    ],
)
def test_a_detector_that_breaks_its_protocol_is_named_with_the_step(
    kind: type[Limit], says: str
) -> None:
    with pytest.raises(ConfigError) as error:
        score_detector(kind, [*DATA, *calibration(1.0)], 0.5)
    assert says in str(error.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the working directory."""
    (tmp_path / "mine.py").write_text(
        "from toolrl_box.detectors.damage import Damage\n"
        "class Mine(Damage): name = 'mine'\n"
        "class Nothing: pass\n"
        "class Needy:\n    def __init__(self, x): pass\n"
    )
    (tmp_path / "sick.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "mine"
    sys.modules.pop("mine", None)


def test_a_users_detector_is_found_in_the_working_directory(module: str) -> None:
    detector: Detector = import_detector(f"{module}:Mine")()
    assert detector.name == "mine"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mine", "'mine' must be MODULE:CLASS"),
        (":Mine", "':Mine' must be MODULE:CLASS"),
        ("nowhere:Mine", "cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'"),
        ("sick:Mine", "cannot import sick: ModuleNotFoundError: No module named 'no_such_module'"),
        ("mine:Mien", "unknown class in mine 'Mien'; did you mean 'Mine'?"),
        ("mine:Nothing", "mine:Nothing is no detector: it needs name, update, state and restore"),
        ("mine:Needy", "mine:Needy() fails: TypeError:"),
    ],
)
def test_what_is_no_detector_is_refused_in_one_line(module: str, spec: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        import_detector(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_scores_and_writes(
    module: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = tmp_path / "data", tmp_path / "score.json"
    regimes = {kind: run_folders([study / kind]) for kind in ("healthy", "collapsing")}
    write_dataset(regimes, data, calibration_seeds=[1, 2], note="")
    assert call("score-detector", f"{module}:Mine", str(data), "--output", str(file)) == 0
    told = capsys.readouterr().out
    assert "detector        mine" in told
    assert "false alarms    0 of 7 [0.00, 0.41] healthy runs" in told
    written = json.loads(file.read_text())
    assert written["runs"]["collapsing/seed3"] == 23  # the onset itself: detected, not early
    assert (written["detected"]["hits"], written["early"]["hits"]) == (1, 0)
    assert written["runs"]["healthy/seed9"] is None
    assert written["threshold"] is None
    assert call("score-detector", "mine:Mien", str(data)) == cli.USER_ERROR
    assert call("score-detector", "mine:Mine", str(tmp_path)) == cli.USER_ERROR
    assert capsys.readouterr().err.count("\n") == 2


def test_what_was_not_measured_is_told_as_none() -> None:
    only = [run(QUIET, "collapsing", reward=20), run(QUIET)]
    told = list(lines(score_detector(Limit, only, 0.05)))
    assert "lead first      none steps to the onset" in told
    assert "AUROC           none" in told
    assert "ambiguous       0 of 0 with an alarm, in no other figure" in told


def test_an_infinite_threshold_is_written_as_nothing() -> None:
    class Never(Scores):
        def score(self, reading: Reading) -> float | None:
            return None

    score = score_detector(Never, [*DATA, *calibration(1.0)], 0.5)
    assert score.to_json()["threshold"]["value"] is None
    assert score.detected.hits == 0
    json.dumps(score.to_json(), allow_nan=False)


def test_damage_keeps_its_own_thresholds() -> None:
    flat = [Reading(step, {"bank_nll": 0.1, "bank_kl": 0.0}) for step in range(1, 11)]
    data = [
        Logged(logged.entry, tuple(flat)) for logged in DATA if logged.entry.kind != "ambiguous"
    ]
    score = score_detector(Damage, data, 0.05)
    assert score.threshold is None
    assert score.auroc is None
