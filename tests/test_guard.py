"""A detector file watches a real run: live, offline and after a restart alike."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from toolrl_box import cli, lab
from toolrl_box.config import RunConfig, parse
from toolrl_box.detector_file import Base, DetectorFile, dump, load, make
from toolrl_box.errors import ConfigError
from toolrl_box.readings import readings, records, values
from toolrl_box.runlog import RunLog
from toolrl_box.types import Reading
from toolrl_box.warning_data import run_folders

STUDY = Path(__file__).parents[1] / "results" / "collapse"
STEPS = 8
LOUD = [
    {
        "name": "any_movement",
        "level": "warn",
        "when": {
            "signal": "bank_kl",
            "statistics": [{"name": "log"}, {"name": "drift", "reference_steps": 2}],
            "above": 0.0001,
        },
    },
    {
        "name": "any_entropy",
        "level": "act",
        "when": {
            "any_of": [
                {
                    "signal": "entropy",
                    "statistics": [{"name": "negate"}, {"name": "slope", "window": 3}],
                    "above": 0.0,
                },
                {"signal": "deficit", "statistics": [{"name": "page_hinkley"}], "above": 1e-9},
            ]
        },
    },
]


def settings(base: Path, detector: object) -> RunConfig:
    return parse(
        {
            "model": str(base),
            "scheme": {"name": "interleaved", "every": 3, "updates": 2, "rule": "any_failed"},
            "steps": STEPS,
            "guard": {"detector": str(detector)},
            "rewards": {"format_share": 1},
            "env": {"train_tasks": 8, "eval_tasks": 4},
            "grpo": {"prompts_per_step": 2, "group_size": 4, "warmup_steps": 1},
            "sft": {"batch_size": 2},
            "rollout": {"max_messages": 4, "max_new_tokens": 12},
            "probe": {"episodes": 4},
            "eval": {"every": 50, "ood": False},
            "checkpoint": {"every": 50},
        }
    )


def alarms(run_dir: Path) -> list[dict[str, Any]]:
    return [event for event in RunLog.open(run_dir).journal() if event["event"] == "alarm"]


def replayed(given: Iterable[Reading], file: DetectorFile) -> list[dict[str, Any]]:
    """What fresh detectors say."""
    detectors, found = make(file), []
    for reading in given:
        for detector in detectors:
            if (alarm := detector.update(reading)) is not None:
                found.append({"event": "alarm", **asdict(alarm)})
    return found


@pytest.fixture(scope="module")
def file(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector file of this model and bank, loud enough for a short run."""
    folder = tmp_path_factory.mktemp("guard")
    pilot = folder / "pilot"
    short = settings(tiny_base, "default").model_copy(update={"steps": 1})
    assert lab.start(short, pilot) == "done"
    start = [row for row in records(RunLog.open(pilot).probe()) if row["step"] == 0]
    made = DetectorFile.model_validate({"version": 1, "detectors": LOUD, "base": Base.of(start)})
    (folder / "loud.json").write_text(dump(made))
    return folder / "loud.json"


@pytest.fixture(scope="module")
def whole(file: Path, tiny_base: Path) -> Path:
    run_dir = file.parent / "whole"
    assert lab.start(settings(tiny_base, file), run_dir) == "done"
    return run_dir


def test_the_file_of_the_config_raises_the_alarms(whole: Path) -> None:
    assert {alarm["detector"] for alarm in alarms(whole)} == {"any_movement", "any_entropy"}


def test_offline_they_are_the_same_alarms_bit_for_bit(whole: Path, file: Path) -> None:
    assert replayed(readings(RunLog.open(whole)), load(str(file))) == alarms(whole)


def test_the_forms_give_the_alarms_of_the_committed_study_bit_for_bit() -> None:
    total = 0
    for run_dir in run_folders([STUDY]):
        metrics = records(RunLog.open(run_dir).metrics())
        given = [Reading(row["step"], values(row, [])) for row in metrics if row["step"] > 0]
        found = replayed(given, load("default"))
        # The third detector of the set is younger than the study.
        found = [alarm for alarm in found if alarm["detector"] != "content"]
        assert found == alarms(run_dir)
        total += len(found)
    assert total > 100


def test_the_run_keeps_the_file_that_watches_it(whole: Path, file: Path) -> None:
    assert load(str(whole / lab.DETECTOR)) == load(str(file))


def test_a_resumed_run_goes_on_with_the_detectors_that_it_began_with(
    whole: Path, file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    borrowed = tmp_path / "detector.json"
    borrowed.write_text(file.read_text())
    run_dir = tmp_path / "run"
    seen: list[int] = []

    def third() -> bool:
        seen.append(1)
        return len(seen) == 5

    watch = lab.Watch(should_stop=third)
    assert lab.start(settings(tiny_base, borrowed), run_dir, watch) == "stopped"
    borrowed.unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--resume", str(run_dir), "--no-report"])
    assert ended.value.code == 0
    assert alarms(run_dir) == alarms(whole)


def test_a_file_of_another_model_is_refused_before_anything_is_written(
    file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    other = json.loads(file.read_text())
    other["base"]["right"]["end_text"] -= 1.0
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps(other))
    with pytest.raises(ConfigError) as error:
        lab.start(settings(tiny_base, foreign), tmp_path / "run")
    assert f"guard.detector = {foreign} was calibrated on another model" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_file_of_another_bank_is_refused(file: Path, tiny_base: Path, tmp_path: Path) -> None:
    config = settings(tiny_base, file)
    smaller = config.model_copy(update={"probe": config.probe.model_copy(update={"episodes": 2})})
    with pytest.raises(ConfigError, match="was calibrated on another bank or tool format"):
        lab.start(smaller, tmp_path / "run")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("defalt", "no detector file 'defalt'; did you mean 'default'?"),
        ("guard", "detector 'bank_nll' has no threshold yet: fit it with `toolrl calibrate`"),
    ],
)
def test_a_wrong_name_is_one_line_before_anything_is_loaded(
    value: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--set", f"guard.detector={value}"])
    assert ended.value.code == cli.USER_ERROR
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
