"""The warm-up: a supervised phase before the scheme's own, after which the base begins."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from toolrl_box import lab
from toolrl_box.checkpoints import complete_steps
from toolrl_box.config import RunConfig, parse
from toolrl_box.phases import RL, SFT, Context, Outcome, WarmedUp
from toolrl_box.runlog import RunLog
from toolrl_box.schemes.rl import RLOnly
from toolrl_box.testing import echo_task

TASK = echo_task(["a"])
CTX = Context(3, {TASK.id: TASK})
WARM, STEPS = 2, 2


def settings(base: Path) -> RunConfig:
    return parse(
        {
            "model": str(base),
            "scheme": "rl",
            "steps": STEPS,
            "warmup_updates": WARM,
            "rewards": {"format_share": 1},
            "env": {"train_tasks": 8, "eval_tasks": 4},
            "grpo": {"prompts_per_step": 2, "group_size": 4},
            "sft": {"batch_size": 2},
            "rollout": {"max_messages": 4, "max_new_tokens": 12},
            "probe": {"episodes": 4},
            "eval": {"every": 50},
            "checkpoint": {"every": 50},
        }
    )


def test_the_scheme_begins_after_the_warm_up_and_never_sees_its_outcome() -> None:
    phases = WarmedUp(RLOnly(), updates=5).phases(CTX)
    assert next(phases) == SFT((TASK,), steps=5)
    assert phases.send(Outcome(5)) == RL(3)


def test_without_updates_there_is_only_the_scheme() -> None:
    phases = WarmedUp(RLOnly(), updates=0).phases(CTX)
    assert next(phases) == RL(3)
    with pytest.raises(StopIteration):
        phases.send(Outcome(3))


def test_the_warmed_up_model_is_the_base_that_is_evaluated_saved_and_measured_from(
    tiny_base: Path, tmp_path: Path
) -> None:
    assert lab.start(settings(tiny_base), tmp_path / "run") == "done"
    log = RunLog.open(tmp_path / "run")
    begun = [event for event in log.journal() if event["event"] == "phase_start"]
    assert [(event["kind"], event["step"]) for event in begun] == [("sft", 1), ("rl", WARM + 1)]
    metrics = log.metrics().set_index("step")
    assert metrics["bank_kl"].dropna().index.tolist() == [0, WARM, WARM + 1, WARM + 2]
    assert metrics["bank_kl"][WARM] == 0
    assert metrics["bank_kl"][WARM + STEPS] > 0
    assert metrics["eval_greedy"].dropna().index.tolist() == [WARM]
    assert complete_steps(tmp_path / "run") == [0, WARM, WARM + STEPS]


def test_a_run_resumed_after_each_step_measures_from_the_same_base(
    tiny_base: Path, tmp_path: Path
) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    assert lab.start(settings(tiny_base), whole) == "done"
    one_step = lab.Watch(should_stop=lambda: True)
    assert lab.start(settings(tiny_base), run_dir, one_step) == "stopped"
    for _ in range(WARM + STEPS - 1):
        assert lab.resume(run_dir, one_step) == "stopped"
    assert lab.resume(run_dir) == "done"
    assert (run_dir / "journal.jsonl").read_bytes() == (whole / "journal.jsonl").read_bytes()
    pd.testing.assert_frame_equal(RunLog.open(run_dir).probe(), RunLog.open(whole).probe(), rtol=0)
    kl = [RunLog.open(path).metrics()["bank_kl"] for path in (run_dir, whole)]
    pd.testing.assert_series_equal(*kl, rtol=0)
