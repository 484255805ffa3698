"""Calibration fits thresholds on healthy runs, says what they support, and refuses the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from toolrl_box import cli
from toolrl_box.calibrate import calibrate
from toolrl_box.detector_file import DetectorFile, dump, load, make
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.readings import readings
from toolrl_box.runlog import RunLog

MakeRun = Callable[..., Path]
LEAF = {"signal": "bank_nll", "statistics": [{"name": "log"}, {"name": "drift"}], "above": None}


def candidates(*conditions: object) -> DetectorFile:
    specs = [{"name": f"d{n}", "level": "act", "when": c} for n, c in enumerate(conditions)]
    return DetectorFile.model_validate({"version": 1, "detectors": specs})


def test_no_healthy_run_alarms_with_its_own_threshold_and_every_collapse_does(study: Path) -> None:
    made = calibrate([study], 0.1, candidates(LEAF))
    for kind, names in made.runs.items():
        for name in names:
            (detector,) = make(made.file)
            alarms = [detector.update(one) for one in readings(RunLog.open(name))]
            first = next((alarm.step for alarm in alarms if alarm), None)
            assert (first is not None) == (kind == "collapsing")
    (outcome,) = made.outcomes
    assert (outcome.early, outcome.lead) == (3, 2)


def test_an_alarm_at_the_onset_is_not_early(study: Path) -> None:
    """KL passes the healthy runs' highest at step 21; the third such step is the onset, 23."""
    lasting = {"name": "persistence", "k": 3, "of": 3}
    late = {"signal": "bank_kl", "statistics": [lasting], "above": None}
    prompt = {"signal": "bank_kl", "statistics": [{"name": "level"}], "above": None}
    outcomes = calibrate([study], 0.1, candidates(late, prompt)).outcomes
    assert [(one.early, one.lead) for one in outcomes] == [(0, None), (3, 2)]


def test_the_lowest_such_threshold_is_taken(study: Path) -> None:
    (outcome,) = calibrate([study], 0.1, candidates(LEAF)).outcomes
    (again,) = calibrate([study], 0.25, candidates(LEAF)).outcomes  # 1 of 9 is spared
    assert outcome.fit is not None
    assert again.fit is not None
    assert (outcome.fit.above, again.fit.above) == (0, 1)
    assert again.value < outcome.value


def test_provenance_names_runs_by_class_seeds_and_bounds(study: Path) -> None:
    made = calibrate([study], 0.1, candidates(LEAF, LEAF))
    provenance = made.file.provenance
    assert provenance is not None
    assert {kind: len(names) for kind, names in provenance.runs.items()} == {
        **{"healthy": 9, "collapsing": 3, "ambiguous": 1}
    }
    assert provenance.seeds == tuple(range(1, 10))
    assert provenance.fits["d0"].expected == 0.1
    assert provenance.fits["d0"].upper == pytest.approx(1 - 0.05 ** (1 / 9))
    assert made.file.base is not None
    assert made.file.base.positions == dict.fromkeys(
        ("start_call_due", "inside_call", "after_call"), 8
    )
    assert "Fitted on 9 healthy runs of 40 to 40 steps" in made.file.limits[0]
    assert "at most 10.0% alarm on average" in made.file.limits[0]
    assert "2 detector(s) together: at most 20.0%" in made.file.limits[1]


def test_a_budget_that_the_runs_cannot_support_is_refused(study: Path) -> None:
    with pytest.raises(ConfigError) as error:
        calibrate([study], 0.05, candidates(LEAF))
    assert str(error.value) == (
        "9 healthy run(s) support a false-alarm rate of 0.100 at best (1 / (runs + 1)); "
        "--false-alarms 0.05 needs 19"
    )


def test_runs_of_two_models_do_not_belong_together(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(1, 4):
        make_run("healthy", seed, base=-0.1 if seed < 3 else -0.5)
    with pytest.raises(DataError, match=r"seed3 and .*seed1 do not belong together: another model"):
        calibrate([tmp_path], 0.5, candidates(LEAF))


def test_an_unfinished_run_is_left_out_and_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("healthy", 1)
    late = make_run("healthy", 2, finished=False)
    made = calibrate([tmp_path], 0.5, candidates(LEAF))
    assert made.unfinished == (str(late),)
    assert [len(names) for names in made.runs.values()] == [0, 1, 0]


def test_a_candidate_that_cannot_be_fitted_is_left_out_with_its_reason(study: Path) -> None:
    never = {"all_of": [LEAF, {**LEAF, "signal": "bank_kl", "above": 99.0}]}
    always = {"any_of": [LEAF, {**LEAF, "signal": "bank_kl", "above": -99.0}]}
    made = calibrate([study], 0.1, candidates(LEAF, never, always))
    assert [bool(outcome.why) for outcome in made.outcomes] == [False, True, True]
    assert [spec.name for spec in made.file.detectors] == ["d0"]
    with pytest.raises(ConfigError, match="no candidate can be fitted; the first: an alternative"):
        calibrate([study], 0.1, candidates(always))


def test_forms_keep_their_thresholds(study: Path) -> None:
    made = calibrate([study], 0.1, load("default"))
    assert [spec.name for spec in made.file.detectors] == ["content"]
    damage, unhealthy, _ = made.outcomes
    assert damage.why == unhealthy.why == "a form keeps its own thresholds and is not fitted"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_writes_a_file_that_a_run_can_use(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "detector.json"
    words = ["calibrate", str(study), "--false-alarms", "0.1", "--output", str(file)]
    assert call(*words) == 0
    told = capsys.readouterr().out
    assert "healthy     9 runs" in told
    assert "bank_nll_and_kl" in told
    assert f"detector file: {file}" in told
    assert make(load(str(file)))
    assert load(str(file)).provenance is not None
    assert json.loads(dump(load(str(file)))) == json.loads(file.read_text())
    assert call(*words) == cli.USER_ERROR
    assert "exists and is never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--false-alarms", "0.05"], "--false-alarms 0.05 needs 19"),
        (["--false-alarms", "2"], "--false-alarms 2.0 must be above 0 and below 1"),
        (["--candidates", "gard"], "no detector file 'gard'; did you mean 'guard'?"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(
    arguments: list[str],
    says: str,
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "detector.json"
    assert call("calibrate", str(study), "--output", str(file), *arguments) == cli.USER_ERROR
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not file.exists()
