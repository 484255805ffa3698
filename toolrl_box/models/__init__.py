"""Models by name, and any Hugging Face folder or id.

Input: a name or path. Output: :class:`Loaded`: model, tokenizer, the ids that end a message, and
the tool format, which may be the model's own.
Remote code is never trusted, weights are safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

from toolrl_box.config import LoRASettings
from toolrl_box.errors import ConfigError, ModelError, did_you_mean
from toolrl_box.formats import NATIVE
from toolrl_box.models import lora, smollm2
from toolrl_box.native import format_of
from toolrl_box.types import ToolFormat

DATA = Path(__file__).parent / "data"
DEFAULT_FORMAT = "hermes"
# Tokens for padding in the vocabularies of model families, in order of preference.
ENDS_TEXT = ("<|endoftext|>",)
PADS = (*ENDS_TEXT, "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<unk>")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    fmt: ToolFormat


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
    name: str, dtype: torch.dtype | Literal["auto"], adapter: LoRASettings | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load by name, folder or hub id, whatever its chat format; "auto" is the weights' own dtype.
    A folder that holds an adapter gives its base with the adapter merged. ``adapter``: that of the
    run, which may want the weights in four bits.

    Raises ConfigError for a name that is neither known nor a folder nor an id, ModelError for a
    folder that holds no usable model, MissingExtraError for one whose package is not installed.
    """
    source = source_of(name)
    base = lora.base_of(source)
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(
            source if base is None else source_of(base),
            dtype=dtype,
            use_safetensors=True,
            **lora.quantization(adapter),
        )
    return model if base is None else lora.merged(model, source), tokenizer


def load_skeleton(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same without its weights: they are on the meta device, and need not be there."""
    source = source_of(name)
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(source)
        base = lora.base_of(source)
        config = AutoConfig.from_pretrained(source if base is None else source_of(base))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if Path(source).is_dir() and (Path(source) / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(source)
    return model, tokenizer


def source_of(name: str) -> str:
    """The folder or hub id of a name; embedded models that are made at first use are made. Raises
    as :func:`load_causal` does."""
    if name in PREPARE:
        PREPARE[name]()
    source = str(MODELS[name][1]()) if name in MODELS else name
    if name not in MODELS and not Path(name).is_dir() and "/" not in name:
        raise ConfigError(
            f"unknown model '{name}'{did_you_mean(name, MODELS) or ';'} one of: "
            f"{', '.join(sorted(MODELS))}, or a Hugging Face folder or id (owner/name)"
        )
    known = ("config.json", lora.CONFIG)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in known):
        raise ModelError(f"{source} is no Hugging Face model folder: config.json is missing")
    return source


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load model '{name}': {line}") from error


def load_model(
    name: str,
    precision: Literal["fp32", "bf16"] = "fp32",
    fmt: str = DEFAULT_FORMAT,
    thinking: bool | None = None,
    adapter: LoRASettings | None = None,
) -> Loaded:
    """The same for a run in tool format ``fmt``; raises ModelError, too, when the tokenizer does
    not end a message with one token as it wants, or has no token for padding."""
    model, tokenizer = load_causal(name, PRECISIONS[precision], adapter)
    written = format_of(fmt, tokenizer, thinking)
    end = tokenizer.encode(written.end_of_message, add_special_tokens=False)
    if len(end) != 1:
        raise ModelError(
            f"'{written.end_of_message}' is {len(end)} tokens for the tokenizer of '{name}'; "
            f"format '{written.name}' needs it as one (ChatML models such as Qwen2.5, Qwen3 and "
            f"SmolLM2 have it): use the model's own format, --format {NATIVE}"
        )
    tokenizer.pad_token = padding_of(tokenizer, {end[0], *eos_of(model)})
    stops = {end[0], *eos_of(model)}
    if tokenizer.pad_token in ENDS_TEXT:
        stops.add(int(tokenizer.pad_token_id))
    return Loaded(model, tokenizer, tuple(sorted(stops)), written)


def padding_of(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> str:
    """The token to pad with: the tokenizer's own unless it is one of ``ends``, because padding that
    also ends a message would be masked out of the loss. Raises ModelError when there is none."""
    for name in (tokenizer.pad_token, *PADS):
        token = tokenizer.convert_tokens_to_ids(name) if name else None
        if token is not None and token not in ends and name in tokenizer.get_vocab():
            return str(name)
    raise ModelError(
        "the tokenizer has no token for padding that does not end messages too: add one with "
        f"tokenizer.add_special_tokens({{'pad_token': …}}), or have one of {', '.join(PADS)}"
    )


def eos_of(model: PreTrainedModel) -> list[int]:
    """Ids at which the model's own generation stops."""
    eos = model.generation_config.eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)
