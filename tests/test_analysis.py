"""The analyses' own rules, on files that are committed; what they print is made from these."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from types import ModuleType

import pytest

from toolrl_box.readings import SIGNALS
from toolrl_box.warning_data import load_dataset

ROOT = Path(__file__).parent.parent
ANALYSIS = ROOT / "analysis"
FIRST_LOOKS = ROOT / "results" / "first_looks"


@pytest.fixture
def monitors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ANALYSIS))
    return importlib.import_module("monitors")


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ANALYSIS))
    return importlib.import_module("capability")


def test_monitors_are_given_signals_that_there_are() -> None:
    asked = runpy.run_path(str(ANALYSIS / "monitors_env" / "ask.py"))
    for names in ("TRL_NAMES", "RLWATCH_NAMES", "RLPROBE_NAMES"):
        assert asked[names].keys() <= SIGNALS.keys()


def test_a_monitors_alarms_count_from_the_level_that_is_asked(monitors: ModuleType) -> None:
    alarms = [[7, "warn", "kl"], [9, "act", "kl"], [3, "warn", "entropy"]]
    assert monitors.first(alarms, "warn") == 3
    assert monitors.first(alarms, "act") == 9
    assert monitors.first(alarms[:1], "act") is None


def test_a_monitor_is_scored_by_its_first_alarms(monitors: ModuleType) -> None:
    runs = load_dataset(FIRST_LOOKS / "data")
    early = {run.entry.run: [[2, "warn", "x"]] for run in runs}
    late = {run.entry.run: [[run.entry.steps, "warn", "x"]] for run in runs}
    for alarms, hits in ((early, 9), (late, 0)):
        score = monitors.score("m", {"alarms": alarms}, runs, "warn")
        assert (score.early.hits, score.detected.hits, score.false_alarms.hits) == (hits, 9, 19)
        assert monitors.score("m", {"alarms": alarms}, runs, "act").detected.hits == 0


def test_a_run_counts_once_among_verdicts_by_its_last_checkpoint(capability: ModuleType) -> None:
    files = sorted((FIRST_LOOKS / "capability").glob("*.json"))
    examined = [capability.Examined.read(path) for path in files]
    counted = capability.last_of_each_run(examined)
    assert [(one.run, one.step) for one in counted] == [
        *(("collapse/rl/seed1", 60), ("collapse/rl/seed3", 60)),
        *(("collapse/rl/seed4", 20), ("collapse/rl/seed6", 60)),
    ]
    lost = capability.shares(counted)["collapse/rl"]["lost"]
    assert (lost.hits, lost.total) == (4, 4)
    assert lost.interval == pytest.approx((0.3976, 1.0), abs=1e-4)
    assert capability.tables(examined) == (FIRST_LOOKS / "capability.md").read_text()
