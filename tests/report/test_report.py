"""The report of invented runs: what it says, and that nothing in the data can break it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolrl_box.errors import RunFolderError
from toolrl_box.probe.bank import SLOTS
from toolrl_box.report import write_report
from toolrl_box.report.examples import pick_steps, readable, scenes
from toolrl_box.report.figures import ODDS_LIMIT, SLOT_TITLES, log_odds
from toolrl_box.report.pages import escape_markdown, fenced
from toolrl_box.runlog import RunLog

FILES = {
    *("index.html", "report.md", "summary.json"),
    *("reward_and_eval.png", "control_tokens.png", "states.png", "signals.png"),
}


class Page(HTMLParser):
    """Collects what a browser would see: tags, marked texts and every address it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.marked: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1:] == ["mark"]:
            self.marked.append(data)
            self.tags.append("(read)")


def read_summary(run: Path) -> Any:
    return json.loads((run / "report" / "summary.json").read_text())


def test_a_collapse_is_named_dated_and_written_down(collapsed_run: Path) -> None:
    assert {path.name for path in (collapsed_run / "report").iterdir()} == FILES
    summary = read_summary(collapsed_run)
    assert summary["verdict"] == "structural_collapse"
    assert 33 <= summary["onset_step"] <= summary["reward_onset"] <= 45
    assert summary["best_checkpoint"]["step"] == 30
    assert "highest held-out evaluation" in summary["best_checkpoint"]["reason"]
    assert summary["state_shares"]["first"]["healthy_call"] > 0.4
    assert summary["state_shares"]["last"]["healthy_call"] < 0.05
    assert summary["evaluation"]["greedy"]["peak_step"] == 30
    assert summary["alarms"] == [
        {"detector": "damage", "step": 33, "value": 1.62, "threshold": 1.5, "level": "act"}
    ]
    html = (collapsed_run / "report" / "index.html").read_text()
    assert html.index("messages fell apart") < html.index("<h2>")


def test_an_interleaved_run_is_healthy_and_its_phases_are_listed(healthy_run: Path) -> None:
    summary = read_summary(healthy_run)
    assert (summary["verdict"], summary["onset_step"]) == ("healthy", None)
    assert [phase["kind"] for phase in summary["phases"]] == ["rl", "sft"] * 4 + ["rl"]
    assert (summary["phases"][1]["first_step"], summary["phases"][1]["last_step"]) == (11, 14)
    assert (summary["steps"], summary["rl_steps"], summary["finished"]) == (60, 44, True)


def test_nothing_from_the_data_becomes_mark_up_in_the_page(hostile_run: Path) -> None:
    page = Page((hostile_run / "report" / "index.html").read_text())
    assert "script" not in page.tags
    assert "a" not in page.tags
    assert page.text.count("<script>alert(1)</script>") > 5


def test_nothing_from_the_data_becomes_mark_up_in_the_markdown(hostile_run: Path) -> None:
    text = (hostile_run / "report" / "report.md").read_text()
    outside = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", text)
    assert r"\<script\>" in outside
    assert not re.search(r"(?<!\\)<", outside)
    assert "](http" not in outside
    rows = [line for line in outside.splitlines() if line.startswith("| 33 |")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6]


def test_the_page_loads_nothing_from_anywhere(collapsed_run: Path) -> None:
    html = (collapsed_run / "report" / "index.html").read_text()
    addresses = Page(html).addresses
    assert len(addresses) == 4
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "default-src 'none'" in html


def test_the_offending_span_is_marked_and_sound_messages_are_not(collapsed_run: Path) -> None:
    page = Page((collapsed_run / "report" / "index.html").read_text())
    assert set(page.marked) == {' {"arguments": the<tool_call>', "<tool_call>"}
    before, at, after = scenes(RunLog.open(collapsed_run), onset=36)
    assert [scene.label for scene in (before, at, after)] == ["before", "at", "after"]
    assert not any(example.marked for example in before.examples)
    assert at.examples[0].marked
    assert after.examples[0].span == ' {"arguments": the<tool_call>'


