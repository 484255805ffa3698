"""Build a base of an embedded model and measure what it can do.

Input: a :class:`~toolrl_box.models.pretrain.Recipe` and a new or empty folder. Output: a Hugging
Face directory with ``recipe.json``, and its success on held-out tasks of its world.

Left out: the recipes themselves (``models.pocket``, ``models.search``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolrl_box.config import RolloutSettings
from toolrl_box.durable import writing
from toolrl_box.envs.pocket import CATEGORIES, PocketEnv
from toolrl_box.envs.search import SearchEnv
from toolrl_box.errors import ConfigError, RunFolderError, lookup
from toolrl_box.evaluate import Evaluator
from toolrl_box.formats import FORMATS
from toolrl_box.formats.icrl import Icrl
from toolrl_box.models import Loaded, load_model
from toolrl_box.models.pocket import PocketRecipe
from toolrl_box.models.pretrain import Measure, Recipe, build_base
from toolrl_box.models.search import SearchRecipe
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.probe.bank import build_bank
from toolrl_box.probe.probe import Probe
from toolrl_box.prompting import with_demonstrations
from toolrl_box.types import Task, ToolFormat, World

TASKS = 200
SHOTS = 3
BANK = 24


def recipe_for(
    world: str,
    seed: int,
    *,
    noise: float | None = None,
    gate: float | None = None,
    width: int | None = None,
) -> Recipe:
    """The recipe of a world's bases; ``width``: hidden size of the network. Raises ConfigError for
    an unknown world and for a knob of another world's recipe."""
    lookup("world", world, WORLDS)
    for knob, value in {"noise": noise, "gate": gate}.items():
        if value is not None and knob != WORLDS[world]:
            raise ConfigError(
                f"--{knob} {value}: the recipe of world '{world}' has no {knob}; its knob is "
                f"--{WORLDS[world]}"
            )
    given = {"noise": noise, "gate": gate, "hidden_size": width}
    if width is not None:
        given["intermediate_size"] = 2 * width
    knobs: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return (SearchRecipe if world == "search" else PocketRecipe)(seed=seed, **knobs)


def build(
    recipe: Recipe, output: Path, on_update: Callable[[int, int, float], None]
) -> dict[str, float]:
    """Minutes of training. Raises RunFolderError, before any of them, for a folder in use."""
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise RunFolderError(f"{output} is not empty and is never overwritten: choose another")
        return build_base(recipe, output, MEASURES[type(recipe)], on_update)


def measure_pocket(folder: Path, tasks: int = TASKS) -> dict[str, float]:
    """``<format>_greedy`` and ``<format>_sampled`` (temperature 1): success in [0, 1] on held-out
    tasks of all four categories, as in a run's evaluation."""
    loaded = load_model(str(folder))
    heldout = PocketEnv().tasks("heldout", tasks, 0, CATEGORIES)
    success: dict[str, float] = {}
    for name, fmt in FORMATS.items():
        success |= _scores(loaded, PocketEnv(), fmt, heldout, name)
    return success


def measure_search(folder: Path, tasks: int = TASKS) -> dict[str, float]:
    """``<n>shot_greedy`` and ``<n>shot_sampled`` for 0 and 3 examples in the prompt: success in
    [0, 1] on held-out questions in the paper's tags; ``p_call``: the probability of the exact
    first gold call without examples, mean over a bank of questions."""
    loaded, world, fmt = load_model(str(folder)), SearchEnv(), Icrl()
    heldout, pool = world.tasks("heldout", tasks, 0), world.tasks("train", tasks, 0)
    rng = random.Random("measure")
    shown = [with_demonstrations(task, rng.sample(pool, SHOTS)) for task in heldout]
    success = _scores(loaded, world, fmt, heldout, "0shot")
    success |= _scores(loaded, world, fmt, shown, f"{SHOTS}shot")
    policy = _policy(loaded)
    bank = build_bank(world.tasks("bank", BANK, 0), fmt, policy.encode)
    p_call = Probe(loaded.model, bank, int(loaded.tokenizer.pad_token_id))().p_call
    assert p_call is not None, "every question begins with a search"
    return success | {"p_call": p_call}


WORLDS: Mapping[str, str] = {"pocket": "noise", "search": "gate"}
"""The worlds that have a base, and the knob of its recipe."""
MEASURES: Mapping[type[Recipe], Measure] = {
    PocketRecipe: measure_pocket,
    SearchRecipe: measure_search,
}


def _scores(
    loaded: Loaded, world: World, fmt: ToolFormat, tasks: Sequence[Task], name: str
) -> dict[str, float]:
    policy = _policy(loaded)
    settings = RolloutSettings()
    figures = Evaluator(tasks, policy, fmt, world, policy.encode, policy.decode, settings)()
    return {f"{name}_{kind}": figures[f"eval_{kind}"] for kind in ("greedy", "sampled")}


def _policy(loaded: Loaded) -> HFPolicy:
    pad = int(loaded.tokenizer.pad_token_id)
    return HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, pad)
