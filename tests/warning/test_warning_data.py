"""The data set gives back what the runs logged, and refuses to be anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from toolrl_box import cli
from toolrl_box.errors import DataError, RunFolderError
from toolrl_box.onsets import Onsets
from toolrl_box.readings import SIGNALS, readings
from toolrl_box.runlog import RunLog
from toolrl_box.warning_data import (
    INDEX,
    TABLE,
    TRUTH,
    by_regime,
    judged,
    load_dataset,
    run_folders,
    write_dataset,
)

MakeRun = Callable[..., Path]
KINDS = ("healthy", "collapsing", "ambiguous")


@pytest.fixture
def dataset(study: Path, tmp_path: Path) -> Path:
    regimes = {kind: run_folders([study / kind])[:2] for kind in KINDS}
    write_dataset(regimes, tmp_path / "data", calibration_seeds=[1], note="invented")
    return tmp_path / "data"


def test_a_run_comes_back_as_it_was_logged(dataset: Path, study: Path) -> None:
    for logged in load_dataset(dataset):
        run = RunLog.open(study / logged.entry.run)
        assert list(logged.readings) == readings(run)
        assert logged.entry.onsets == judged(run)
        assert logged.entry.config == run.config
        assert logged.entry.environment == {"python": "3"}


def test_runs_are_judged_and_split_by_seed(dataset: Path) -> None:
    entries = [logged.entry for logged in load_dataset(dataset)]
    assert [(e.run, e.split, e.kind) for e in entries] == [
        ("healthy/seed1", "calibration", "healthy"),
        ("healthy/seed2", "test", "healthy"),
        ("collapsing/seed1", "calibration", "collapsing"),
        ("collapsing/seed2", "test", "collapsing"),
        ("ambiguous/seed1", "calibration", "ambiguous"),
    ]
    assert entries[2].onsets == Onsets("collapsing", 25, 23)


def test_what_defines_the_onsets_is_no_signal(dataset: Path) -> None:
    seen = {name for run in load_dataset(dataset) for one in run.readings for name in one.values}
    assert seen <= set(SIGNALS)
    assert not seen & set(TRUTH)
    assert set(TRUTH) < set(pd.read_parquet(dataset / TABLE))


def test_supervised_steps_are_there_without_reward(dataset: Path) -> None:
    run = load_dataset(dataset)[0]
    assert [one.step for one in run.readings] == list(range(1, 41))
    assert [s.step for s in run.readings if "reward" not in s.values] == [10, 20, 30, 40]
    assert all("bank_nll" in one.values for one in run.readings)


def test_nested_folders_are_found_once(study: Path) -> None:
    found = run_folders([study, study / "healthy", study / "healthy" / "seed1"])
    assert len(found) == len(set(found)) == 13


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder and holds none"):
        run_folders([tmp_path])


def test_an_unfinished_run_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("healthy", 1, finished=False)
    with pytest.raises(DataError, match="is not a finished run"):
        write_dataset({"rl": [run]}, tmp_path / "data", [], "")
    assert not (tmp_path / "data").exists()


def test_the_same_run_twice_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("healthy", 1)
    with pytest.raises(DataError, match="a run of regime 'rl' with seed 1"):
        write_dataset({"rl": [run, run]}, tmp_path / "data", [], "")


def test_a_used_folder_is_never_overwritten(dataset: Path, study: Path) -> None:
    with pytest.raises(RunFolderError, match="is not empty and is never overwritten"):
        write_dataset({"rl": [study / "healthy" / "seed1"]}, dataset, [], "")


def test_a_calibration_seed_that_no_run_has_is_a_mistake(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run has the calibration seed 7"):
        write_dataset({"rl": [study / "healthy" / "seed1"]}, tmp_path / "data", [1, 7], "")
    assert not (tmp_path / "data").exists()


def test_a_regime_is_the_folder_that_runs_lie_in(
    study: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    late = make_run("late", 5, finished=False)
    regimes, unfinished = by_regime([study, tmp_path, study / "healthy"])
    name = study.name
    assert {regime: len(runs) for regime, runs in regimes.items()} == {
        **{f"{name}/ambiguous": 1, f"{name}/collapsing": 3, f"{name}/healthy": 9}
    }
    assert unfinished == [late]
    alone, _ = by_regime([study / "healthy" / "seed1"])
    assert alone == {"healthy": [study / "healthy" / "seed1"]}


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_writes_what_a_detector_can_be_scored_on(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    words = ["dataset", str(study), "--output", str(output), "--calibration-seeds", "2-9"]
    assert call(*words, "--note", "invented") == 0
    told = capsys.readouterr().out.splitlines()
    healthy = [line.split()[1:] for line in told if line.startswith(f"{study.name}/healthy")]
    assert healthy == [["calibration", "0", "8", "0"], ["test", "0", "1", "0"]]
    assert json.loads((output / INDEX).read_text())["note"] == "invented"
    assert call("score-detector", "toolrl_box.detectors.damage:Damage", str(output)) == 0
    assert call(*words) == cli.USER_ERROR
    assert "is not empty and is never overwritten" in capsys.readouterr().err


def test_a_wrong_range_of_seeds_names_its_option(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset", str(study), "--output", str(tmp_path / "data")]
    assert call(*words, "--calibration-seeds", "2-") == cli.USER_ERROR
    assert capsys.readouterr().err == (
        "error: --calibration-seeds takes a number or a range such as 0-7, got '2-'\n"
    )
    assert not (tmp_path / "data").exists()


def change_index(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((dataset / INDEX).read_text())
    change(index)
    (dataset / INDEX).write_text(json.dumps(index))


def change_table(dataset: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(dataset / TABLE)).to_parquet(dataset / TABLE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i: i.update(version=2), "has version 2; this toolrl reads version 1"),
        (lambda i: i["runs"][0].update(split="train"), "runs.0.split: input should be 'calibratio"),
        (lambda i: i["runs"][0].pop("seed"), "runs.0.seed: field required"),
        (
            lambda i: i["runs"].pop(),
            "run 'ambiguous/seed1' is not once in runs.json and in signals",
        ),
        (lambda i: i["runs"].append(i["runs"][0]), "run 'healthy/seed1' is not once in runs.json"),
        (lambda i: i["runs"][0].update(split="test"), "seed 1 is in both splits"),
        (
            lambda i: i["runs"][2].update(reward_onset=30),
            "onsets of run 'collapsing/seed1' are not",
        ),
        (lambda i: i["runs"][0].update(steps=39), "steps of run 'healthy/seed1' are not in order"),
        (lambda i: i["signals"].update(magic=""), "has no column 'magic'"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    dataset: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    change_index(dataset, change)
    with pytest.raises(DataError) as error:
        load_dataset(dataset)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop(columns="healthy"), "has no column 'healthy'"),
        (
            lambda t: t[t["step"] != 40],
            "steps of run 'healthy/seed1' are not in order and complete",
        ),
        (lambda t: t.iloc[::-1], "are not in order and complete"),
        (lambda t: t.assign(eval_sampled=0.5), "onsets of run 'collapsing/seed1' are not those of"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    dataset: Path, change: Callable[[pd.DataFrame], pd.DataFrame], says: str
) -> None:
    change_table(dataset, change)
    with pytest.raises(DataError, match=says):
        load_dataset(dataset)


def test_what_is_no_data_set_is_refused(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(DataError, match=r"is not an early-warning data set: it has no runs\.json"):
        load_dataset(tmp_path)
    (dataset / TABLE).write_bytes(b"PAR1")
    with pytest.raises(RunFolderError, match=r"signals\.parquet is damaged"):
        load_dataset(dataset)
