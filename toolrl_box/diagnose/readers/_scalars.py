"""The names of figures: what frameworks call them, and what :data:`records.SCALARS` calls them.

Names were taken from TRL 1.16 (``GRPOTrainer``), verl 0.9 (``ppo/metric_utils.py``, ``utils/
metric``), prime-rl (orchestrator and trainer logs) and our own ``metrics.parquet``. A figure that
has no common name keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolrl_box.diagnose.readers._json import number, whole
from toolrl_box.diagnose.readers._source import Source
from toolrl_box.diagnose.records import SCALARS, Origin, Scalars

# The first that a row has is taken: more exact names stand first.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "reward": (
        *("reward/mean", "rewards/mean", "mean_reward", "reward_mean", "critic/score/mean"),
        *("critic/rewards/mean", "reward/all/mean", "train/reward"),
    ),
    "reward_std": ("reward_spread", "rewards/std", "reward/std", "train/reward_std"),
    "kl": (
        *("kl/mean", "mean_kl", "approx_kl", "actor/kl_loss", "actor/ppo_kl", "objective/kl"),
        *("kl_div", "kl_divergence", "train/kl", "mismatch_kl/mean"),
    ),
    "entropy": (
        *("entropy/mean", "actor/entropy", "actor/entropy_loss", "policy/entropy"),
        *("entropy/all/mean", "train/entropy"),
    ),
    "grad_norm": ("actor/grad_norm", "optim/grad_norm", "gradient_norm", "train/grad_norm"),
    "clip_fraction": (
        *("clip_ratio/region_mean", "clip_ratio", "clipfrac", "actor/pg_clipfrac", "clip_frac"),
        *("policy/clipfrac_avg", "train/clip_ratio/region_mean"),
    ),
    "loss": ("actor/pg_loss", "loss/mean", "policy_loss", "train/loss"),
    "learning_rate": ("lr", "actor/lr", "optim/lr", "train/learning_rate"),
    "response_length": (
        *("completions/mean_length", "completion_length", "response_length/mean"),
        *("completion_tokens", "seq_len/mean", "train/completions/mean_length"),
    ),
    "truncated": (
        *("completions/clipped_ratio", "response_length/clip_ratio", "truncated_ratio"),
        *("is_truncated/mean", "train/completions/clipped_ratio"),
    ),
    "success": ("success_rate", "eval_greedy", "eval/success", "eval_success", "accuracy"),
}
STEP_NAMES = (
    *("step", "global_step", "_step", "train/global_step", "training_step", "training/global_step"),
    *("trainer/global_step", "iteration"),
)


_DIALOGUE = frozenset(
    {"messages", "prompt", "completion", "response", "input", "output", "conversations", "text"}
)


def is_scalars(names: Mapping[str, Any]) -> bool:
    """Whether a row has a step and a figure whose name is known, and no dialogue."""
    if names.keys() & _DIALOGUE:
        return False
    known = names.keys() & (SCALARS.keys() | {name for group in ALIASES.values() for name in group})
    return any(name in names for name in STEP_NAMES) and bool(known)


def scalars(source: Source, origin: Origin, row: Mapping[str, Any]) -> Scalars | None:
    """The figures of one row, texts and nulls left out; None when it has none, or no step."""
    step_name = next((name for name in STEP_NAMES if whole(row.get(name)) is not None), None)
    step = source.step if step_name is None else whole(row[step_name])
    figures = {
        name: figure
        for name, value in row.items()
        if name != step_name and (figure := number(value)) is not None
    }
    for name, others in ALIASES.items():
        if name not in figures:
            found = next((other for other in others if other in figures), None)
            if found is not None:
                figures[name] = figures.pop(found)
    if step is None or not figures:
        return None
    return Scalars(origin, step, figures)
