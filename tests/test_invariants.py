"""What must be the same run is the same run, bit for bit: real TRL, a few steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from toolrl_box.config import RunConfig, parse
from toolrl_box.envs.pocket import make_tasks
from toolrl_box.phases import RL, Context, Outcome, Phase, Phases, Scheme
from toolrl_box.schemes import build_scheme
from toolrl_box.train import Progress, StepResult, drive
from toolrl_box.trl_backend import TRLBackend

Make = Callable[..., TRLBackend]
STEPS = 4


@dataclass
class Trajectory:
    """Everything about a run but wall-clock time."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    phases: int = 0
    weights: str = ""

    def begin(self, progress: Progress) -> None: ...

    def phase_start(self, progress: Progress, phase: Phase) -> None:
        self.phases += 1

    def step(self, progress: Progress, result: StepResult) -> bool:
        figures = {n: v for n, v in result.figures.items() if not n.startswith("seconds_")}
        rollouts = [rollout for group in result.groups for rollout in group.rollouts]
        said = [[turn.completion_ids for turn in rollout.turns] for rollout in rollouts]
        logprobs = [[turn.logprobs for turn in rollout.turns] for rollout in rollouts]
        rewards = [rollout.reward for rollout in rollouts]
        self.steps.append(figures | {"said": said, "logprobs": logprobs, "rewards": rewards})
        return False

    def rollback(self, progress: Progress, before: int) -> None: ...

    def phase_end(self, progress: Progress, outcome: Outcome) -> None: ...

    def finish(self, progress: Progress) -> None: ...


def sha256(backend: TRLBackend) -> str:
    digest = hashlib.sha256()
    for name, value in backend.model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def run(make_backend: Make, tiny_config: RunConfig) -> Callable[..., Trajectory]:
    """Plays a scheme; one that has been played is remembered unless it must be played again."""
    played: dict[str, Trajectory] = {}

    def play(scheme: Scheme, seed: int = 0, *, again: bool = False) -> Trajectory:
        if f"{scheme} {seed}" in played and not again:
            return played[f"{scheme} {seed}"]
        config = parse({**tiny_config.model_dump(mode="json"), "seed": seed})
        tasks = make_tasks("train", config.env.train_tasks, 0, config.env.train_categories)
        backend, trajectory = make_backend(config), Trajectory()
        ctx = Context(STEPS, {task.id: task for task in tasks}, build_scheme=build_scheme)
        drive(scheme, ctx, backend, trajectory)
        trajectory.weights = sha256(backend)
        played[f"{scheme} {seed}"] = trajectory
        return trajectory

    return play


@dataclass(frozen=True)
class InPhases:
    """RL in phases of the given lengths."""

    lengths: tuple[int, ...]

    def phases(self, ctx: Context) -> Phases:
        for length in self.lengths:
            yield RL(length)


def assert_same(first: Trajectory, second: Trajectory) -> None:
    assert first.steps == second.steps
    assert first.weights == second.weights


def test_interleaved_without_supervision_is_rl(run: Callable[..., Trajectory]) -> None:
    rl = run(build_scheme("rl", {}))
    mixed = run(build_scheme("interleaved", {"every": 2, "epochs": 0, "updates": 0}))
    assert (rl.phases, mixed.phases) == (1, 2)
    assert_same(rl, mixed)
    assert len({str(step["said"]) for step in rl.steps}) == STEPS
    assert any(step["grad_norm"] > 0 for step in rl.steps)


def test_supervised_updates_make_it_another_run(run: Callable[..., Trajectory]) -> None:
    rl = run(build_scheme("rl", {}))
    mixed = run(build_scheme("interleaved", {"every": 2, "updates": 1}))
    assert mixed.steps[:2] == rl.steps[:2]
    assert mixed.steps[3:] != rl.steps[2:]
    assert mixed.weights != rl.weights


def test_sft_then_rl_without_supervision_is_rl(run: Callable[..., Trajectory]) -> None:
    rl = run(build_scheme("rl", {}))
    assert_same(rl, run(build_scheme("sft_then_rl", {"updates": 0})))


def test_erroneous_without_supervision_is_rl(run: Callable[..., Trajectory]) -> None:
    rl, mixed = run(build_scheme("rl", {})), run(build_scheme("erroneous", {"epochs": 0}))
    assert (rl.phases, mixed.phases) == (1, 3)
    assert_same(rl, mixed)


def test_reflection_without_texts_is_erroneous(run: Callable[..., Trajectory]) -> None:
    mixed = run(build_scheme("erroneous", {"updates": 1}))
    assert mixed.phases == 5
    assert_same(mixed, run(build_scheme("reflection", {"updates": 1, "texts": 0})))
    assert mixed.weights != run(build_scheme("rl", {})).weights


def test_rl_cut_in_phases_is_rl(run: Callable[..., Trajectory]) -> None:
    assert_same(run(build_scheme("rl", {})), run(build_scheme("rl", {"lengths": [1, 1]})))


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (3, 1)])
def test_phases_of_any_length_are_one_phase(
    run: Callable[..., Trajectory], lengths: tuple[int, ...]
) -> None:
    """Moments, learning rate, tasks and every random stream carry over from phase to phase."""
    whole, parts = run(build_scheme("rl", {})), run(InPhases(lengths))
    assert (whole.phases, parts.phases) == (1, len(lengths))
    assert_same(whole, parts)


@pytest.mark.parametrize("name", ["interleaved", "sft"])
def test_the_same_seed_is_the_same_run(run: Callable[..., Trajectory], name: str) -> None:
    scheme = build_scheme(name, {"every": 2, "updates": 1})
    assert_same(run(scheme), run(scheme, again=True))


def test_another_seed_is_another_run(run: Callable[..., Trajectory]) -> None:
    first, second = run(build_scheme("rl", {})), run(build_scheme("rl", {}), seed=1)
    assert first.steps[0]["said"] != second.steps[0]["said"]
    assert first.weights != second.weights


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("off_policy", {"count": 0}),
        ("hint", {"count": 0}),
        ("mixed", {"weight": 0}),
        ("icrl", {"shots": [0]}),
        ("guarded", {"ladder": []}),
        ("guarded", {}),  # no alarm sounds here
    ],
)
def test_supervision_within_the_steps_at_its_neutral_setting_is_rl(
    run: Callable[..., Trajectory], name: str, knobs: dict[str, Any]
) -> None:
    assert_same(run(build_scheme("rl", {})), run(build_scheme(name, knobs)))


@pytest.mark.parametrize("name", ["off_policy", "hint", "mixed"])
def test_supervision_within_the_steps_makes_it_another_run(
    run: Callable[..., Trajectory], name: str
) -> None:
    assert run(build_scheme("rl", {})).weights != run(build_scheme(name, {})).weights
