"""Examine one checkpoint: what it solves as it is, and what it could if its structure held.

Input: a model folder, or a checkpoint of a run (world, format and base are then the run's own).
Output: plain values for JSON, and the same objects for printing:

* success (greedy and at temperature 1) on the chosen suites: ``id`` held-out tasks in the trained
  format, ``format`` the same tasks in each other format, ``content`` foreign tools and words,
  ``both``;
* with counterfactuals, on the ``id`` tasks: the control tokens of a reference, a structural
  grammar, a forced call prefix where gold calls, and every other format; accuracy of names and
  arguments under the gold context; the reference under the same conditions; and the verdict.

Scores by task are kept (``by_task``; of ``id`` and ``format`` in the order of ``task_ids``), so
that checkpoints can be compared task by task. Left out: who collapsed and when (``report``), and
several seeds of sampling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolrl_box import checkpoints
from toolrl_box.capability.gold import Accuracy, due_calls, teacher_forced
from toolrl_box.capability.verdict import Verdict, judge
from toolrl_box.config import RunConfig, load, parse, read_yaml
from toolrl_box.durable import write_atomic, writing
from toolrl_box.envs import build_world
from toolrl_box.errors import ConfigError, RunFolderError, unknown
from toolrl_box.evaluate import Score, score_of, success_of
from toolrl_box.lab import check_format
from toolrl_box.native import format_of
from toolrl_box.ood import Place, evaluator_at, open_policy, suites
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.policies.steered import (
    Forced,
    SteeredPolicy,
    Steering,
    TokenGrammar,
    check_same_vocabulary,
)
from toolrl_box.probe.bank import control_ids
from toolrl_box.seeds import derive
from toolrl_box.stats import Array
from toolrl_box.types import Policy, Task, ToolFormat

SUITES = ("id", "format", "content", "both")
BASE = "base"
FREE = "free"
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Played:
    """One model under one condition: scores, and successes by task."""

    greedy: Score
    sampled: Score
    by_task: Mapping[str, tuple[float, ...]]

    @property
    def scores_T(self) -> Array:
        """A task's score: the mean of its greedy episode and its episode at temperature 1."""
        scores_T: Array = np.array([self.by_task["greedy"], self.by_task["sampled"]]).mean(0)
        return scores_T


@dataclass(frozen=True, slots=True)
class Condition:
    """``name``: ``free``, or the counterfactual ``reference``, ``grammar`` or ``forced``.

    ``reference``: the reference model under the same condition; None without one, and for the
    counterfactual ``reference``, which leaves the reference as it is.
    """

    name: str
    suite: str
    place: Place
    checkpoint: Played
    reference: Played | None


@dataclass(frozen=True, slots=True)
class Examination:
    """What :func:`examine` found; ``reference`` and below are None without counterfactuals."""

    checkpoint: str
    config: RunConfig
    task_ids: tuple[str, ...]
    conditions: tuple[Condition, ...]
    reference: str | None = None
    accuracy: Mapping[str, Accuracy] | None = None
    verdict: Verdict | None = None

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["config"]
        values["world"], values["format"] = self.config.env.name, self.config.format
        values["tasks"] = len(self.task_ids)
        return values


@dataclass(frozen=True, slots=True)
class Subject:
    """The checkpoint's folder, the config it is tried under, and its run, if it is of one."""

    folder: Path
    config: RunConfig
    run_dir: Path | None


