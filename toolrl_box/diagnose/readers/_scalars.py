"""The names of figures: what frameworks call them, and what :data:`records.SCALARS` calls them.

Names are from TRL 1.16 (``GRPOTrainer``), verl 0.9.1 (``trainer/ppo/metric_utils.py``,
``workers/utils/losses.py``), prime-rl's trainer (``optim/…``, ``…/mean``) and our own
``metrics.parquet``. A figure that has no common name keeps its own.

Left out on purpose: KL between the old and the new policy, or trainer and inference
(``actor/ppo_kl``, ``approx_kl``, ``mismatch_kl``), and KL summed over a response
(``objective/kl``): they are not the KL to the reference a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolrl_box.diagnose.readers._json import number, whole
from toolrl_box.diagnose.readers._source import Source
from toolrl_box.diagnose.records import SCALARS, Origin, Scalars

# The first that a row has is taken: more exact names stand first.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "reward": (
        *("reward/mean", "rewards/mean", "mean_reward", "reward_mean"),
        *("critic/score/mean", "critic/rewards/mean", "env/all/reward/total"),
    ),
    "reward_std": ("reward_spread", "rewards/std", "reward/std"),
    "kl": ("kl/mean", "mean_kl", "actor/kl_loss", "actor/reward_kl_penalty"),
    "entropy": ("entropy/mean", "actor/entropy", "actor/entropy_loss"),
    "grad_norm": ("actor/grad_norm", "optim/grad_norm", "gradient_norm"),
    "clip_fraction": ("clip_ratio/region_mean", "clip_ratio", "actor/pg_clipfrac", "clipfrac"),
    "loss": ("actor/pg_loss", "loss/mean", "policy_loss"),
    "learning_rate": ("lr", "actor/lr", "optim/lr"),
    "response_length": (
        *("completions/mean_length", "completion_length", "response_length/mean"),
        "completion_tokens",
    ),
    "truncated": ("completions/clipped_ratio", "response_length/clip_ratio"),
    "success": ("success_rate", "eval_sampled", "eval_greedy", "eval_success"),
}
ALIASES: Mapping[str, tuple[str, ...]] = {
    # transformers' callbacks for trackers put `train/` before every name.
    name: (*others, *(f"train/{other}" for other in (name, *others)))
    for name, others in _OTHER_NAMES.items()
}
STEP_NAMES = (
    *("step", "global_step", "_step", "train/global_step", "training_step", "training/global_step"),
    *("trainer/global_step", "iteration"),
)


_KNOWN = SCALARS.keys() | {name for group in ALIASES.values() for name in group}
_DIALOGUE = frozenset(
    {"messages", "prompt", "completion", "response", "input", "output", "conversations", "text"}
)


def is_scalars(names: Mapping[str, Any]) -> bool:
    """Whether a row has a step and a figure whose name is known, and no dialogue."""
    if names.keys() & _DIALOGUE:
        return False
    return any(name in names for name in STEP_NAMES) and bool(names.keys() & _KNOWN)


def spelled(name: str) -> str:
    """A known name however it is capitalised (``Step``), any other name as it is."""
    lower = name.lower()
    return lower if lower in _KNOWN or lower in STEP_NAMES else name


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
