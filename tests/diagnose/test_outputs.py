"""What a diagnosis looks like on a terminal, in Markdown, CSV, JSON, a folder and a bundle."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from rich.console import Console

from toolrl_box import cli
from toolrl_box.diagnose import bundle, outputs, terminal
from toolrl_box.diagnose.against import compare
from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.failed_prompts import write_failed_prompts
from toolrl_box.diagnose.judge import Judge
from toolrl_box.diagnose.markdown import markdown, markdown_of_both
from toolrl_box.diagnose.plain import cell, inline
from toolrl_box.diagnose.records import LoggedCall, LoggedMessage, Record
from toolrl_box.diagnose.session import Session
from toolrl_box.diagnose.table import states_csv
from toolrl_box.errors import ConfigError

if TYPE_CHECKING:
    from tests.diagnose.conftest import Logs

SCHEMA = Path(__file__).parents[2] / "docs" / "diagnosis.schema.json"
EVIL = "\x1b[31m[bold]red[/bold]\x1b]0;title\x07 <script>alert(1)</script> | `x` \u202e"


@pytest.fixture(scope="module")
def evil(logs: Logs) -> Session:
    """A collapse in which every text, name and id is hostile."""
    return logs.session(
        (
            logs.rollout(
                step,
                f"<tool_call>{EVIL}" if step >= 20 else logs.call,
                float(step < 20 and step % 2),
                id=f"=cmd {EVIL}",
                category=f"=HYPERLINK({EVIL})",
                model=EVIL,
            )
            for step in range(40)
            for _ in range(4)
        ),
        logs.scalars(40, **{f"=1+1{EVIL}": lambda step: 1.0, "@SUM": lambda step: 2.0}),
    )


@pytest.fixture(scope="module")
def fallen(logs: Logs) -> Session:
    return logs.session(
        logs.run(
            broken=lambda step: 0.75 * (step >= 20),
            reward=lambda step: 0.5 * (step < 20),
            model="secret-model",
        )
    )


def printed(diagnosis: Diagnosis) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    terminal.show(diagnosis, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_no_escape_sequence_and_reads_no_markup(evil: Session) -> None:
    shown = printed(evil.diagnosis(EVIL))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "[bold]red[/bold]" in shown


def test_the_terminal_tells_verdict_onset_and_advice(fallen: Session) -> None:
    shown = printed(fallen.diagnosis("run"))
    assert shown.startswith("structural_collapse")
    assert "healthy at step 20" in shown
    assert "Lower the learning rate first" in shown
    assert "Could not be judged" in shown


def test_markdown_escapes_what_comes_from_the_log(evil: Session) -> None:
    text = markdown(evil.diagnosis(EVIL))
    prose = text.replace(text[text.index("```text") : text.rindex("```")], "")
    assert "<script>" not in prose
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| \\=HYPERLINK")]
    assert rows
    assert all(row.replace("\\|", "").count("|") == 7 for row in rows)


def test_a_fence_in_a_message_does_not_end_the_code_block(logs: Logs) -> None:
    bad = "<tool_call>\n```\n# not a heading\n```"
    session = logs.session(logs.run(broken=lambda step: 0.75 * (step >= 20), bad=bad))
    text = markdown(session.diagnosis("x"))
    assert "````text\n<tool_call>\n```\n# not a heading" in text


def test_csv_cells_cannot_be_formulas(evil: Session) -> None:
    rows = list(csv.reader(io.StringIO(states_csv(evil.diagnosis("x").steps))))
    assert len(rows) == 41
    assert not [name for row in rows for name in row if name.startswith(("=", "+", "-", "@", "\t"))]
    assert any(name.startswith("'=1+1") for name in rows[0])
    assert rows[1][:3] == ["0", "4", "4"]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\tx", "\rx", " =1"])
def test_dangerous_cells_get_an_apostrophe(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert cell("reward") == "reward"


def test_a_line_stays_a_line_and_short() -> None:
    assert inline("a\nb\x1b[0m\u202e") == "a⏎b\ufffd[0m\ufffd"
    assert len(inline("x" * 1000, 50)) == 50


# --- JSON ------------------------------------------------------------------------------------


def test_the_committed_schema_is_that_of_the_model() -> None:
    assert SCHEMA.read_text() == outputs.schema()


def test_every_diagnosis_follows_the_schema_and_comes_back_equal(
    evil: Session, fallen: Session, logs: Logs
) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for session in (evil, fallen, logs.session(logs.scalars(12, kl=lambda step: 0.1))):
        diagnosis = session.diagnosis("x")
        text = outputs.to_json(diagnosis)
        jsonschema.validate(json.loads(text), schema)
        assert Diagnosis.model_validate_json(text) == diagnosis


# --- the folder ------------------------------------------------------------------------------


def result(session: Session, name: str = "run") -> outputs.Result:
    return outputs.Result(
        session.diagnosis(name), tuple(session.examples()), session.aggregate.reward.middle
    )


def test_the_folder_holds_everything_and_may_be_written_again(
    fallen: Session, logs: Logs, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    for _ in range(2):
        outputs.write(folder, result(fallen), logs.run(), Judge())
    assert {path.name for path in folder.iterdir()} == {
        *("index.html", "report.md", "diagnosis.json", "states.csv", "failed_prompts.jsonl"),
        *("states.png", "states.svg", "reward.png", "reward.svg", "signals.png", "signals.svg"),
    }
    assert (folder / "states.png").read_bytes()[:4] == b"\x89PNG"


def test_matters_of_taste_can_be_set_and_are_told(
    logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    said = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}
    said["messages"][1]["content"] = call + call
    path.write_text("".join(json.dumps({**said, "step": n, "reward": 1}) + "\n" for n in range(9)))
    kinds = []
    for options in ([], ["--policy", "several_calls=flag"]):
        main_exit(["diagnose", str(path), "--json", *options])
        told = json.loads(capsys.readouterr().out)
        kinds.append(told["steps"][0]["kinds"])
        assert told["policies"] == ({"several_calls": "flag"} if options else {})
    assert kinds == [{"call": 1}, {"several_calls": 1}]
    main_exit(["diagnose", str(path), "--policy", "several=flag"], 2)
    assert "unknown policy 'several'" in capsys.readouterr().err
    main_exit(["diagnose", str(path), "--policy", "thinking=maybe"], 2)
    assert "policy thinking = 'maybe'; one of: allow, flag" in capsys.readouterr().err


def test_two_runs_of_one_name_are_told_apart_by_their_folders(
    logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arm in ("rl", "interleaved"):
        (tmp_path / arm / "seed1").mkdir(parents=True)
        said = {"messages": [{"role": "assistant", "content": "Hello."}], "step": 1, "reward": 1}
        (tmp_path / arm / "seed1" / "log.jsonl").write_text(json.dumps(said) + "\n")
    one, other = (str(tmp_path / arm / "seed1") for arm in ("rl", "interleaved"))
    main_exit(["diagnose", one, "--against", other, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["diagnosis"]["name"], told["against"]["name"]) == ("rl/seed1", "interleaved/seed1")


def main_exit(arguments: list[str], code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert (ended.value.code or 0) == code


def test_pictures_are_the_same_bytes_again(fallen: Session, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        outputs.figures.draw(fallen.diagnosis("x"), tmp_path / name)
        made.append([p.read_bytes() for p in sorted((tmp_path / name).iterdir())])
    assert made[0] == made[1]


def test_a_folder_of_other_things_is_refused_and_left_alone(
    fallen: Session, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(it holds thesis.tex\)"):
        outputs.write(tmp_path, result(fallen), (), Judge())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "diagnosis.json").write_text('{"written_by": "someone"}')
    with pytest.raises(ConfigError, match="no earlier diagnosis"):
        outputs.check_folder(tmp_path)


def test_two_runs_are_compared(fallen: Session, logs: Logs) -> None:
    healthy = logs.session(logs.run()).diagnosis("other")
    both = compare(fallen.diagnosis("run"), healthy)
    rows = {row.what: (row.here, row.there) for row in both.differences}
    assert rows["verdict"] == ("structural_collapse", "healthy")
    assert rows["onset of healthy"][1] == "–"
    assert rows["text pollution, last 5 steps"] == ("75.0%", "0.0%")
    assert "rollouts" not in rows
    text = markdown_of_both(both)
    assert text.index("# run against other") < text.index("# run: ") < text.index("# other: ")


# --- failed prompts --------------------------------------------------------------------------


def lines(path: Path, records: list[Record], **options: Any) -> list[dict[str, Any]]:
    given = {"judge": Judge(), "since": None, "middle": 0.5, **options}
    write_failed_prompts(path, records, **given)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_failed_prompts_come_once_with_gold_and_tools(logs: Logs, tmp_path: Path) -> None:
    gold = (
        LoggedMessage("assistant", "", (LoggedCall("get_weather", '{"city": "Oslo"}'),)),
        LoggedMessage("tool", "rain"),
        LoggedMessage("assistant", "It rains."),
    )
    records: list[Record] = [
        logs.rollout(1, reward=0.0, gold=gold, tools=(logs.tool,)),
        logs.rollout(1, reward=0.0, gold=gold, tools=(logs.tool,), id="again"),
        logs.rollout(2, reward=1.0),
        logs.rollout(3, reward=0.0),
        *logs.scalars(3, loss=lambda step: 0.1),
    ]
    first, second = lines(tmp_path / "f.jsonl", records)
    roles = [message["role"] for message in first["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    call = first["messages"][1]["tool_calls"][0]["function"]
    assert call == {"name": "get_weather", "arguments": {"city": "Oslo"}}
    assert first["tools"][0]["function"]["name"] == "get_weather"
    assert (first["gold"], first["prompt_messages"], second["gold"]) == (True, 1, False)
    assert second["step"] == 3


def test_failures_before_the_onset_do_not_count(logs: Logs, tmp_path: Path) -> None:
    records: list[Record] = [logs.rollout(step, reward=0.0) for step in range(10)]
    found = lines(tmp_path / "f.jsonl", records, since=7)
    assert [line["step"] for line in found] == [7, 8, 9]


def test_without_rewards_broken_messages_are_failures(logs: Logs, tmp_path: Path) -> None:
    records: list[Record] = [
        logs.rollout(step, logs.open if step % 2 else logs.call, None) for step in range(4)
    ]
    found = lines(tmp_path / "f.jsonl", records, middle=None)
    assert [line["step"] for line in found] == [1, 3]


# --- the bundle ------------------------------------------------------------------------------


def unzipped(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_bundle_names_nobody(fallen: Session, tmp_path: Path) -> None:
    found = result(fallen, "secret-run")
    bundle.write_bundle(tmp_path / "b.zip", found.diagnosis, found.examples, drop_texts=False)
    files = unzipped(tmp_path / "b.zip")
    assert set(files) == {
        *("README.md", "diagnosis.json", "report.md", "states.csv", "examples.jsonl")
    }
    everything = "\n".join(files.values())
    for name in ("secret-model", "secret-run", "log.jsonl", '"20/0"', "20/0,"):
        assert name not in everything
    assert '"city": \\"Os' in files["examples.jsonl"] or "Os" in files["examples.jsonl"]
    Diagnosis.model_validate_json(files["diagnosis.json"])


def test_a_bundle_without_texts_holds_none(evil: Session, tmp_path: Path) -> None:
    found = result(evil)
    bundle.write_bundle(tmp_path / "b.zip", found.diagnosis, found.examples, drop_texts=True)
    files = unzipped(tmp_path / "b.zip")
    assert "examples.jsonl" not in files
    made = json.loads(files["diagnosis.json"])
    assert made["first_wrong"]["excerpt"] == ""
    assert made["first_wrong"]["rollout"].startswith("id-")
    assert "no text of any message" in files["README.md"]


def test_the_same_log_gives_the_same_bundle_and_another_log_other_hashes(
    fallen: Session, logs: Logs, tmp_path: Path
) -> None:
    found = result(fallen)
    for name in ("a", "b"):
        bundle.write_bundle(tmp_path / name, found.diagnosis, found.examples, drop_texts=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = result(logs.session(logs.run(41, model="secret-model")))
    bundle.write_bundle(tmp_path / "c", other.diagnosis, other.examples, drop_texts=False)
    names = [json.loads(unzipped(tmp_path / n)["diagnosis.json"])["name"] for n in ("a", "c")]
    assert names[0] != names[1]
