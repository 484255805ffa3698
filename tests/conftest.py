"""Settings of every test process: one compute thread each, no network, repeatable examples."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports torch: pytest-xdist already uses all cores, and thread counts change
# the order of floating-point sums.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
from hypothesis import settings

from toolrl_box.envs.pocket import PocketEnv, PocketEpisode

# Derandomised: a red build must be red on every machine. No deadline: CI machines are slow.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM, Qwen2Tokenizer

    from toolrl_box.config import RunConfig
    from toolrl_box.models.pocket import PocketRecipe
    from toolrl_box.trl_backend import TRLBackend
    from toolrl_box.types import Environment, Message, Parsed, Step, Task


@pytest.fixture(scope="session")
def pocket_tokenizer() -> Qwen2Tokenizer:
    """The embedded tokenizer."""
    from toolrl_box.models.pocket_tokenizer import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def encode(pocket_tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Text to ids with the embedded tokenizer, as it stands."""
    return lambda text: list(pocket_tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture(scope="session")
def tiny_recipe() -> PocketRecipe:
    """The recipe of a model that is much smaller than the pocket one."""
    from toolrl_box.models.pocket import PocketRecipe

    return PocketRecipe(hidden_size=32, layers=2, heads=2, head_dim=16, intermediate_size=64)


@pytest.fixture
def tiny_model(
    tiny_recipe: PocketRecipe, pocket_tokenizer: PreTrainedTokenizerBase
) -> Qwen2ForCausalLM:
    """A fresh, untrained model: the same weights in every test. Its logits are spread, because
    with those of an untrained model positions and masks hardly matter."""
    import torch

    from toolrl_box.models.pretrain import new_model

    torch.set_num_threads(1)
    model = new_model(tiny_recipe, pocket_tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pocket model as a Hugging Face folder: it says nothing sensible, fast."""
    from toolrl_box.models.pocket import PocketRecipe
    from toolrl_box.models.pocket_tokenizer import build_tokenizer
    from toolrl_box.models.pretrain import new_model

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer()
    recipe = PocketRecipe(hidden_size=64, layers=2, heads=2, head_dim=32, intermediate_size=128)
    new_model(recipe, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class DiceEnv:
    """The pocket world with another verdict: whether the assistant has written an even number of
    characters. An untrained model never solves a task, and equal rewards teach nothing."""

    def __init__(self) -> None:
        self._episode = PocketEpisode()
        self._written = 0

    def reset(self, task: Task) -> tuple[Message, ...]:
        return self._episode.reset(task)

    def step(self, message: Parsed) -> Step:
        self._written += len(message.text)
        step = self._episode.step(message)
        success = float(self._written % 2 == 0)
        return replace(step, outcome={"success": success}) if step.done else step


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    """A run of steps that take a tenth of a second each."""
    from toolrl_box.config import parse

    return parse(
        {
            "steps": 4,
            "env": {"train_tasks": 12},
            "rollout": {"max_new_tokens": 6},
            "grpo": {"prompts_per_step": 2, "group_size": 4, "lr": 3e-3, "warmup_steps": 3},
            "sft": {"batch_size": 2, "lr": 3e-3},
        }
    )


@pytest.fixture(scope="session")
def make_backend(
    tiny_recipe: PocketRecipe, pocket_tokenizer: Qwen2Tokenizer, tiny_config: RunConfig
) -> Callable[..., TRLBackend]:
    """Makes a real TRL backend on a fresh tiny model, the same every time."""
    import torch

    from toolrl_box.collect import Collector
    from toolrl_box.formats import FORMATS
    from toolrl_box.lab import TaskStream
    from toolrl_box.models.pretrain import new_model
    from toolrl_box.policies.hf import HFPolicy
    from toolrl_box.rewards import Rubric
    from toolrl_box.trl_backend import TRLBackend

    torch.set_num_threads(1)

    def make(
        config: RunConfig = tiny_config,
        make_env: Callable[[], Environment] = DiceEnv,
        model: Qwen2ForCausalLM | None = None,
    ) -> TRLBackend:
        model = model or new_model(tiny_recipe, pocket_tokenizer)
        stops = (int(pocket_tokenizer.eos_token_id), int(pocket_tokenizer.pad_token_id))
        policy = HFPolicy(model, pocket_tokenizer, stops, stops[1])
        stream = TaskStream(config, PocketEnv())
        return TRLBackend(
            model,
            pocket_tokenizer,
            Collector(
                policy,
                FORMATS["hermes"],
                make_env,
                policy.encode,
                policy.decode,
                Rubric(config.rewards),
                config,
                stream.tasks,
            ),
            policy.encode,
            FORMATS["hermes"],
            stream.at,
            config,
        )

    return make
