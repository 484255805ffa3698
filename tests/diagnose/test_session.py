"""From files to a diagnosis: growing logs, the command line, and agreement with run reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from toolrl_box import cli
from toolrl_box.diagnose.session import Session, diagnose
from toolrl_box.diagnose.sources import READERS
from toolrl_box.diagnose.watch import looks
from toolrl_box.report.summary import summarise
from toolrl_box.runlog import RunLog

if TYPE_CHECKING:
    from tests.diagnose.conftest import Logs

RESULTS = Path(__file__).parents[2] / "results" / "collapse"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def collapse(logs: Logs, steps: int = 40) -> list[dict[str, Any]]:
    return list(
        logs.chat(
            logs.run(
                steps,
                broken=lambda step: 0.75 * (step >= 20),
                reward=lambda step: 0.5 * (step < 20),
            )
        )
    )


@pytest.fixture
def log(logs: Logs, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "rollouts.jsonl"
    path.parent.mkdir()
    append(path, collapse(logs))
    return path


@pytest.mark.parametrize(
    "run", sorted(RESULTS.glob("*/seed*")), ids=lambda p: "-".join(p.parts[-2:])
)
def test_a_run_folder_gets_the_verdict_of_its_report(run: Path) -> None:
    """The verdicts of the committed study, from its figures alone."""
    report = summarise(RunLog.open(run))
    diagnosis, _ = diagnose([run])
    assert (diagnosis.verdict.name, diagnosis.verdict.since, diagnosis.verdict.reason) == (
        report["verdict"],
        report["onset_step"],
        report["reason"],
    )


def test_the_study_is_there() -> None:
    assert len(list(RESULTS.glob("*/seed*"))) == 32


def test_a_file_is_read_judged_and_counted(log: Path) -> None:
    found, examples = diagnose([log])
    assert found.verdict.name == "structural_collapse"
    assert (found.inputs[0].format, found.inputs[0].rollouts) == ("chat", 320)
    assert found.tool_format is not None
    assert (found.tool_format.name, found.tool_format.forced) == ("hermes", False)
    assert found.first_wrong is not None
    assert (found.first_wrong.file, found.first_wrong.line) == (str(log), 161)
    assert {message.state for message in examples} == {"healthy_call", "text_pollution"}


def test_checkpoints_beside_the_log_are_offered(log: Path) -> None:
    for step in (10, 15, 30):
        (log.parent / f"checkpoint-{step}").mkdir()
    found, _ = diagnose([log.parent])
    assert found.last_healthy is not None
    assert found.last_healthy.checkpoint == str(log.parent / "checkpoint-15")
    assert "checkpoint-15" in found.actions[0].do


def test_damaged_lines_are_named_and_cost_nothing_else(log: Path) -> None:
    with log.open("a") as file:
        file.write('{"messages": [\n')
    found, _ = diagnose([log])
    assert found.damaged == 1
    assert (found.damage[0].line, found.totals.rollouts) == (321, 320)


def test_a_tool_whose_schema_is_none_is_not_checked_and_said(logs: Logs) -> None:
    tool = type(logs.tool)("get_weather", {"type": "no such type"})
    session = logs.session(logs.run(tools=(tool,)))
    found = session.diagnosis("x")
    assert found.verdict.name == "healthy"
    assert any("their schema is none" in item.why for item in found.unjudged)


# --- growing logs ----------------------------------------------------------------------------


def test_a_growing_log_is_added_to_and_unchanged_files_are_not_opened(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    chat = type(READERS["chat"])
    read = chat.read
    monkeypatch.setattr(chat, "read", lambda self, s: opened.append(s.path) or read(self, s))
    lines = collapse(logs)
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    append(first, lines[:100])
    append(second, lines[100:150])
    session = Session()
    assert session.read([tmp_path]) == 150
    opened.clear()
    append(second, lines[150:300])
    assert session.read([tmp_path]) == 150
    assert opened == [second]
    append(tmp_path / "3.jsonl", lines[300:])
    assert session.read([tmp_path]) == 20
    once, _ = diagnose([tmp_path])
    # The tool format is chosen from what was there at first; everything else is equal.
    grown = session.diagnosis(tmp_path.name)
    assert grown.tool_format is not None
    assert grown.model_copy(update={"tool_format": once.tool_format}) == once


def test_a_log_that_was_cut_back_is_read_afresh(logs: Logs, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append(path, collapse(logs))
    session = Session()
    session.read([tmp_path])
    path.write_text("")
    append(path, collapse(logs, 12))
    session.read([tmp_path])
    assert session.diagnosis("x").totals.rollouts == 96


def test_a_watch_tells_verdicts_and_alarms_as_they_change(logs: Logs, tmp_path: Path) -> None:
    told: list[str] = []
    watched = looks(Session(), [tmp_path], told.append)
    assert next(watched) is None
    assert told[0].startswith("waiting: no log of a known format")
    lines = collapse(logs)
    append(tmp_path / "log.jsonl", lines[:160])
    next(watched)
    assert told[-1].startswith("step 19: healthy")
    next(watched)
    assert len(told) == 2
    append(tmp_path / "log.jsonl", lines[160:])
    next(watched)
    assert told[-1].startswith("step 39: structural_collapse (onset: step 20)")


# --- the command line ------------------------------------------------------------------------


def test_diagnose_prints_json_alone(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("diagnose", str(log), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["verdict"]["name"]) == (1, "structural_collapse")


def test_diagnose_against_another_run_prints_both(
    log: Path, logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    append(other, logs.chat(logs.run()))
    output = tmp_path / "out"
    arguments = ("diagnose", str(log), "--against", str(other), "--json", "--output", str(output))
    assert call(*arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["against"]["verdict"]["name"] == "healthy"
    assert call(*arguments) == 0  # its own folder may be replaced
    capsys.readouterr()
    assert call("diagnose", str(log), "--against", str(other)) == 0
    assert "Differences" in capsys.readouterr().out


def test_exit_code_3_is_for_the_named_verdicts_only(log: Path) -> None:
    assert call("diagnose", str(log), "--fail-on", "text_pollution,structural_collapse") == 3
    assert call("diagnose", str(log), "--fail-on", "healthy") == 0
    assert call("watch", str(log.parent), "--once", "--fail-on", "structural_collapse") == 3
    assert call("watch", str(log.parent), "--once") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fail-on", "structural"], "unknown verdict 'structural'"),
        (["--tool-format", "hermess"], "unknown tool format 'hermess'; did you mean 'hermes'?"),
        (["--format", "verll"], "unknown log format 'verll'; did you mean 'verl'?"),
        (["--drop-texts"], "--drop-texts is for --bundle FILE.zip"),
        (["--bundle", "/nowhere/b.zip"], "there is no folder /nowhere"),
        (["--against", "/nowhere"], "/nowhere cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    log: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("diagnose", str(log), *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_diagnose_writes_folder_and_bundle(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, zipped = tmp_path / "out", tmp_path / "b.zip"
    assert call("diagnose", str(log), "--output", str(output), "--bundle", str(zipped)) == 0
    shown = capsys.readouterr().out
    assert "failed prompts: 20, 0 with gold" in shown
    assert zipped.exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("")
    assert call("diagnose", str(log), "--output", str(tmp_path / "taken")) == 2


def test_a_csv_of_figures_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.csv"
    rows = [f"{step},{0.6 if step < 20 else 0.02},{0.1 * step}" for step in range(40)]
    path.write_text("step,reward,kl\n" + "\n".join(rows) + "\n")
    assert call("diagnose", str(path)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("reward_collapse")
    assert "figures only" in shown
