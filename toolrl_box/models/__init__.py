"""Models by name, and any Hugging Face folder or id.

Input: a name or path. Output: :class:`Loaded`: model, tokenizer and the ids that end a message.
Remote code is never trusted, weights are safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from toolrl_box.errors import ConfigError, ModelError, did_you_mean
from toolrl_box.models import smollm2
from toolrl_box.models.pretrain import END

DATA = Path(__file__).parent / "data"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]


def _search(gate: str) -> Callable[[], Path]:
    return lambda: DATA / f"search-{gate}"


MODELS: Mapping[str, tuple[str, Callable[[], Path]]] = {
    "pocket": ("0.7M Qwen2, noisy base (the laboratory's default)", lambda: DATA / "noisy"),
    "pocket-clean": ("the same without structural noise: the control", lambda: DATA / "clean"),
    "pocket-narrow": ("the noisy base at three quarters of the width", lambda: DATA / "narrow"),
    "search": ("the search world's base: follows an example, hardly calls without", _search("mid")),
    "search-high": ("the same, more likely to call without an example", _search("high")),
    "search-low": ("the same, less likely to call without an example", _search("low")),
    "smollm2": ("SmolLM2-135M-Instruct, converted at first use (extra smollm2)", smollm2.folder),
}
# Models that are made on this machine before they can be loaded.
PREPARE: Mapping[str, Callable[[], Path]] = {"smollm2": smollm2.prepare}


def load_causal(
    name: str, dtype: torch.dtype | Literal["auto"]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load by name, folder or hub id, whatever its chat format; "auto" is the weights' own dtype.

    Raises ConfigError for a name that is neither known nor a folder nor an id, ModelError for a
    folder that holds no usable model, MissingExtraError for one whose package is not installed.
    """
    if name in PREPARE:
        PREPARE[name]()
    source = str(MODELS[name][1]()) if name in MODELS else name
    if name not in MODELS and not Path(name).is_dir() and "/" not in name:
        raise ConfigError(
            f"unknown model '{name}'{did_you_mean(name, MODELS) or ';'} one of: "
            f"{', '.join(sorted(MODELS))}, or a Hugging Face folder or id (owner/name)"
        )
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} is no Hugging Face model folder: config.json is missing")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load model '{name}': {line}") from error
    return model, tokenizer


def load_model(name: str, precision: Literal["fp32", "bf16"] = "fp32") -> Loaded:
    """The same for the embedded formats; raises ModelError, too, when the tokenizer does not end
    a message with one token as they do."""
    model, tokenizer = load_causal(name, PRECISIONS[precision])
    end = tokenizer.encode(END, add_special_tokens=False)
    if len(end) != 1:
        raise ModelError(
            f"'{END}' is {len(end)} tokens for the tokenizer of '{name}'; the embedded formats "
            "need it as one (ChatML models such as Qwen2.5, Qwen3 and SmolLM2 have it)"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == end[0]:
        # Padding that is also the end of a message would be masked out of the loss.
        tokenizer.pad_token = "<|endoftext|>"  # noqa: S105
    stops = {end[0], tokenizer.pad_token_id, *_eos_of(model)}
    return Loaded(model, tokenizer, tuple(sorted(stops)))


def _eos_of(model: PreTrainedModel) -> list[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)