def subject_of(folder: Path, env: str | None = None, fmt: str | None = None) -> Subject:
    """Which run a checkpoint is of. Raises ConfigError for a folder that cannot be one."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; give a model folder or a checkpoint")
    if (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"{folder} is a run folder: name one of its checkpoints, {folder}/checkpoints/step_…, "
            "or take `toolrl evaluate` for the run's own table"
        )
    run_dir = folder.resolve().parent.parent
    if folder.resolve().parent.name != "checkpoints" or not (run_dir / "config.yaml").is_file():
        return Subject(folder, load(options={"env.name": env, "format": fmt}), None)
    checkpoints.verify(folder)
    values = read_yaml(run_dir / "config.yaml")
    if env is not None and env != parse(values).env.name:
        values["env"] = {"name": env}
    if fmt is not None:
        values["format"] = fmt
    return Subject(folder, parse(values), run_dir)


def reference_of(subject: Subject, wanted: str) -> str:
    """The model that ``wanted`` means: ``base``, or a folder. Raises ConfigError or RunFolderError
    when it is not there."""
    if wanted != BASE:
        if not Path(wanted).is_dir():
            raise ConfigError(f"there is no folder '{wanted}'; --reference is '{BASE}' or a folder")
        return wanted
    if subject.run_dir is None:
        raise ConfigError(
            f"{subject.folder} is no checkpoint of a run, so its base is unknown; "
            "give --reference FOLDER"
        )
    step = subject.config.warmup_updates
    if step in checkpoints.complete_steps(subject.run_dir):
        folder = checkpoints.path_of(subject.run_dir, step)
        checkpoints.verify(folder)
        return str(folder)
    if step == 0:
        return subject.config.model.name
    raise RunFolderError(
        f"{subject.run_dir} no longer has its base, the checkpoint of step {step}; "
        "give --reference FOLDER"
    )


def examine(
    subject: Subject,
    wanted: Sequence[str] | None = None,
    count: int | None = None,
    reference: str | None = None,
    told: Told = lambda text: None,
) -> Examination:
    """Play the suites ``wanted`` (None: all that the world has) with ``count`` tasks each (None:
    ``eval.ood_tasks``); with a ``reference`` (see :func:`reference_of`), counterfactuals too.

    Raises ConfigError for a suite that is unknown or empty, DataError for tasks without gold
    calls, ModelError for a reference with another vocabulary, before anything is played.
    """
    config = subject.config
    count = config.eval.ood_tasks if count is None else count
    check_format(config, build_world(config.env.name, config.env.knobs))
    chosen = _chosen(config, wanted, always=() if reference is None else ("id", "format"))
    if reference is not None and count < 2:
        raise ConfigError("the counterfactuals need at least 2 tasks: one alone has no interval")
    own = open_policy(str(subject.folder), config)
    fmt = format_of(config.format, own.tokenizer, config.model.thinking)
    home = suites(config)["id"][0]
    tasks = evaluator_at(home, own, own, config, count).tasks
    other = None if reference is None else open_policy(reference, config)
    steerings: dict[str, Steering] = {}
    accuracy: dict[str, Accuracy] = {}
    if other is not None:
        steerings = _steerings(fmt, tasks, own, other)
        for role, policy in (("checkpoint", own), ("reference", other)):
            accuracy[role] = teacher_forced(tasks, fmt, policy)

    def conditions() -> Iterator[Condition]:
        for suite, places in chosen.items():
            for place in places:
                told(f"playing {suite} ({place.format})")
                made = _played(place, own, own, config, count)
                beside = None if other is None else _played(place, other, other, config, count)
                yield Condition(FREE, suite, place, made, beside)
        for name, steering in steerings.items():
            told(f"playing id ({home.format}): {name}")
            made = _played(home, SteeredPolicy(own, steering), own, config, count)
            beside = None
            if other is not None and steering.reference is None:
                beside = _played(home, SteeredPolicy(other, steering), other, config, count)
            yield Condition(name, "id", home, made, beside)

    done = tuple(conditions())
    ids = tuple(task.id for task in tasks)
    if reference is None or other is None:
        return Examination(str(subject.folder), config, ids, done)
    verdict = _verdict(done, config)
    return Examination(str(subject.folder), config, ids, done, reference, accuracy, verdict)


def write(found: Examination, path: Path) -> None:
    """As JSON, atomically."""
    with writing(path):
        write_atomic(path, json.dumps(found.as_json(), indent=2).encode() + b"\n")


def _chosen(
    config: RunConfig, wanted: Sequence[str] | None, always: Sequence[str]
) -> dict[str, tuple[Place, ...]]:
    there = {name: places for name, places in suites(config).items() if places}
    for name in wanted or ():
        if name not in SUITES:
            raise unknown("suite", name, SUITES)
        if name not in there:
            raise ConfigError(
                f"world '{config.env.name}' has no suite '{name}' in format '{config.format}'; "
                f"one of: {', '.join(there)}"
            )
    names = {*(SUITES if wanted is None else wanted), *always}
    return {name: there[name] for name in SUITES if name in names and name in there}


def _steerings(
    fmt: ToolFormat, tasks: Sequence[Task], own: HFPolicy, reference: HFPolicy
) -> dict[str, Steering]:
    """The counterfactuals by name."""
    check_same_vocabulary(own, reference)
    control = control_ids((*fmt.control_tokens, fmt.end_of_message), own.encode)
    pieces = [own.decode([token]) for token in range(own.vocabulary)]
    grammar = TokenGrammar(fmt.grammar, pieces, own.stop_ids)
    forced = Forced(tuple(own.encode(fmt.call_start)), due_calls(tasks, fmt))
    return {
        "reference": Steering(reference, tuple(control.values())),
        "grammar": Steering(grammar=grammar),
        "forced": Steering(forced=forced),
    }


def _played(place: Place, player: Policy, codec: HFPolicy, config: RunConfig, count: int) -> Played:
    evaluator = evaluator_at(place, player, codec, config, count)
    rollouts = {"greedy": evaluator.rollouts(0.0), "sampled": evaluator.rollouts(1.0)}
    return Played(
        score_of(rollouts["greedy"]),
        score_of(rollouts["sampled"]),
        {name: tuple(map(success_of, played)) for name, played in rollouts.items()},
    )


def _verdict(conditions: Sequence[Condition], config: RunConfig) -> Verdict:
    home = next(c for c in conditions if (c.name, c.suite) == (FREE, "id"))
    assert home.reference is not None
    others = {
        f"format {c.place.format}" if c.name == FREE else c.name: c.checkpoint.scores_T
        for c in conditions
        if c.name != FREE or c.suite == "format"
    }
    rng = np.random.default_rng(derive(config.env.seed, "capability"))
    return judge(home.reference.scores_T, home.checkpoint.scores_T, others, rng)
