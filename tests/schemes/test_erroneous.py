"""ETS and PRS with invented outcomes, and each in one short real run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from toolrl_box import lab
from toolrl_box.config import load
from toolrl_box.errors import ConfigError
from toolrl_box.phases import RL, SFT, Context, GroupResult, Outcome, Phase, RolloutKey, Scheme
from toolrl_box.runlog import RunLog
from toolrl_box.schedule import Lesson, Rounds
from toolrl_box.schemes import build_scheme
from toolrl_box.schemes.erroneous import Erroneous
from toolrl_box.schemes.reflection import Reflection
from toolrl_box.testing import echo_task
from toolrl_box.types import Task

TASKS = {task.id: task for task in (echo_task([word]) for word in "abcdef")}
NAMES = list(TASKS)
FAILED, HALF, SOLVED = (0.0, 0.0), (1.0, 0.0), (1.0, 1.0)


def run(scheme: Scheme, steps: int, ctx: Context | None = None) -> list[Phase]:
    """The phases of a run whose step s trains on tasks s and s + 1; task a is always failed, b
    half solved, and the others are solved."""
    generator = scheme.phases(ctx or Context(steps, TASKS))
    phases, step = [next(generator)], 0
    while True:
        phase, groups = phases[-1], []
        for _ in range(phase.steps if isinstance(phase, RL) else 0):
            step += 1
            for place in (step, step + 1):
                name = NAMES[place % len(NAMES)]
                rewards = {NAMES[0]: FAILED, NAMES[1]: HALF}.get(name, SOLVED)
                groups.append(GroupResult(step, name, rewards))
        if isinstance(phase, SFT):
            step += phase.steps or 1
        try:
            phases.append(generator.send(Outcome(phase.steps or 1, tuple(groups))))
        except StopIteration:
            return phases


# --- schedules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"), [(300, [50, 100, 150]), (60, [10, 20, 30]), (6, [1, 2, 3]), (2, [1, 1])]
)
def test_lengths_are_scaled_to_the_budget(steps: int, expected: list[int]) -> None:
    lengths = [phase.steps for phase in Rounds((50, 100, 150)).within(steps)]
    assert lengths == expected
    assert sum(lengths) == steps


def test_a_rate_may_be_given_for_all_phases_or_for_each() -> None:
    def rates(*given: float) -> list[float | None]:
        return [phase.lr for phase in Rounds((1, 1, 1), given).within(9)]

    assert rates() == [None, None, None]
    assert rates(1e-3) == [1e-3, 1e-3, 1e-3]
    assert rates(1e-3, 1e-4, 1e-5) == [1e-3, 1e-4, 1e-5]
    with pytest.raises(ConfigError, match="rl_lr has 2 values for 3 phases"):
        rates(1e-3, 1e-4)


def test_a_lesson_without_tasks_or_updates_is_none() -> None:
    tasks = (TASKS[NAMES[0]],)
    assert Lesson(epochs=2).on(()) is None
    assert Lesson().on(tasks) is None
    assert Lesson(epochs=2, updates=3).on(tasks) == SFT(tasks, steps=3)
    assert Lesson(epochs=2, sft_lr=1e-5).on(tasks) == SFT(tasks, epochs=2, lr=1e-5)


# --- erroneous ------------------------------------------------------------------------------


def test_erroneous_teaches_between_growing_phases_and_not_after_the_last() -> None:
    phases = run(Erroneous(sft_lr=1e-5), 300)
    assert [phase.kind for phase in phases] == ["rl", "sft", "rl", "sft", "rl"]
    assert [phase.steps for phase in phases if isinstance(phase, RL)] == [50, 100, 150]
    lessons = [phase for phase in phases if isinstance(phase, SFT)]
    assert {(lesson.epochs, lesson.steps, lesson.lr) for lesson in lessons} == {(2, None, 1e-5)}


@pytest.mark.parametrize(("rule", "expected"), [("all_failed", [0]), ("any_failed", [0, 1])])
def test_erroneous_selects_by_either_rule(rule: str, expected: list[int]) -> None:
    lesson = run(build_scheme("erroneous", {"rule": rule}), 60)[1]
    assert isinstance(lesson, SFT)
    assert sorted(task.id for task in lesson.tasks) == [NAMES[i] for i in expected]


def test_erroneous_looks_at_the_last_steps_only() -> None:
    # Of a phase of 10 steps, step 10 trains on tasks 4 and 5, steps 6 and 7 on 0, 1 and 2.
    for window, expected in ((3, []), (4, [1]), (5, [0, 1]), (10, [0, 1])):
        phases = run(Erroneous(window=window), 60)
        names = [t.id for t in phases[1].tasks] if isinstance(phases[1], SFT) else []
        assert sorted(names) == [NAMES[i] for i in expected], window


def test_erroneous_restarts_the_moments_after_each_lesson() -> None:
    for fresh in (True, False):
        phases = run(Erroneous(fresh_optimizer=fresh), 60)
        assert [p.fresh_optimizer for p in phases if isinstance(p, RL)] == [False, fresh, fresh]


def test_erroneous_without_epochs_is_rl_in_parts() -> None:
    assert run(Erroneous(epochs=0), 60) == [RL(10), RL(20), RL(30)]


def test_what_an_early_end_leaves_falls_to_the_last_phase() -> None:
    generator = Erroneous(epochs=0).phases(Context(60, TASKS))
    assert next(generator) == RL(10)
    assert generator.send(Outcome(4)) == RL(20)
    assert generator.send(Outcome(20)) == RL(36)


# --- reflection -----------------------------------------------------------------------------


def texts_about(asked: list[tuple[Sequence[RolloutKey], int]]) -> Context:
    def reflect(keys: Sequence[RolloutKey], texts: int) -> tuple[Task, ...]:
        asked.append((keys, texts))
        return tuple(echo_task([f"{key.step}", key.task_id]) for key in keys)

    return Context(60, TASKS, reflect=reflect)


def test_reflection_adds_texts_to_what_erroneous_teaches() -> None:
    asked: list[tuple[Sequence[RolloutKey], int]] = []
    plain, with_texts = run(Erroneous(), 60), run(Reflection(), 60, texts_about(asked))
    assert len(plain) == len(with_texts)
    for mine, theirs in zip(with_texts, plain, strict=True):
        if not isinstance(mine, SFT) or not isinstance(theirs, SFT):
            assert mine == theirs
            continue
        texts = mine.tasks[len(theirs.tasks) :]
        assert replace(mine, tasks=theirs.tasks) == theirs
        assert [task.target["words"][1] for task in texts] == [key.task_id for key in asked[0][0]]
        asked.pop(0)


def test_reflection_is_about_the_latest_failed_rollout_of_each_task() -> None:
    asked: list[tuple[Sequence[RolloutKey], int]] = []
    run(Reflection(texts=1), 60, texts_about(asked))
    a, b = RolloutKey(6, 0, 0, NAMES[0]), RolloutKey(7, 0, 1, NAMES[1])
    assert asked[0] == ((a, b), 1)
    asked.clear()
    run(Reflection(trajectories=1, rule="any_failed"), 60, texts_about(asked))
    assert asked[0] == ((b,), 2)


@pytest.mark.parametrize("knobs", [{"texts": 0}, {"trajectories": 0}])
def test_reflection_without_texts_is_erroneous(knobs: dict[str, int]) -> None:
    asked: list[tuple[Sequence[RolloutKey], int]] = []
    scheme = build_scheme("reflection", knobs)
    assert run(scheme, 60, texts_about(asked)) == run(Erroneous(), 60)
    assert asked == []


def test_reflection_without_epochs_asks_nobody() -> None:
    asked: list[tuple[Sequence[RolloutKey], int]] = []
    assert run(Reflection(epochs=0), 60, texts_about(asked)) == [RL(10), RL(20), RL(30)]
    assert asked == []


# --- real runs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "extra"),
    [("erroneous", ()), ("reflection", ()), ("sft_then_rl", ("scheme.data=other_domain",))],
)
def test_a_short_real_run(tmp_path: Path, name: str, extra: tuple[str, ...]) -> None:
    sets = (
        *("steps=4", "grpo.prompts_per_step=2", "grpo.group_size=4", "sft.batch_size=4"),
        *("env.train_tasks=12", "env.eval_tasks=4", "probe.episodes=4"),
        *(f"scheme.name={name}", "scheme.updates=2"),
    )
    config = load(sets=(*sets, *extra))
    assert lab.start(config, tmp_path / "run") == "done"
    view = RunLog.open(tmp_path / "run")
    kinds = view.metrics()["phase_kind"].tolist()[1:]
    taught = [e["detail"]["tasks"] for e in view.journal() if e.get("kind") == "sft"]
    if name == "sft_then_rl":
        assert kinds == ["sft"] * 2 + ["rl"] * 4
        assert {task.split("-")[0] for task in taught[0]} == {"other"}
        return
    assert kinds.count("rl") == 4
    assert "sft" in kinds
    texts = sum(task.startswith("reflection-") for tasks in taught for task in tasks)
    assert texts == sum(len(row["dialogues"]) for row in view.reflections())
    assert (texts > 0) == (name == "reflection")


def test_a_world_without_another_domain_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    sets = ("scheme.name=sft_then_rl", "scheme.data=other_domain", "env.name=python")
    with pytest.raises(ConfigError, match="world 'python' has no tasks of another domain"):
        lab.start(load(sets=sets), tmp_path / "run")
    assert not (tmp_path / "run").exists()
