"""Settings of every test process: one compute thread each, no network, repeatable examples."""

from __future__ import annotations

import os
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

# Derandomised: a red build must be red on every machine. No deadline: CI machines are slow.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM, Qwen2Tokenizer

    from toolrl_box.models.pocket import Recipe


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
def tiny_recipe() -> Recipe:
    """The recipe of a model that is much smaller than the pocket one."""
    from toolrl_box.models.pocket import Recipe

    return Recipe(hidden_size=32, layers=2, heads=2, head_dim=16, intermediate_size=64)


@pytest.fixture
def tiny_model(tiny_recipe: Recipe, pocket_tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A fresh, untrained model: the same weights in every test. Its logits are spread, because
    with those of an untrained model positions and masks hardly matter."""
    import torch

    from toolrl_box.models.pocket import new_model

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
    from toolrl_box.models.pocket import Recipe, new_model
    from toolrl_box.models.pocket_tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer()
    recipe = Recipe(hidden_size=64, layers=2, heads=2, head_dim=32, intermediate_size=128)
    new_model(recipe, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
