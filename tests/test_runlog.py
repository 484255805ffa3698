"""The run folder survives kills, full disks, second writers and damaged files."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from toolrl_box.errors import ConfigError, RunFolderError
from toolrl_box.runlog import METRICS, RIGHT_TOKEN, START, RunLog

CONFIG = {"scheme": "interleaved", "optimizer": {"lr": 1e-3}, "note": "naïve ✓"}
ENVIRONMENT = {"python": "3.11", "threads": 1}


def rollout(step: int, member: int) -> dict[str, Any]:
    return {
        "step": step,
        "group": 0,
        "member": member,
        "task_id": "files-7",
        "category": "base",
        "source": "policy",
        "reward": 1.0,
        "reward_parts": {"success": 1.0},
        "success": 1.0,
        "stop_reason": "done",
        "error": None,
        "messages": [{"role": "assistant", "content": "caf\u00e9 \ud800", "state": "collapsed"}],
        "token_ids": [1, 2, 3],
        "loss_mask": [False, True, True],
        "logprobs": [0.0, -0.5, -0.25],
    }


def log_step(log: RunLog, step: int) -> None:
    """One training step as the loop writes it; a kind of defect appears from step 3 on."""
    log.event("checkpoint", step=step, reason="every step")
    row: dict[str, Any] = {"step": step, "phase_kind": "rl", "reward": 0.1 * step}
    log.metrics(row | ({"kind_debris": 0.5} if step >= 3 else {}))
    token = {"mean_logprob": -0.1 * step, "q05": -1.0, "q50": -0.1, "q95": 0.0, "n": 12}
    log.probe([{"step": step, "slot": "after_call", "token": RIGHT_TOKEN, **token}])
    log.contexts(step, {"slot": ["after_call"] * 2, "right": [-0.1, -0.2 * step]})
    log.rollouts(step, [rollout(step, member) for member in range(2)])


def reproducible_files(path: Path) -> dict[str, bytes]:
    own = {"sessions.jsonl", "lock"}
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in own
    }


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """While it holds, the folder of files called ``name`` cannot take another byte."""
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        yield


def test_what_was_logged_is_read_back(tmp_path: Path) -> None:
    with RunLog.create(tmp_path / "run", CONFIG, ENVIRONMENT) as log:
        log.event("phase_start", index=0, kind="rl", step=1, detail="5 steps")
        log_step(log, 1)
        log.commit()
    view = RunLog.open(tmp_path / "run")
    assert view.config == CONFIG
    assert view.environment == ENVIRONMENT
    assert [event["event"] for event in view.journal()] == ["phase_start", "checkpoint"]
    assert view.metrics()["reward"].tolist() == [0.1]
    assert view.probe()[["slot", "token", "mean_logprob"]].values.tolist() == [
        ["after_call", RIGHT_TOKEN, -0.1]
    ]
    assert view.contexts(1)["right"].tolist() == [-0.1, -0.2]
    assert view.rollout_steps() == [1]
    first = view.rollouts(1).iloc[0]
    assert first["messages"] == rollout(1, 0)["messages"]
    assert first["reward_parts"] == {"success": 1.0}
    assert list(first["loss_mask"]) == [False, True, True]
    assert list(first["logprobs"]) == [0.0, -0.5, -0.25]


def test_a_figure_that_a_step_does_not_have_is_nan_and_every_fixed_column_is_there(
    tmp_path: Path,
) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log.metrics({"step": 0, "eval_greedy": 0.4, "eval_greedy_base": 0.5})
        log.metrics({"step": 1, "phase": 0, "phase_kind": "sft", "loss": 1.5})
        log.commit()
    metrics = RunLog.open(tmp_path).metrics()
    assert list(metrics.columns) == [*METRICS, "eval_greedy_base"]
    assert math.isnan(metrics["reward"][1])
    assert math.isnan(metrics["eval_greedy_base"][1])
    assert metrics["phase_kind"].tolist() == ["", "sft"]


def test_an_unknown_metric_or_event_is_refused_with_the_intended_name(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        with pytest.raises(ConfigError, match="did you mean 'reward'"):
            log.metrics({"step": 1, "rewrad": 0.5})
        with pytest.raises(ConfigError, match="did you mean 'phase_start'"):
            log.event("phase_strat")


def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"thesis\.tex.*--resume") as raised:
        RunLog.create(tmp_path, CONFIG, ENVIRONMENT)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*run"):
        RunLog.create(tmp_path / "run", CONFIG, ENVIRONMENT)


def test_two_runs_on_one_folder_name_the_process_that_has_it(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT):
        for start in (lambda: RunLog.resume(tmp_path), lambda: RunLog.create(tmp_path, {}, {})):
            with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
                start()
    RunLog.resume(tmp_path).close()


def test_reading_needs_no_lock_while_a_run_is_going_on(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log_step(log, 1)
        log.commit()
        assert len(RunLog.open(tmp_path).metrics()) == 1


def test_a_resumed_run_ends_with_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for path in (whole, broken):
        with RunLog.create(path, CONFIG, ENVIRONMENT) as log:
            for step in range(1, 3):
                log_step(log, step)
            cursor = log.commit()
            for step in range(3, 5):
                log_step(log, step)
            log.commit()
    # A kill later on: half an event, a table half written, and rows beyond the checkpoint.
    with open(broken / "journal.jsonl", "ab") as journal:
        journal.write(b'{"event": "check')
    (broken / ".metrics.parquet.tmp").write_bytes(b"PAR1")
    (broken / "rollouts" / ".step_000005.parquet.tmp").write_bytes(b"PAR1")
    with RunLog.resume(broken) as log:
        log.rewind(json.loads(json.dumps(cursor)))
        assert RunLog.open(broken).metrics()["step"].tolist() == [1, 2]
        assert "kind_debris" not in RunLog.open(broken).metrics()
        assert RunLog.open(broken).rollout_steps() == [1, 2]
        for step in range(3, 5):
            log_step(log, step)
            log.commit()
    assert reproducible_files(broken) == reproducible_files(whole)


def test_rewinding_twice_is_rewinding_once(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log_step(log, 1)
        cursor = log.commit()
        log_step(log, 2)
        log.commit()
    states = []
    for _ in range(2):
        with RunLog.resume(tmp_path) as log:
            log.rewind(cursor)
        states.append(reproducible_files(tmp_path))
    assert states[0] == states[1]


def test_a_run_that_died_before_its_first_checkpoint_restarts_from_nothing(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log_step(log, 1)
    with RunLog.resume(tmp_path) as log:
        log.rewind(START)
    view = RunLog.open(tmp_path)
    assert view.journal() == []
    assert view.metrics().empty
    assert view.rollout_steps() == []
    sessions = (tmp_path / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(line)["resumed_from"] for line in sessions] == [None, -1]


def test_nothing_can_be_logged_to_a_resumed_folder_before_it_is_rewound(tmp_path: Path) -> None:
    RunLog.create(tmp_path, CONFIG, ENVIRONMENT).close()
    with RunLog.resume(tmp_path) as log, pytest.raises(AssertionError, match="rewind"):
        log.event("finish")


def test_a_folder_that_holds_less_than_the_checkpoint_promises_is_refused(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log_step(log, 1)
        cursor = log.commit()
    with RunLog.resume(tmp_path) as log:
        with pytest.raises(RunFolderError, match="ends at step 1, the checkpoint expects step 9"):
            log.rewind({**cursor, "step": 9})
        with pytest.raises(RunFolderError, match="the checkpoint expects 99999"):
            log.rewind({**cursor, "journal_bytes": 99999})


def test_a_real_kill_leaves_a_folder_that_can_be_read_and_resumed(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from toolrl_box.runlog import RunLog
        log = RunLog.create(sys.argv[1], {"scheme": "rl"}, {})
        for step in range(1, 100_000):
            log.event("checkpoint", step=step, reason="every step")
            log.metrics({"step": step, "reward": 0.5})
            log.commit()
            print(step, flush=True)
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reached = [int(process.stdout.readline()) for _ in range(5)][-1]
        with pytest.raises(RunFolderError, match=f"in use by process {process.pid}"):
            RunLog.resume(tmp_path / "run")
        process.send_signal(signal.SIGKILL)
    view = RunLog.open(tmp_path / "run")
    assert view.metrics()["step"].max() >= reached
    assert len(view.journal()) >= reached
    with RunLog.resume(tmp_path / "run") as log:
        line = len(json.dumps({"event": "checkpoint", "step": 1, "reason": "every step"})) + 1
        log.rewind({"journal_bytes": line, "step": 1})
    assert view.journal() == [{"event": "checkpoint", "step": 1, "reason": "every step"}]


def test_a_full_disk_is_one_line_and_the_committed_state_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log_step(log, 1)
        log.commit()
        before = reproducible_files(tmp_path)
        log.metrics({"step": 2, "reward": 0.2})
        with (
            full_disk(monkeypatch, "metrics.parquet"),
            pytest.raises(RunFolderError, match=r"No space left on device; .* intact") as raised,
        ):
            log.commit()
        assert "\n" not in str(raised.value)
        assert reproducible_files(tmp_path) == before
        log.commit()  # once there is room again, nothing is missing
    assert RunLog.open(tmp_path).metrics()["step"].tolist() == [1, 2]


def test_a_disk_that_fills_within_an_event_leaves_no_half_line(tmp_path: Path) -> None:
    """The real thing: the file size limit of a child process stops the write half-way."""
    program = textwrap.dedent(
        """
        import resource, signal, sys
        from toolrl_box.errors import RunFolderError
        from toolrl_box.runlog import RunLog
        log = RunLog.create(sys.argv[1], {"scheme": "rl"}, {})
        log.event("finish", text="whole")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
        try:
            log.event("finish", text="x" * 100)
        except RunFolderError as error:
            print(error)
        """
    )
    path = tmp_path / "run"
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == (
        f"cannot write {path / 'journal.jsonl'}: File too large; "
        "what was committed before is intact\n"
    )
    assert (path / "journal.jsonl").read_text() == '{"event": "finish", "text": "whole"}\n'


def test_a_line_damaged_in_the_middle_of_the_journal_is_named(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log.event("finish")
    (tmp_path / "journal.jsonl").write_text('{"event": "finish"}\nrubbish\n{"event": "finish"}\n')
    with pytest.raises(RunFolderError, match="line 2 is not JSON"):
        RunLog.open(tmp_path).journal()


@pytest.mark.parametrize(
    "name", ["metrics.parquet", "probe.parquet", "rollouts/step_000001.parquet"]
)
def test_a_missing_or_damaged_table_is_one_clear_line(tmp_path: Path, name: str) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log_step(log, 1)
        log.commit()
    view = RunLog.open(tmp_path)
    read = {
        "metrics.parquet": view.metrics,
        "probe.parquet": view.probe,
        "rollouts/step_000001.parquet": lambda: view.rollouts(1),
    }[name]
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(RunFolderError, match="is damaged: ") as raised:
        read()
    assert "\n" not in str(raised.value)
    (tmp_path / name).unlink()
    with pytest.raises(RunFolderError, match="is missing"):
        read()


def test_a_folder_that_is_not_a_run_folder_says_so(tmp_path: Path) -> None:
    for use in (RunLog.open, RunLog.resume):
        with pytest.raises(RunFolderError, match="does not exist"):
            use(tmp_path / "nowhere")
        with pytest.raises(RunFolderError, match=r"no config\.yaml"):
            use(tmp_path)
    (tmp_path / "config.yaml").write_text("[unclosed")
    with pytest.raises(RunFolderError, match=r"config\.yaml is damaged") as raised:
        RunLog.open(tmp_path)
    assert "\n" not in str(raised.value)


def test_steps_only_go_up(tmp_path: Path) -> None:
    with RunLog.create(tmp_path, CONFIG, ENVIRONMENT) as log:
        log.metrics({"step": 3})
        with pytest.raises(AssertionError, match="step 3 after 3"):
            log.metrics({"step": 3})


def test_a_copied_run_folder_can_be_resumed_elsewhere(tmp_path: Path) -> None:
    with RunLog.create(tmp_path / "here", CONFIG, ENVIRONMENT) as log:
        log_step(log, 1)
        cursor = log.commit()
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        with RunLog.resume(tmp_path / "there") as copy:
            copy.rewind(cursor)
    assert reproducible_files(tmp_path / "here") == reproducible_files(tmp_path / "there")
