"""A run that is killed, stopped or refused by its disk ends, once resumed, as if nothing had been.

Real processes and real signals. The processes are forked from a server that has imported
everything, because importing takes longer than the run.
"""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from toolrl_box import checkpoints, cli
from toolrl_box.runlog import RunLog

# Update steps: 1-2 RL, 3-5 SFT, 6-7 RL, 8-10 SFT. Checkpoints at 0, 2, 4, 5, 6, 8, 10: within
# phases and at the ends of phases, of both kinds.
STEPS = 10
SETTINGS = (
    *("steps=4", "seed=4", "scheme.every=2", "scheme.updates=3", "scheme.rule=any_failed"),
    *("grpo.prompts_per_step=2", "grpo.group_size=4", "rewards={format_share: 1}"),
    *("env.train_tasks=8", "env.eval_tasks=8", "probe.episodes=4"),
    *("eval.every=5", "eval.ood=false", "checkpoint.every=2"),
    *("rollout.max_messages=4", "rollout.max_new_tokens=12"),
)
PATIENCE = 60.0


@dataclass(frozen=True)
class Lab:
    """Starts runs of one model as processes."""

    model: Path
    context: Any

    def start(self, run_dir: Path) -> Any:
        return self._process(self.arguments(run_dir))

    def resume(self, run_dir: Path) -> Any:
        return self._process(["run", "--resume", str(run_dir), "--no-report"])

    def arguments(self, run_dir: Path) -> list[str]:
        sets = [word for pair in SETTINGS for word in ("--set", pair)]
        where = ["--model", str(self.model), "--output-dir", str(run_dir)]
        return ["run", *where, *sets, "--no-report"]

    def _process(self, arguments: list[str]) -> Any:
        process = self.context.Process(target=cli.main, args=(arguments,))
        process.start()
        return process


@pytest.fixture(scope="module")
def lab(tiny_base: Path) -> Lab:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["toolrl_box.lab", "toolrl_box.trl_backend"])
    return Lab(tiny_base, context)


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert exit_code(lab.start(run_dir)) == 0
    return run_dir


def exit_code(process: Any) -> int | None:
    process.join(PATIENCE)
    code: int | None = process.exitcode
    return code


