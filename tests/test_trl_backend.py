"""Phases on one model through the real TRL, with a model that knows nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from toolrl_box.config import RunConfig, parse
from toolrl_box.envs.pocket import PocketEnv, make_tasks
from toolrl_box.errors import ModelError
from toolrl_box.formats import FORMATS
from toolrl_box.phases import RL, SFT
from toolrl_box.runlog import METRICS
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.train import StepResult
from toolrl_box.trl_backend import TRLBackend
from toolrl_box.types import Kind, Message, Parsed, Rollout, Step, Task

Make = Callable[..., TRLBackend]
TASKS = tuple(make_tasks("train", 5, 0))


@dataclass
class Steps:
    """Collects results; stops after ``limit``."""

    limit: int = 10**9
    results: list[StepResult] = field(default_factory=list)

    def __call__(self, result: StepResult) -> bool:
        self.results.append(result)
        return len(self.results) >= self.limit

    def figures(self, name: str) -> list[float]:
        return [result.figures[name] for result in self.results]


def rl(
    backend: TRLBackend,
    steps: int,
    first: int = 0,
    *,
    fresh: bool = False,
    lr: float | None = None,
) -> Steps:
    seen = Steps()
    backend.rl(RL(steps, fresh_optimizer=fresh, lr=lr), steps, first, on_step=seen)
    return seen


def sft(backend: TRLBackend, phase: SFT, done: int = 0, limit: int = 10**9) -> Steps:
    seen = Steps(limit)
    backend.sft(phase, done, seed_step=0, on_step=seen)
    return seen


def weights(backend: TRLBackend) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backend.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def changed(config: RunConfig, **sections: Any) -> RunConfig:
    values = config.model_dump(mode="json")
    for name, value in sections.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return parse(values)


# --- RL -------------------------------------------------------------------------------------


def test_every_step_gives_its_groups_and_figures(make_backend: Make) -> None:
    backend = make_backend()
    before = weights(backend)
    seen = rl(backend, 3)
    assert len(seen.results) == 3
    for step, result in enumerate(seen.results):
        tasks = backend._tasks_at(step)
        assert [group.task for group in result.groups] == list(tasks)
        assert [len(group.rollouts) for group in result.groups] == [4, 4]
        assert all(r.task == group.task for group in result.groups for r in group.rollouts)
        assert result.figures.keys() <= METRICS.keys()
        assert all(math.isfinite(value) for value in result.figures.values())
        parts = ("seconds_rollout", "seconds_forward", "seconds_backward")
        assert 0 < sum(result.figures[part] for part in parts) < result.figures["seconds_step"]
        assert min(result.figures[part] for part in parts) > 0
    assert {reward for r in seen.results for g in r.groups for reward in g.rewards_G} == {0.0, 1.0}
    assert not same(before, weights(backend))
    assert {"loss", "grad_norm", "entropy", "clip_fraction", "lr"} <= result.figures.keys()
    assert result.figures["entropy"] == pytest.approx(math.log(530), abs=0.5)


def test_the_learning_rate_is_a_function_of_the_runs_step(make_backend: Make) -> None:
    assert rl(make_backend(), 4).figures("lr") == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])
    assert rl(make_backend(), 2, first=1).figures("lr") == pytest.approx([2e-3, 3e-3])


def test_a_phase_may_have_a_learning_rate_of_its_own(make_backend: Make) -> None:
    backend = make_backend()
    assert rl(backend, 2, lr=6e-3).figures("lr") == pytest.approx([2e-3, 4e-3])
    assert rl(backend, 1, first=2).figures("lr") == pytest.approx([3e-3])


def test_what_is_left_of_a_stopped_phase_keeps_its_fresh_moments(make_backend: Make) -> None:
    whole, parts = make_backend(), make_backend()
    phase = RL(2, fresh_optimizer=True)
    whole.rl(phase, 2, 0, on_step=Steps())
    parts.rl(phase, 2, 0, on_step=Steps(1))
    parts.rl(phase, 1, 1, on_step=Steps())
    assert same(weights(whole), weights(parts))


@pytest.mark.parametrize("mini_batches", [1, 4])
def test_a_step_may_have_other_numbers_of_mini_batches(
    make_backend: Make, tiny_config: RunConfig, mini_batches: int
) -> None:
    backend = make_backend(changed(tiny_config, grpo={"mini_batches": mini_batches}))
    seen = rl(backend, 2)
    assert [len(result.groups) for result in seen.results] == [2, 2]
    assert len(backend._optimizers["rl"].state) > 0
    steps = {int(entry["step"]) for entry in backend._optimizers["rl"].state.values()}
    assert steps == {2 * mini_batches}


@pytest.mark.parametrize("limit", [1, 2])
def test_a_phase_ends_when_it_is_told_to(make_backend: Make, limit: int) -> None:
    seen = Steps(limit)
    make_backend().rl(RL(4), 4, 0, on_step=seen)
    assert len(seen.results) == limit


def test_a_phase_that_was_stopped_has_trained_like_a_shorter_one(make_backend: Make) -> None:
    stopped, short = make_backend(), make_backend()
    stopped.rl(RL(4), 4, 0, on_step=Steps(2))
    rl(short, 2)
    assert same(weights(stopped), weights(short))


def test_equal_rewards_teach_nothing(make_backend: Make) -> None:
    backend = make_backend(make_env=PocketEnv())  # an untrained model always fails
    before = weights(backend)
    seen = rl(backend, 2)
    assert seen.figures("grad_norm") == [0.0, 0.0]
    assert same(before, weights(backend))


class Broken:
    """An environment that fails at once."""

    def reset(self, task: Task) -> tuple[Message, ...]:
        raise RuntimeError("no")

    def step(self, message: Parsed) -> Step:
        raise AssertionError


def test_rollouts_without_any_token_are_rows_that_teach_nothing(make_backend: Make) -> None:
    backend = make_backend(make_env=Broken)
    before = weights(backend)
    seen = rl(backend, 1)
    rollouts = [rollout for group in seen.results[0].groups for rollout in group.rollouts]
    assert {rollout.error for rollout in rollouts} == {"RuntimeError: no"}
    assert same(before, weights(backend))


def test_the_columns_for_trl_are_the_tokens_as_they_were_sampled(make_backend: Make) -> None:
    backend = make_backend()
    (result,) = rl(backend, 1).results
    rollouts = [rollout for group in result.groups for rollout in group.rollouts]
    columns = backend._columns([*rollouts, Rollout(TASKS[0], (), (), "error", error="no")])
    for row, rollout in enumerate(rollouts):
        assert columns["prompt_ids"][row] == list(rollout.prompt_ids)
        own = [t for turn in rollout.turns for t in turn.completion_ids]
        pairs = zip(columns["completion_ids"][row], columns["env_mask"][row], strict=True)
        assert [token for token, mask in pairs if mask] == own
        assert len(columns["completion_ids"][row]) == sum(
            len(turn.completion_ids) + len(turn.observation_ids) for turn in rollout.turns
        )
    end = [backend.tokenizer.eos_token_id]
    assert [columns[name][-1] for name in ("prompt_ids", "completion_ids", "env_mask")] == [
        *(end, end, [0])
    ]


def test_a_penalty_for_leaving_the_base_is_measured(
    make_backend: Make, tiny_config: RunConfig, tiny_base: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert isinstance(model, Qwen2ForCausalLM)
    backend = make_backend(changed(tiny_config, grpo={"beta": 0.1, "mini_batches": 1}), model=model)
    kl = rl(backend, 3).figures("kl")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[2] > 0.0


# --- SFT ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (SFT(TASKS, epochs=1), 3),
        (SFT(TASKS, epochs=2), 5),
        (SFT(TASKS[:1], epochs=1), 1),
        (SFT(TASKS, steps=7), 7),
        (SFT(TASKS[:1], steps=2), 2),
    ],
)
def test_a_supervised_phase_takes_as_many_updates_as_it_says(
    make_backend: Make, phase: SFT, expected: int
) -> None:
    backend = make_backend()
    assert backend.sft_steps(phase) == expected
    seen = sft(backend, phase)
    assert len(seen.results) == expected
    assert all(result.groups == () for result in seen.results)
    assert all(result.figures.keys() <= METRICS.keys() for result in seen.results)
    assert "seconds_rollout" not in seen.results[0].figures


def test_supervised_updates_learn_the_gold_dialogues(make_backend: Make) -> None:
    losses = sft(make_backend(), SFT(TASKS[:2], steps=12)).figures("loss")
    assert losses[0] == pytest.approx(math.log(530), abs=0.5)
    assert losses[-1] < losses[0] - 1.0


def test_a_phase_may_have_its_own_learning_rate(make_backend: Make) -> None:
    assert sft(make_backend(), SFT(TASKS, steps=2)).figures("lr") == [3e-3, 3e-3]
    assert sft(make_backend(), SFT(TASKS, steps=2, lr=1e-4)).figures("lr") == [1e-4, 1e-4]


@pytest.mark.parametrize("kind", [None, "call", "text"])
def test_the_learned_tokens_of_a_supervised_update_are_counted(
    make_backend: Make,
    encode: Callable[[str], list[int]],
    tiny_config: RunConfig,
    kind: Kind | None,
) -> None:
    counted = sft(make_backend(), SFT(TASKS[:1], steps=2, messages=kind)).figures("sft_tokens")
    learned = sum(dialogue_to_sample(TASKS[0], FORMATS["hermes"], encode, kind).loss_mask)
    assert counted == [tiny_config.sft.batch_size * learned] * 2


def test_epochs_visit_every_task_in_an_order_of_their_own(make_backend: Make) -> None:
    backend = make_backend()
    order = backend._sft_order(SFT(TASKS, epochs=3), 15, seed_step=4)
    epochs = [order[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(e, key=lambda task: task.id) == list(TASKS) for e in epochs)
    assert len({tuple(task.id for task in epoch) for epoch in epochs}) > 1
    assert order == backend._sft_order(SFT(TASKS, epochs=3), 15, seed_step=4)
    assert order != backend._sft_order(SFT(TASKS, epochs=3), 15, seed_step=5)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_an_interrupted_supervised_phase_goes_on_exactly(
    make_backend: Make, tiny_config: RunConfig, tmp_path: Path, done: int
) -> None:
    config = changed(tiny_config, sft={"warmup_ratio": 0.5})
    phase = SFT(TASKS, steps=4)
    whole = make_backend(config)
    expected = sft(whole, phase)
    first, second = make_backend(config), make_backend(config)
    before = sft(first, phase, limit=done)
    first.save(tmp_path)
    second.load(tmp_path)
    after = sft(second, phase, done=done)
    for name in ("loss", "lr", "grad_norm"):
        assert before.figures(name) + after.figures(name) == expected.figures(name)
    assert same(weights(whole), weights(second))


# --- checkpoints ----------------------------------------------------------------------------


def story(backend: TRLBackend, save_after: int, folder: Path, other: TRLBackend) -> TRLBackend:
    """RL, SFT, RL; after part ``save_after`` another backend goes on from the checkpoint."""
    parts: list[Callable[[TRLBackend], Steps]] = [
        lambda b: rl(b, 2),
        lambda b: sft(b, SFT(TASKS, steps=2)),
        lambda b: rl(b, 1, first=2),
        lambda b: rl(b, 1, first=3),
    ]
    for number, part in enumerate(parts):
        part(backend)
        if number == save_after:
            folder.mkdir()
            backend.save(folder)
            other.load(folder)
            backend = other
    return backend


@pytest.fixture(scope="module")
def uninterrupted(make_backend: Make) -> dict[str, torch.Tensor]:
    return weights(story(make_backend(), -1, Path(), make_backend()))


@pytest.mark.parametrize("save_after", [0, 1, 2])
def test_a_checkpoint_goes_on_exactly_wherever_it_was_taken(
    make_backend: Make,
    uninterrupted: dict[str, torch.Tensor],
    tmp_path: Path,
    save_after: int,
) -> None:
    resumed = story(make_backend(), save_after, tmp_path / "checkpoint", make_backend())
    assert same(uninterrupted, weights(resumed))


def test_a_checkpoint_that_is_loaded_and_saved_again_keeps_the_moments(
    make_backend: Make, tmp_path: Path
) -> None:
    first, second = make_backend(), make_backend()
    rl(first, 1)
    for name in "ab":
        (tmp_path / name).mkdir()
    first.save(tmp_path / "a")
    second.load(tmp_path / "a")
    second.save(tmp_path / "b")
    moments = [load_file(tmp_path / name / "optimizer_rl.safetensors") for name in "ab"]
    assert moments[0].keys() == moments[1].keys()
    assert same(*moments)


def test_a_saved_folder_is_an_ordinary_model(make_backend: Make, tmp_path: Path) -> None:
    backend = make_backend()
    rl(backend, 1)
    backend.save(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same(weights(backend), dict(reloaded.state_dict()))
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.pt"))


def test_fresh_moments_are_fresh(make_backend: Make) -> None:
    kept, dropped = make_backend(), make_backend()
    for backend, fresh in ((kept, False), (dropped, True)):
        rl(backend, 1)
        rl(backend, 1, first=1, fresh=fresh)
    steps = [
        {int(entry["step"]) for entry in backend._optimizers["rl"].state.values()}
        for backend in (kept, dropped)
    ]
    assert steps == [{4}, {2}]
    assert not same(weights(kept), weights(dropped))


def test_weights_of_another_model_are_refused(make_backend: Make, tmp_path: Path) -> None:
    backend = make_backend()
    backend.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "stranger": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="holds weights of another model"):
        make_backend().load(tmp_path)


def test_phases_leave_no_layers_of_wrapping_on_the_model(make_backend: Make) -> None:
    backend = make_backend()

    def phases(first: int) -> set[str]:
        rl(backend, 1, first)
        sft(backend, SFT(TASKS, steps=1))
        return set(vars(backend.model))

    assert phases(0) == phases(1)
    assert "forward" not in vars(backend.model)
