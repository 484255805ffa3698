"""Files are found, ordered and given to the reader that knows them; nothing else is opened."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from toolrl_box.diagnose.readers import READERS
from toolrl_box.diagnose.readers._open import head
from toolrl_box.diagnose.records import Checkpoint, Damage, LoggedRollout, Scalars
from toolrl_box.diagnose.sources import detect, read
from toolrl_box.errors import ConfigError, DataError

LOGS = Path(__file__).parent.parent / "data" / "logs"
LINE = json.dumps({"messages": [{"role": "assistant", "content": "hello"}]}) + "\n"


def formats(path: Path) -> dict[str, str]:
    return {source.path.name: reader.name for reader, source in detect([path]).files}


def names(*paths: Path) -> list[str]:
    return [source.path.name for _, source in detect(paths).files]


@pytest.mark.parametrize(
    "name",
    [
        "verl",
        "verl-tool",
        "verifiers",
        "prime-rl",
        "tau-bench",
        "bfcl",
        "chat",
        "scalars",
        "transcript",
        "trl",
        "toolrl",
    ],
)
def test_every_fixture_is_known_by_its_own_reader(name: str) -> None:
    found = formats(LOGS / name.replace("-", "_"))
    assert name in found.values()
    assert set(found.values()) <= {name, "scalars", "trainer_state"}


def test_no_two_readers_fit_one_fixture_except_where_one_is_the_more_particular() -> None:
    shared = set()
    for reader, found in detect([LOGS]).files:
        source = replace(found, head=head(found.path))
        fitting = {other.name for other in READERS.values() if other.fits(source)}
        assert reader.name in fitting
        shared |= {(reader.name, other) for other in fitting - {reader.name}}
    particular = {("prime-rl", "verifiers"), ("verifiers", "chat"), ("verl-tool", "chat")}
    assert shared <= {*particular, ("chat", "scalars")}


def test_a_folder_may_hold_several_kinds_at_once() -> None:
    found = list(read([LOGS / "trl" / "text"]))
    assert [type(record) for record in found] == [
        Checkpoint,
        *[Scalars] * 3,
        *[LoggedRollout] * 24,
    ]


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (10, 9, 100, 1):
        (tmp_path / f"{step}.jsonl").write_text(LINE)
    assert [record.step for record in read([tmp_path]) if isinstance(record, LoggedRollout)] == [
        1,
        9,
        10,
        100,
    ]


def test_the_step_stands_in_the_record_or_the_files_name_or_a_folders(tmp_path: Path) -> None:
    paths = {
        "a.jsonl": None,
        "7.jsonl": 7,
        "run-step-8.jsonl": 8,
        "step_9/train/b.jsonl": 9,
        "global_step_10/b.txt": None,  # a checkpoint: not looked into
        "my_step2_run/c.jsonl": None,
        "2026-11-23.jsonl": None,
    }
    for name in paths:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LINE)
    found = {
        str(record.origin.file.relative_to(tmp_path)): record.step
        for record in read([tmp_path])
        if isinstance(record, LoggedRollout)
    }
    assert found == {name: step for name, step in paths.items() if "global" not in name}


def test_checkpoints_are_named_and_not_looked_into(tmp_path: Path) -> None:
    for name in ("checkpoint-20", "checkpoints/step_000003", "global_step_4/actor", "step_5"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "log.jsonl").write_text(LINE)
    found = detect([tmp_path])
    assert [(item.step, item.path.name) for item in found.checkpoints] == [
        (3, "step_000003"),
        (4, "global_step_4"),
        (20, "checkpoint-20"),
    ]
    assert names(tmp_path) == ["log.jsonl"]  # of step_5, which is no checkpoint here


def test_of_several_trainer_states_of_a_run_the_last_is_read(tmp_path: Path) -> None:
    for run in ("a", "b"):
        for step in (5, 10, 9):
            folder = tmp_path / run / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            history = [{"step": n, "loss": 1.0} for n in range(1, step + 1)]
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert [record.step for record in read([tmp_path]) if isinstance(record, Scalars)] == [
        *range(1, 11)
    ] * 2
    (tmp_path / "a" / "trainer_state.json").write_text('{"log_history": [{"step": 3, "loss": 1}]}')
    assert [record.step for record in read([tmp_path / "a"]) if isinstance(record, Scalars)] == [3]


def test_a_link_that_leads_outside_is_refused_and_named(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "more").mkdir(parents=True)
    (outside / "secret.jsonl").write_text(LINE)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "a.jsonl").write_text(LINE)
    (folder / "file.jsonl").symlink_to(outside / "secret.jsonl")
    (folder / "folder").symlink_to(outside)
    (folder / "nowhere.jsonl").symlink_to(tmp_path / "missing")
    (folder / "inside.jsonl").symlink_to(folder / "a.jsonl")
    (folder / "circle").symlink_to(folder)
    found = detect([folder])
    assert [source.path.name for _, source in found.files] == ["a.jsonl"]
    assert {item.origin.file.name: item.reason.split(":")[0] for item in found.damage} == {
        "file.jsonl": "a symbolic link that leads outside the given paths is not followed",
        "folder": "a symbolic link that leads outside the given paths is not followed",
        "nowhere.jsonl": "a broken symbolic link",
    }


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jsonl").write_text(LINE)
    (tmp_path / "latest").symlink_to(tmp_path / "real")
    assert names(tmp_path / "latest") == ["a.jsonl"]


def test_a_file_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)
    assert names(tmp_path, tmp_path / "a.jsonl", tmp_path) == ["a.jsonl"]


def test_hidden_files_pipes_and_unknown_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in ("a.jsonl", ".hidden.jsonl", ".git/b.jsonl"):
        (tmp_path / name).write_text(LINE)
    (tmp_path / "notes.txt").write_text("Remember the milk.\n")
    os.mkfifo(tmp_path / "pipe.jsonl")
    found = detect([tmp_path])
    assert [source.path.name for _, source in found.files] == ["a.jsonl"]
    assert [path.name for path in found.unread] == ["notes.txt"]
    assert [item.reason for item in found.damage] == ["not a regular file"]


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "rollouts.jsonl").mkdir()
    (tmp_path / "rollouts.jsonl" / "a.jsonl").write_text(LINE)
    assert names(tmp_path) == ["a.jsonl"]


def test_a_forced_format_reads_what_detection_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "said.weird"
    path.write_text("one\n\ntwo\n")
    with pytest.raises(
        DataError, match=r"no log of a known format: files seen: .*said\.weird.*--format"
    ):
        detect([path])
    said = [r.messages[0].text for r in read([path], "transcript") if isinstance(r, LoggedRollout)]
    assert said == ["one", "two"]


def test_a_forced_format_names_what_does_not_fit_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "b.parquet").write_bytes(b"")
    [record] = read([tmp_path], "verl")
    assert isinstance(record, Damage)
    assert record.reason == "input and output must be texts, not null and null"
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"no log of format 'chat': files seen: .*b\.parquet"):
        read([tmp_path], "chat")


def test_errors_name_the_value_and_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown log format 'verll'; did you mean 'verl'"):
        read([LOGS], "verll")
    with pytest.raises(DataError, match="missing cannot be read: No such file"):
        read([tmp_path / "missing"])
    with pytest.raises(DataError, match="no log of a known format: no file was seen; formats"):
        read([tmp_path])
    with pytest.raises(DataError, match="cannot be read"):
        read(["a\0b"])


def test_rows_with_a_dialogue_are_never_read_as_mere_figures(tmp_path: Path) -> None:
    row = {"step": 1, "reward": 0.5, "prompt": "q", "response": "a"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert formats(tmp_path) == {"a.jsonl": "chat"}


def test_heads_of_files_are_not_kept(tmp_path: Path) -> None:
    for step in range(20):
        (tmp_path / f"{step}.jsonl").write_text(LINE.replace("hello", "x" * 50_000))
    assert sum(len(source.head) for _, source in detect([tmp_path]).files) < 5000
