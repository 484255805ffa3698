"""The command line: exit codes, one line per mistake, lists, signals, what a run shows."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from toolrl_box import cli
from toolrl_box.commands import runs
from toolrl_box.config import RunConfig
from toolrl_box.interrupts import Interrupts
from toolrl_box.progress import Display, clock
from toolrl_box.recorder import Line
from toolrl_box.runlog import RunLog
from toolrl_box.train import Progress
from toolrl_box.types import Alarm


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--scheme", "interleavd"], "unknown scheme 'interleavd'; did you mean 'interl"),
        (["run", "--format", "hermess"], "unknown format 'hermess'; did you mean 'hermes'?"),
        (["run", "--env", "poket"], "unknown environment 'poket'; did you mean 'pocket'?"),
        (["run", "--model", "pockt"], "unknown model 'pockt'; did you mean 'pocket'?"),
        (["run", "--set", "grpo.lrr=1"], "unknown key 'grpo.lrr'; did you mean 'lr'?"),
        (["run", "--set", "scheme.evry=2"], "unknown key 'scheme.evry' for scheme"),
        (["run", "--steps", "0"], "steps = 0: input should be greater than or equal to 1"),
        (["run", "--config", "none.yaml"], "cannot read config none.yaml: No such file"),
        (["run", "--resume", "none"], "run folder none does not exist"),
        (["run", "--resume", "."], "is not a run folder: it has no config.yaml"),
        (["run", "--resume", "none", "--seed", "1"], "--resume goes on with the run's own"),
        (["report", "none"], "run folder none does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing_behind(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == cli.USER_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["run", "--steps", "many"], ["run", "--sceme", "rl"], ["list", "model"], ["rum"]]
)
def test_a_malformed_command_line_exits_with_2(arguments: list[str]) -> None:
    assert call(*arguments) == cli.USER_ERROR


def test_a_used_folder_is_never_overwritten(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    code = call("run", "--model", str(tiny_base), "--output-dir", str(tmp_path))
    assert code == cli.USER_ERROR
    assert "is not empty (it holds thesis.tex) and is never" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_runs_cannot_share_a_folder(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with RunLog.create(run_dir, RunConfig().model_dump(mode="json"), {}):
        for words in (
            ["--resume", str(run_dir)],
            ["--model", str(tiny_base), "--output-dir", str(run_dir)],
        ):
            assert call("run", *words) == cli.USER_ERROR
            assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


def test_a_folder_of_a_run_that_died_at_birth_counts_as_empty(tmp_path: Path) -> None:
    for name in ("lock", "environment.json", ".config.yaml.tmp"):
        (tmp_path / name).write_text("")
    with RunLog.create(tmp_path, {"steps": 1}, {"python": "3"}) as log:
        assert RunLog.open(log.path).environment == {"python": "3"}


def test_a_setting_that_only_the_world_can_judge_is_refused_before_the_folder_is_made(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(tiny_base), "--output-dir", str(tmp_path / "run")]
    for pair in ("env.eval_categories=[bas]", "env.train_categories=[bas]", "rewards={fun: 1}"):
        assert call("run", *words, "--set", pair) == cli.USER_ERROR
        assert "unknown" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "name", "says"),
    [
        ("schemes", "interleaved", "SFT"),
        ("envs", "pocket", "world"),
        ("formats", "hermes", "JSON"),
        ("models", "pocket", "Qwen2"),
    ],
)
def test_list_names_each_choice_with_a_line(
    what: str, name: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("list", what) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == name]
    assert len(lines) == 1
    assert says in lines[0]


def test_listing_schemes_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from toolrl_box import cli\n"
        "try: cli.main(['list', 'schemes'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_the_default_folder_is_one_that_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        path = runs._free_folder(RunConfig(seed=3))
        path.mkdir(parents=True)
        names.append(path.name)
    assert names == [f"interleaved-hermes-seed3{end}" for end in ("", "-2", "-3")]


def test_doctor_says_what_is_here_and_what_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 0
    out = capsys.readouterr().out
    for word in ("torch", "cores", "pocket-clean", "smollm2", "sharded weights"):
        assert word in out


def test_a_base_is_not_built_into_a_used_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").write_text("weights")
    assert call("base", "build", "--output", str(tmp_path)) == cli.USER_ERROR
    assert "is not empty and is never overwritten" in capsys.readouterr().err


def test_a_disk_error_outside_the_run_folder_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(cli, "app", full)
    assert call("run") == cli.USER_ERROR
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: '/tmp/x'\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_a_wish_and_the_second_an_order(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert not interrupts.asked()
        os.kill(os.getpid(), number)
        assert interrupts.asked()
        assert "finishing this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert interrupts.exit_code == code
    assert signal.getsignal(number) is before


# --- what is shown ------------------------------------------------------------------------------

ALARM = Alarm("damage", 2, 1.5, 1.25, "warn")
LINES = (
    Line(Progress(), {"eval_greedy": 0.5, "eval_sampled": 0.25}, ()),
    Line(
        Progress(step=1, rl_step=1, phase_kind="rl"),
        {"reward": 0.75, "state_healthy_call": 0.5, "state_healthy_response": 0.4},
        (),
    ),
    Line(Progress(step=2, rl_step=1, phase_kind="sft"), {"reward": float("nan")}, (ALARM,)),
)


def shown(console: Console) -> str:
    with Display(console) as display:
        display.begin(RunConfig(steps=4))
        for line in LINES:
            time.sleep(0.001)
            display.show(line)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_a_step_is_one_plain_line() -> None:
    lines = shown(Console(file=io.StringIO(), width=40)).splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("step    0  start  rl 0/4  success 0.50 greedy 0.25 sampled")
    assert lines[2].startswith("step    1  rl     rl 1/4  reward 0.75  success 0.50 greedy")
    assert "healthy 90%" in lines[2]
    assert "left 0:00" in lines[2]
    assert "alarms 1" in lines[3]
    assert "reward 0.75" in lines[3], "the latest reward stays while there is no new one"
    assert lines[4] == "ALARM (warn) at step 2: damage = 1.5, threshold 1.25"


def test_on_a_terminal_there_is_a_bar_and_alarms_stay_above_it() -> None:
    text = shown(Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None))
    assert "step 2, RL 1/4 (sft)" in text
    assert "━" in text
    assert "ALARM (warn) at step 2" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (62, "1:02"), (3723.4, "1:02:03")])
def test_a_clock_reads_like_one(seconds: float, text: str) -> None:
    assert clock(seconds) == text