def kill_when(process: Any, ready: Callable[[], bool], number: int = signal.SIGKILL) -> bool:
    """Signal the process once ``ready``; False when it had ended before."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline
        if not process.is_alive():
            return False
        time.sleep(0.001)
    if number == signal.SIGKILL:
        process.kill()
    else:
        process.terminate()
    return True


def reached(run_dir: Path, step: int) -> Callable[[], bool]:
    """The probe of ``step`` is on disk, committed or not."""
    return (run_dir / "probe_contexts" / f"step_{step:06d}.parquet").exists


def rewound(run_dir: Path) -> int:
    """How many sessions have begun to log, the present one included."""
    return (run_dir / "sessions.jsonl").read_bytes().count(b"\n")


def files_of_last_checkpoint(run_dir: Path) -> dict[str, str]:
    folder = checkpoints.path_of(run_dir, STEPS)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix == ".safetensors"
    }


def untimed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[[name for name in frame.columns if not name.startswith("seconds_")]]


def assert_same_run(run_dir: Path, whole: Path) -> None:
    """Weights, moments and logs, bit for bit; only the stopwatches may differ."""
    assert (run_dir / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()
    assert files_of_last_checkpoint(run_dir) == files_of_last_checkpoint(whole)
    mine, theirs = RunLog.open(run_dir), RunLog.open(whole)
    pd.testing.assert_frame_equal(untimed(mine.metrics()), untimed(theirs.metrics()), rtol=0)
    pd.testing.assert_frame_equal(mine.probe(), theirs.probe(), rtol=0)
    assert mine.rollout_steps() == theirs.rollout_steps()
    for step in mine.rollout_steps():
        pd.testing.assert_frame_equal(mine.rollouts(step), theirs.rollouts(step), rtol=0)
    for step in range(STEPS + 1):
        pd.testing.assert_frame_equal(mine.contexts(step), theirs.contexts(step), rtol=0)
    assert not list(run_dir.rglob("*.tmp"))


def test_the_undisturbed_run_really_trains_in_both_kinds_of_phase(whole: Path) -> None:
    metrics = RunLog.open(whole).metrics().set_index("step")
    assert metrics["phase_kind"].tolist()[1:] == 2 * (2 * ["rl"] + 3 * ["sft"])
    moved = metrics["grad_norm"].loc[1:] > 0  # an RL step without any reward moves nothing
    assert moved[metrics["phase_kind"] == "sft"].all()
    assert moved[metrics["phase_kind"] == "rl"].sum() >= 3
    assert {"optimizer_rl.safetensors", "optimizer_sft.safetensors"} <= set(
        files_of_last_checkpoint(whole)
    )


def test_the_same_seed_gives_the_same_run(lab: Lab, whole: Path, tmp_path: Path) -> None:
    assert exit_code(lab.start(tmp_path / "run")) == 0
    assert_same_run(tmp_path / "run", whole)


def test_killed_after_each_checkpoint_a_run_ends_as_the_undisturbed_one(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"

    def staging() -> bool:
        return any((run_dir / "checkpoints").glob(".step_*.tmp"))

    process = lab.start(run_dir)
    assert kill_when(process, staging)
    exit_code(process)
    for sessions, step in enumerate((2, 4, 5, 6, 8, 10), start=2):
        process = lab.resume(run_dir)
        ready = reached(run_dir, step)
        assert kill_when(process, lambda n=sessions, at=ready: rewound(run_dir) == n and at())
        exit_code(process)
    assert exit_code(lab.resume(run_dir)) == 0
    assert_same_run(run_dir, whole)


def test_killed_at_random_moments_a_run_ends_as_the_undisturbed_one(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    run_dir, rng = tmp_path / "run", random.Random(20240607)
    process, kills = lab.start(run_dir), 0
    assert kill_when(process, (run_dir / "config.yaml").exists)
    while exit_code(process) != 0:
        process = lab.resume(run_dir)
        end = (
            time.monotonic() + rng.uniform(0.5, 1.5) * 1.3**kills
        )  # a slow machine gets there, too
        kills += kill_when(process, lambda end=end: time.monotonic() > end)  # type: ignore[misc]
    assert kills >= 2
    assert_same_run(run_dir, whole)


@pytest.mark.parametrize("step", [1, 5])
def test_sigterm_ends_the_run_after_its_step_with_everything_saved(
    lab: Lab, whole: Path, tmp_path: Path, step: int
) -> None:
    run_dir = tmp_path / "run"
    process = lab.start(run_dir)
    assert kill_when(process, reached(run_dir, step), signal.SIGTERM)
    assert exit_code(process) == 128 + signal.SIGTERM
    assert checkpoints.complete_steps(run_dir)[-1] in (step, step + 1)
    assert exit_code(lab.resume(run_dir)) == 0
    assert_same_run(run_dir, whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    weights = checkpoints.path_of(run_dir, STEPS) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    ended = command("run", "--resume", str(run_dir), "--no-report")
    assert ended.returncode == 0, ended.stderr
    assert f"passed over: checkpoint {weights.parent} is damaged" in ended.stdout
    assert "resumed from step 8" in ended.stdout
    assert ended.stderr == ""
    assert_same_run(run_dir, whole)


def test_a_disk_that_takes_no_more_costs_one_line_and_nothing_that_was_saved(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    # Enough for the weights, not for the moments, which are twice as large.
    limit = int(1.5 * (lab.model / "model.safetensors").stat().st_size)
    ended = command(
        *lab.arguments(run_dir),
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ended.returncode == cli.USER_ERROR
    assert ended.stderr.startswith("error: cannot write ")
    assert ended.stderr.count("\n") == 1
    assert checkpoints.complete_steps(run_dir) == [0]
    assert exit_code(lab.resume(run_dir)) == 0
    assert_same_run(run_dir, whole)


def test_a_finished_run_is_left_as_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "journal.jsonl").read_bytes()
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--resume", str(whole)])
    assert ended.value.code == cli.USER_ERROR
    assert "is a finished run" in capsys.readouterr().err
    assert (whole / "journal.jsonl").read_bytes() == before


def command(
    *arguments: str, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, for what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "toolrl_box.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=before,
    )
