"""What a checkpoint of a run can do where it was not trained: other tasks, another tool format.

Input: a run folder and which checkpoints. Output: ``RUN_DIR/evaluation.json``, a list of
:class:`Evaluation` (one per checkpoint): success on four worlds, greedy and at temperature 1, in
all and by category.

    in_distribution  fresh tasks of the training world, the trained format
    content_ood      words and tools that occur nowhere in training, the trained format
    format_ood       fresh tasks of the training world, another format
    both_ood         both

This is the laboratory's counterpart of the ACEBench table of arXiv 2606.26027, where supervised
schemes lose to the untouched model (row "base" here). The tasks are not those of the evaluation
while training, because the best checkpoint was chosen by those.

Left out: intervals (one run has none over seeds; see ``report.compare``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from toolrl_box import checkpoints
from toolrl_box.config import RunConfig, parse, read_yaml
from toolrl_box.durable import write_atomic, writing
from toolrl_box.envs import build_world
from toolrl_box.errors import ConfigError, RunFolderError
from toolrl_box.evaluate import Evaluator
from toolrl_box.formats import NATIVE
from toolrl_box.lab import threads_for
from toolrl_box.models import load_model
from toolrl_box.native import format_of
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.runlog import EVALUATION, RunLog
from toolrl_box.seeds import derive
from toolrl_box.types import Policy

NAMES = ("base", "best", "final")
AT_THE_END = ("best", "final")  # the base is the same in every run: once by hand is enough
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint is tried: a split of the tasks and a tool format."""

    name: str
    split: str
    format: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One checkpoint: its step, what it is called (``base``, ``best``, ``final``), how many tasks
    each world has, and per world and temperature the figures (see :func:`evaluate_run`)."""

    step: int
    names: tuple[str, ...]
    tasks: int
    worlds: dict[str, dict[str, Any]]


def suites(config: RunConfig) -> dict[str, tuple[Place, ...]]:
    """The places by suite: ``id``, ``content``, ``format`` (every other format) and ``both``.

    A split that the environment does not have (a user's own questions) leaves its suites empty,
    and so does an environment with one format, or a run in the model's own format.
    """
    trained = config.format
    env = build_world(config.env.name, config.env.knobs)
    # A model with a frame of its own need not have the tokens of the embedded formats.
    others = [] if trained == NATIVE else [name for name in env.formats if name != trained]
    every = {
        "id": [Place("in_distribution", "heldout", trained)],
        "content": [Place("content_ood", "ood", trained)],
        "format": [Place("format_ood", "heldout", other) for other in others],
        "both": [Place("both_ood", "ood", other) for other in others],
    }
    return {
        name: tuple(place for place in suite if place.split in env.splits)
        for name, suite in every.items()
    }


def places(config: RunConfig) -> tuple[Place, ...]:
    """One place a suite; the other format is the environment's first that was not trained."""
    return tuple(place for suite in suites(config).values() for place in suite[:1])


def evaluate_run(
    run_dir: Path,
    wanted: Sequence[str] = NAMES,
    tasks: int | None = None,
    told: Told = lambda text: None,
) -> list[dict[str, Any]]:
    """Evaluate checkpoints of a run, put them into its ``evaluation.json`` and return them.

    ``wanted`` holds names (:data:`NAMES`) or steps; ``tasks`` defaults to ``eval.ood_tasks``.
    A checkpoint that was evaluated before is replaced. Raises ConfigError or RunFolderError before
    anything is computed when one is not there.
    """
    RunLog.open(run_dir)  # refuses a folder that is no run
    config = parse(read_yaml(run_dir / "config.yaml"))
    count = config.eval.ood_tasks if tasks is None else tasks
    named = _named_steps(run_dir, config)
    steps = sorted({_step(run_dir, name, named) for name in wanted})
    made = []
    for step in steps:
        names = tuple(name for name in NAMES if named.get(name) == step)
        told(f"evaluating step {step}{' (' + ', '.join(names) + ')' if names else ''}")
        made.append(asdict(Evaluation(step, names, count, _play(run_dir, step, config, count))))
    earlier = [e for e in RunLog.open(run_dir).evaluations() if e["step"] not in steps]
    both = sorted(earlier + made, key=lambda evaluation: int(evaluation["step"]))
    path = run_dir / EVALUATION
    with writing(path):
        write_atomic(path, json.dumps(both, indent=2).encode() + b"\n")
    return made


def _named_steps(run_dir: Path, config: RunConfig) -> dict[str, int]:
    """Steps of the base, of the best checkpoint and, in a finished run, of the last one."""
    journal = RunLog.open(run_dir).journal()
    steps = {"base": config.warmup_updates}
    for event in journal:
        if event["event"] == "best":
            steps["best"] = int(event["step"])
        if event["event"] == "finish":
            steps["final"] = int(event["step"])
    return steps


def _step(run_dir: Path, wanted: str, named: dict[str, int]) -> int:
    """The step that ``wanted`` means; its checkpoint is complete."""
    there = checkpoints.complete_steps(run_dir)
    choices = f"one of: {', '.join(named)}, or a step: {', '.join(map(str, there)) or '(none)'}"
    if wanted not in NAMES and not wanted.isdecimal():
        raise ConfigError(f"unknown checkpoint '{wanted}'; {choices}")
    if wanted in NAMES and wanted not in named:
        reason = "it has not finished" if wanted == "final" else "nothing was evaluated"
        raise RunFolderError(f"{run_dir} has no checkpoint '{wanted}': {reason}; {choices}")
    step = named[wanted] if wanted in named else int(wanted)
    if step not in there:
        raise RunFolderError(f"{run_dir} has no complete checkpoint of step {step}; {choices}")
    return step


def _play(run_dir: Path, step: int, config: RunConfig, count: int) -> dict[str, dict[str, Any]]:
    folder = checkpoints.path_of(run_dir, step)
    checkpoints.verify(folder)
    return dict(_worlds_played(open_policy(str(folder), config), config, count))


def _worlds_played(
    policy: HFPolicy, config: RunConfig, count: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    for world in places(config):
        evaluator = evaluator_at(world, policy, policy, config, count)
        scores = {"greedy": evaluator.score(0.0), "sampled": evaluator.score(1.0)}
        yield (
            world.name,
            {"split": world.split, "format": world.format}
            | {name: asdict(score) for name, score in scores.items()},
        )


def open_policy(model: str, config: RunConfig) -> HFPolicy:
    """The model of a name or folder, in the precision and with the threads of a run's config."""
    loaded = load_model(model, config.model.precision, config.format, config.model.thinking)
    torch.set_num_threads(threads_for(config, loaded.model.num_parameters()))
    pad = int(loaded.tokenizer.pad_token_id)
    return HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, pad)


def evaluator_at(
    place: Place, player: Policy, codec: HFPolicy, config: RunConfig, count: int
) -> Evaluator:
    """``player`` on the tasks of a place: the same for every checkpoint of runs of one world seed,
    and of one split in every format. ``codec`` has the tokenizer."""
    env = build_world(config.env.name, config.env.knobs)
    categories = config.env.eval_categories or env.categories
    return Evaluator(
        env.tasks(place.split, count, derive(config.env.seed, "evaluation"), categories),
        player,
        format_of(place.format, codec.tokenizer, config.model.thinking),
        env,
        codec.encode,
        codec.decode,
        config.rollout,
    )
