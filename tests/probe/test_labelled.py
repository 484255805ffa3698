"""The classifier against messages that were labelled by hand (tests/data/states/GUIDE.md)."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolrl_box.dialects import DIALECTS
from toolrl_box.probe.states import KINDS
from toolrl_box.types import STATES

HERE = Path(__file__).parents[1] / "data" / "states"
MEASURE = runpy.run_path(str(HERE / "measure.py"))
ROWS: list[dict[str, Any]] = MEASURE["rows"]()
FLAGGED_ONLY = {"text_before_call", "several_calls", "thinking"}


def test_the_set_has_every_state_kind_and_dialect() -> None:
    assert len(ROWS) >= 300
    assert {row["dialect"] for row in ROWS} == set(DIALECTS)
    assert {row["kind"] for row in ROWS} == set(KINDS) - FLAGGED_ONLY
    assert {KINDS[row["kind"]] for row in ROWS} == set(STATES)
    assert sum("span" in row for row in ROWS) >= 100
    assert 0.3 < Counter(row["part"] for row in ROWS)["test"] / len(ROWS) < 0.35


@pytest.mark.parametrize(
    ("part", "kinds", "states"), [("development", 0.95, 0.93), ("test", 0.88, 0.90)]
)
def test_agreement_with_the_labels_stays_above_its_floor(
    part: str, kinds: float, states: float
) -> None:
    figures = MEASURE["measure"](part)
    assert figures["kinds macro-F1"] > kinds
    assert figures["states macro-F1"] > states
    assert figures["spans that overlap"] > 0.97


def test_macro_f1_weighs_every_class_alike() -> None:
    macro_f1 = MEASURE["macro_f1"]
    assert macro_f1(["a", "a", "b"], ["a", "a", "b"]) == 1.0
    # a: 2·2/(2+3) = .8; b is never found: 0.
    assert macro_f1(["a", "a", "b"], ["a", "a", "a"]) == pytest.approx(0.4)