def test_examples_come_from_sound_steps_before_the_onset() -> None:
    steps = list(range(1, 61))
    assert pick_steps(steps, 36) == [("before", 31), ("at", 36), ("after", 60)]
    assert pick_steps(steps, None) == [("first", 1), ("middle", 31), ("last", 60)]
    assert pick_steps([4, 9], 3) == [("before", 4), ("after", 9)]
    assert pick_steps([7], None) == [("first", 7)]
    assert pick_steps([], 3) == []


def test_reporting_twice_replaces_the_report_and_gives_the_same_pictures(
    collapsed_run: Path,
) -> None:
    before = {path.name: path.read_bytes() for path in (collapsed_run / "report").iterdir()}
    summary = write_report(collapsed_run)
    after = {path.name: path.read_bytes() for path in (collapsed_run / "report").iterdir()}
    assert after == before
    assert summary == read_summary(collapsed_run)


def test_a_run_without_probe_evaluation_or_rollouts_is_still_reported(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, {"scheme": "rl", "odd": float("inf")}, {}) as log:
        log.metrics({"step": 1, "phase_kind": "sft", "loss": 2.0})
        log.commit()
    summary = write_report(tmp_path)
    assert summary["verdict"] == "insufficient_data"
    assert summary["best_checkpoint"] is None
    assert summary["config"]["odd"] is None
    assert "No rollouts were logged" in (tmp_path / "report" / "report.md").read_text()


def test_a_run_that_has_only_begun_is_reported_as_unfinished(tmp_path: Path) -> None:
    RunLog.create(tmp_path, {"scheme": "rl"}, {}).close()
    assert write_report(tmp_path)["finished"] is False
    assert "still going on or interrupted" in (tmp_path / "report" / "index.html").read_text()


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        write_report(tmp_path / "nowhere")


def test_a_dense_evaluation_is_judged_instead_of_the_noisy_reward(
    tmp_path: Path, healthy_run: Path
) -> None:
    with RunLog.create(tmp_path / "dense", {"scheme": "rl"}, {}) as log:
        for step in range(1, 21):
            log.metrics({"step": step, "reward": 0.1, "eval_sampled": 0.4})
        log.commit()
    assert write_report(tmp_path / "dense")["reward"]["measure"] == "eval_sampled"
    assert read_summary(healthy_run)["reward"]["measure"] == "reward"


def test_log_odds_are_exact_in_the_middle_and_bounded_at_the_ends() -> None:
    odds = log_odds(np.log(np.array([0.5, 0.9])))
    assert odds == pytest.approx([0.0, np.log(9)])
    assert log_odds(np.array([0.0, -1e9])) == pytest.approx([ODDS_LIMIT, -ODDS_LIMIT])


def test_control_and_direction_marks_become_visible() -> None:
    assert readable("a\x00b\u202ec\nd\te\ud800") == "a\ufffdb\ufffdc\nd\te\ufffd"


def test_a_fence_is_longer_than_any_in_the_data() -> None:
    assert fenced("```\nx").splitlines()[0] == "````text"


def test_line_breaks_cannot_end_a_markdown_table_row() -> None:
    assert escape_markdown("a\n| b") == r"a ⏎ \| b"


def test_every_slot_of_the_probe_has_a_panel() -> None:
    assert tuple(SLOT_TITLES) == SLOTS


def test_the_settings_of_a_phase_are_told_in_a_few_words(tmp_path: Path) -> None:
    detail = {"tasks": ["a", "b"], "steps": None, "epochs": 2, "fresh_optimizer": False}
    with RunLog.create(tmp_path, {"scheme": "rl"}, {}) as log:
        log.event("phase_start", index=0, kind="sft", step=1, detail=detail)
        log.commit()
    write_report(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| 0 | SFT | – | – | 2 tasks, epochs 2, fresh optimizer false | no |" in text
