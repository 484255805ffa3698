"""LoRA: a few trained matrices beside frozen weights (arXiv 2106.09685), through peft.

Input: a model and its settings, or a folder with an adapter. Output: the wrapped model, the adapter
as a folder of peft's, or base and adapter merged into an ordinary model. A new adapter changes
nothing that the model says (one of its two factors is 0), so the wrapped model is the base, and
switching the adapter off gives the base back: TRL's KL term is measured from there.

Left out: adapters on the head (TRL reads its weight past them), DoRA and other kinds, several
adapters at a time, and 4-bit bases on anything but a CUDA device.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, PreTrainedModel

from toolrl_box.config import LoRASettings
from toolrl_box.errors import ConfigError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REFERENCE = "ref"  # what TRL calls the copy that it makes


def check(settings: LoRASettings) -> None:
    """Raises MissingExtraError without peft, ConfigError for what TRL would train past, or for four
    bits where they cannot be had."""
    if find_spec("peft") is None:
        raise MissingExtraError("model.lora needs peft: pip install 'toolrl-box[lora]'")
    if "lm_head" in settings.target:
        raise ConfigError(
            "model.lora.target holds lm_head, whose adapter would never be trained: TRL multiplies "
            "with the head's own weight; leave it out"
        )
    if not settings.four_bit:
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            "model.lora.four_bit needs a CUDA device, and torch sees none; on a CPU leave it out"
        )
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("model.lora.four_bit needs bitsandbytes: pip install bitsandbytes")


def quantization(settings: LoRASettings | None) -> dict[str, Any]:
    """What ``from_pretrained`` must be told to load the base in four bits (QLoRA, arXiv
    2305.14314); nothing without that."""
    if settings is None or not settings.four_bit:
        return {}
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": four_bit, "device_map": {"": torch.cuda.current_device()}}


def wrap(model: PreTrainedModel, settings: LoRASettings, base: str, seed: int) -> PeftModel:
    """The model with a new adapter, the only part that trains; ``base`` is the name by which its
    checkpoints find the model again. The same seed gives the same adapter.

    Raises ConfigError when no module has a name of ``target``.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    if settings.four_bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    target = settings.target if isinstance(settings.target, str) else list(settings.target)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target,
    )
    torch.manual_seed(seed)
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        line = str(error).splitlines()[0]
        raise ConfigError(f"model.lora.target = {settings.target!r}: {line}") from error
    assert isinstance(wrapped, PeftModel)
    name = str(Path(base).resolve()) if Path(base).is_dir() else base
    wrapped.peft_config["default"].base_model_name_or_path = name
    return wrapped


def is_wrapped(model: torch.nn.Module) -> bool:
    """Whether the model has an adapter; needs no peft for one that has none."""
    if find_spec("peft") is None:
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def inner(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model itself, which TRL gives its head."""
    if not is_wrapped(model):
        return model
    base: torch.nn.Module = model.get_base_model()  # type: ignore[operator]
    return base


def switched_off(model: torch.nn.Module) -> bool:
    """Whether the model is the base at the moment, its adapter being off."""
    if not is_wrapped(model):
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return bool(next(layers).disable_adapters)


def forget_reference(model: torch.nn.Module) -> None:
    """Drop TRL's copy of the adapter at the beginning of a phase: without it, TRL measures KL from
    the base, which does not depend on when a phase began or was resumed."""
    if is_wrapped(model) and REFERENCE in model.peft_config:  # type: ignore[operator]
        model.delete_adapter(REFERENCE)  # type: ignore[operator]


def save(model: PeftModel, folder: Path) -> None:
    """The adapter alone, as peft reads it."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: w.detach().contiguous() for name, w in weights.items()}, folder / WEIGHTS)
    model.peft_config["default"].save_pretrained(str(folder))


def load(model: PeftModel, folder: Path) -> None:
    """Raises ModelError for an adapter of another shape."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"checkpoint {folder} holds no adapter: {WEIGHTS} is missing")
    weights = load_file(folder / WEIGHTS)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise ModelError(f"checkpoint {folder} holds an adapter of another model or rank")
    set_peft_model_state_dict(model, weights)


def base_of(folder: str) -> str | None:
    """Which model the adapter in this folder belongs to; None when it holds none."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} does not name the model that the adapter belongs to")
    return base


def merged(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Base and adapter as one ordinary model. Raises MissingExtraError without peft."""
    if find_spec("peft") is None:
        raise MissingExtraError(f"{folder} holds an adapter: pip install 'toolrl-box[lora]'")
    from peft import PeftModel

    try:
        one: PreTrainedModel = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise ModelError(f"the adapter in {folder} does not fit its base: {line}") from error
    return one
