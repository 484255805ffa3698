"""Build a base of the pocket model and measure what it can do.

Input: a :class:`~toolrl_box.models.pocket.Recipe` and a new or empty folder. Output: a Hugging
Face directory with ``recipe.json``, and its success on held-out tasks in every format.

Left out: the recipe itself (``models.pocket``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toolrl_box.config import RolloutSettings
from toolrl_box.durable import writing
from toolrl_box.envs.pocket import CATEGORIES, PocketEnv, make_tasks
from toolrl_box.errors import RunFolderError
from toolrl_box.evaluate import Evaluator
from toolrl_box.formats import FORMATS
from toolrl_box.models import load_model
from toolrl_box.models.pocket import Recipe, build_base
from toolrl_box.policies.hf import HFPolicy

TASKS = 200


def build(
    recipe: Recipe, output: Path, on_update: Callable[[int, int, float], None]
) -> dict[str, float]:
    """Minutes of training. Raises RunFolderError, before any of them, for a folder in use."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise RunFolderError(f"{output} is not empty and is never overwritten: choose another")
        return build_base(recipe, output, measure, on_update)


def measure(folder: Path, tasks: int = TASKS) -> dict[str, float]:
    """``<format>_greedy`` and ``<format>_sampled`` (temperature 1): success in [0, 1] on held-out
    tasks of all four categories, as in a run's evaluation."""
    loaded = load_model(str(folder))
    pad = int(loaded.tokenizer.pad_token_id)
    policy = HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, pad)
    success = {}
    for name, fmt in FORMATS.items():
        figures = Evaluator(
            make_tasks("heldout", tasks, 0, CATEGORIES),
            policy,
            fmt,
            PocketEnv(),
            policy.encode,
            policy.decode,
            RolloutSettings(),
        )()
        success[f"{name}_greedy"] = figures["eval_greedy"]
        success[f"{name}_sampled"] = figures["eval_sampled"]
    return success
