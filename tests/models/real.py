"""Real tokenizers from the cache (`make tokenizers`), and tiny random models of their kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from toolrl_box.models.smollm2 import cache, folder

KINDS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "qwen2_5": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama3_2": (LlamaConfig, LlamaForCausalLM),
    "mistral_nemo": (MistralConfig, MistralForCausalLM),
    "smollm2": (LlamaConfig, LlamaForCausalLM),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """Skips the test, saying how to get it, when it is not there."""
    place = folder() if name == "smollm2" else cache() / "tokenizers" / name
    if not (place / "tokenizer.json").is_file():
        how = "`toolrl doctor --model smollm2`" if name == "smollm2" else "`make tokenizers`"
        pytest.skip(f"the real tokenizer of {name} is not in {place}: {how} puts it there")
    return AutoTokenizer.from_pretrained(place)


def tiny(name: str, output: Path) -> Path:
    """A random model of the kind, with its real tokenizer, as a folder."""
    tokenizer = tokenizer_of(name)
    torch.manual_seed(0)
    make_config, make_model = KINDS[name]
    settings = make_config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    make_model(settings).save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output
