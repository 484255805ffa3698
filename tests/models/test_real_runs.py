"""Two GRPO steps of a tiny random model of each architecture, with its real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.models.real import KINDS, tiny
from toolrl_box import checkpoints, lab
from toolrl_box.config import load
from toolrl_box.models import load_model
from toolrl_box.runlog import RunLog

SETTINGS = (
    *("scheme=interleaved", "scheme.every=1", "scheme.updates=1", "scheme.rule=any_failed"),
    *("steps=2", "grpo.prompts_per_step=1", "grpo.group_size=2", "grpo.mini_batches=1"),
    *("env.train_tasks=4", "env.train_categories=[base]", "env.eval_tasks=1"),
    *("probe.episodes=2", "eval.every=50", "eval.ood=false", "sft.batch_size=1"),
    *("rollout.max_messages=2", "rollout.max_new_tokens=6", "rollout.max_tokens=2048"),
    "rewards={format_share: 1}",
)


@pytest.mark.slow  # vocabularies of 50 to 150 thousand tokens
@pytest.mark.parametrize("name", KINDS)
def test_a_model_of_this_kind_takes_two_steps_in_its_own_format(name: str, tmp_path: Path) -> None:
    folder = tiny(name, tmp_path / "model")
    run_dir = tmp_path / "run"
    more = ["model.thinking=false"] if name == "qwen3" else []
    config = load(sets=[*SETTINGS, "format=native", *more], options={"model.name": str(folder)})
    assert lab.start(config, run_dir) == "done"
    metrics = pd.DataFrame(RunLog.open(run_dir).metrics())
    assert (metrics.phase_kind == "rl").sum() == 2
    assert (metrics.phase_kind == "sft").sum() >= 1
    assert metrics.bank_nll.notna().all()
    last = checkpoints.path_of(run_dir, checkpoints.complete_steps(run_dir)[-1])
    assert load_model(str(last), fmt="native").fmt.name == "native"
