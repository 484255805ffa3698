"""RunConfig: everything that determines a run, in one frozen object.

Input: defaults of model and world, YAML, ``--set key=value`` pairs and command-line options, in
that order of precedence from low to high. Output: a validated :class:`RunConfig`, saved resolved
into the run folder. Unknown keys are refused with the nearest known one.

A scheme's knobs stand under ``scheme`` beside its ``name``, a world's under ``env``; they are its
own dataclass fields and are checked when it is built, so a new scheme or world needs no line here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toolrl_box.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Named(_Section):
    """A section that may be written as its name alone: ``scheme: rl``."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class SchemeConfig(_Named):
    """``name`` and the scheme's own knobs."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "interleaved"

    @property
    def knobs(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class EnvConfig(_Named):
    """``name``, what every world has, and the world's own settings."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "pocket"
    train_tasks: int = Field(300, ge=1)
    train_categories: tuple[str, ...] | None = Field(
        None, min_length=1, description="left out: the world's own choice"
    )
    eval_tasks: int = Field(64, ge=1)
    eval_categories: tuple[str, ...] | None = Field(
        None, min_length=1, description="left out: all of the world's"
    )
    seed: int = Field(0, description="seed of the tasks, apart from the run's seed")

    @property
    def knobs(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LoRASettings(_Section):
    """An adapter that is trained in place of the weights (docs/models.md)."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="the adapter counts alpha / rank times")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="in training only, so updates see another policy than sampled"
    )
    target: str | tuple[str, ...] = Field(
        "all-linear", min_length=1, description="names of modules; all-linear leaves out the head"
    )
    four_bit: bool = Field(False, description="QLoRA: the frozen base in 4 bits; CUDA only")


class ModelConfig(_Named):
    name: str = Field("pocket", description="a name from `toolrl list models`, or an HF folder/id")
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    thinking: bool | None = Field(
        None,
        description="format native: whether messages begin with a thinking block, in rollouts and "
        "in supervised rows alike; left out: as the model's chat template does",
    )
    lora: LoRASettings | None = None
    liger: bool = Field(
        False, description="Liger's layer kernels, by TRL's use_liger_kernel; CUDA only"
    )


class GRPOSettings(_Section):
    """GRPO as in the paper (arXiv 2606.26027 §protocol), at laboratory size."""

    prompts_per_step: int = Field(6, ge=1)
    group_size: int = Field(8, ge=2, description="rollouts per prompt, G")
    mini_batches: int = Field(2, ge=1, description="optimiser updates per step")
    lr: float = Field(1.2e-3, gt=0, description="the default collapses RL alone; 2e-4 is healthy")
    warmup_steps: int = Field(5, ge=0)
    beta: float = Field(0.0, ge=0, description="KL coefficient; 0: no reference model")
    clip: float = Field(0.2, gt=0)
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss_type: Literal["grpo", "bnpo", "dapo", "dr_grpo"] = Field(
        "bnpo", description="bnpo is the paper's token mean over a mini-batch"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)

    @model_validator(mode="after")
    def _divisible(self) -> GRPOSettings:
        rows = self.prompts_per_step * self.group_size
        if rows % self.mini_batches:
            raise ValueError(
                f"mini_batches ({self.mini_batches}) must divide prompts_per_step x group_size "
                f"({rows})"
            )
        return self


class SFTSettings(_Section):
    lr: float = Field(1e-3, gt=0)
    batch_size: int = Field(16, ge=1)
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)


class VLLMSettings(_Section):
    """Rollouts with vLLM; of no effect with another engine. See docs/vllm.md."""

    mode: Literal["local", "server"] = Field(
        "local",
        description="local: in this process (on a GPU TRL's colocate); server: `vllm serve`",
    )
    memory: float = Field(
        0.3, gt=0, lt=1, description="local, on a GPU: share of its memory that vLLM may take"
    )
    host: str = Field("127.0.0.1", min_length=1, description="of the server")
    port: int = Field(8000, ge=1, le=65535, description="of the server")
    correction: Literal["off", "token_truncate"] = Field(
        "token_truncate",
        description="weigh tokens by trainer's / vLLM's probability (TRL's importance sampling)",
    )
    correction_max: float = Field(3.0, ge=1, description="the greatest weight of a token")
    tolerance: float | None = Field(
        None,
        gt=0,
        description="nats by which vLLM's log-prob of a token may differ from the trainer's after "
        "a sync; left out: 0.01 with fp32, 0.5 with bf16",
    )


class RolloutSettings(_Section):
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VLLMSettings = VLLMSettings()
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(48, ge=1, description="per message")
    max_messages: int = Field(12, ge=1, description="assistant messages per episode")
    max_tokens: int = Field(768, ge=1, description="whole episode, prompt included")
    max_observation_tokens: int = Field(128, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> RolloutSettings:
        if self.max_new_tokens >= self.max_tokens:
            raise ValueError(
                f"rollout.max_new_tokens = {self.max_new_tokens} must be below "
                f"rollout.max_tokens = {self.max_tokens}"
            )
        return self


class JudgeSettings(_Section):
    """An LLM behind an OpenAI-compatible endpoint. The key itself never stands in a config."""

    base_url: str = Field(description="up to and with /v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, description="name of the variable that holds the key")
    timeout: float = Field(60.0, gt=0, description="seconds for one whole answer")
    max_retries: int = Field(2, ge=0, le=10)
    max_tokens: int = Field(400, ge=1, description="of an answer")
    prompt_price: float | None = Field(None, ge=0, description="per 1000 tokens")
    completion_price: float | None = Field(None, ge=0, description="per 1000 tokens")

    # Both messages leave the value out: it may hold a secret.

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+[^\s?#@]*", value):
            raise ValueError(
                "reflection.judge.base_url must be like http://localhost:8000/v1, without "
                "credentials or a query"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError(
                "reflection.judge.api_key_env must be the name of an environment variable, not "
                "the key itself"
            )
        return value


class ReflectionSettings(_Section):
    """Who writes what scheme `reflection` teaches: the offline analyst, or a judge."""

    judge: JudgeSettings | None = None
    on_failure: Literal["error", "analyst", "skip"] = Field(
        "error", description="a judge that fails: end the run, let the analyst write, leave out"
    )


class ProbeSettings(_Section):
    every: int = Field(1, ge=1)
    episodes: int = Field(12, ge=1)


class EvalSettings(_Section):
    every: int = Field(10, ge=1)
    ood: bool = Field(
        True,
        description="when `toolrl run` ends: best and final checkpoint on fresh and foreign tasks "
        "and formats",
    )
    ood_tasks: int = Field(32, ge=1, description="per world, of four; `toolrl evaluate --tasks`")


class GuardSettings(_Section):
    detector: str = Field(
        "default", description="a set that ships (default), or a file of `toolrl calibrate`"
    )


class CheckpointSettings(_Section):
    every: int = Field(5, ge=1)
    keep_optimizer: int = Field(
        2, ge=1, description="newest regular checkpoints that keep optimiser files"
    )
    dense: int = Field(
        4, ge=0, description="steps saved one by one when alarms begin; as many such are kept"
    )


# Dotted settings that a model needs in place of the laboratory's own, which are made for a model
# 200 times smaller. Whatever the user says wins; the resolved config shows the outcome.
MODEL_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    # Learning rates of full fine-tuning at 135M parameters. The sizes are those of a run that ends
    # in minutes on one core: about 12 ms per trained token.
    "smollm2": {
        "warmup_updates": 10,
        "env.eval_tasks": 4,
        "rollout.max_tokens": 1024,
        "grpo.prompts_per_step": 2,
        "grpo.group_size": 4,
        "grpo.lr": 1e-5,
        "sft.lr": 3e-4,
        "sft.batch_size": 2,
        "probe.episodes": 4,
        "eval.every": 50,
        "eval.ood": False,  # 16 passes over the tasks, minutes each at this size
        "checkpoint.every": 50,  # 2 GB each, two thirds of it moments
        "checkpoint.keep_optimizer": 1,
        "checkpoint.dense": 0,
    },
}

# The same for worlds: what differs from the pocket world's settings.
WORLD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "search": {
        "model.name": "search",
        "format": "icrl",
        "rewards": {"accuracy": 0.8, "format": 0.2},  # arXiv 2603.08068
    },
    "python": {
        "rollout.max_new_tokens": 192,  # a program, in a vocabulary made for other words
        "rollout.max_tokens": 1536,
        "rollout.max_observation_tokens": 256,
    },
    # Prompts have 2 to 5 thousand tokens. Sized for a model of 8192 positions; the paper
    # (arXiv 2606.26027) has 16384, and 2048 for a message.
    "bfcl": {
        "model.name": "smollm2",
        "rollout.max_new_tokens": 512,
        "rollout.max_messages": 30,
        "rollout.max_tokens": 8192,
        "rollout.max_observation_tokens": 1024,
        "eval.ood": False,  # no foreign content here, and long contexts
    },
}


class RunConfig(_Section):
    """A run. ``steps`` counts RL steps; supervised steps come on top (each is reported)."""

    scheme: SchemeConfig = SchemeConfig()
    env: EnvConfig = EnvConfig()
    format: str = "hermes"
    model: ModelConfig = ModelConfig()
    steps: int = Field(60, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(
        0, ge=0, le=1024, description="torch threads; 0: 1 below 10M parameters, else all"
    )
    processes: int | None = Field(
        None, ge=1, description="how many torchrun must have started; by default any number"
    )
    warmup_updates: int = Field(
        0,
        ge=0,
        description="supervised updates on gold dialogues of the training tasks before the "
        "scheme's first phase; probe and detectors take the model after them as the base",
    )
    rewards: dict[str, float] = {"task_success": 1.0}
    rollout: RolloutSettings = RolloutSettings()
    grpo: GRPOSettings = GRPOSettings()
    sft: SFTSettings = SFTSettings()
    reflection: ReflectionSettings = ReflectionSettings()
    probe: ProbeSettings = ProbeSettings()
    guard: GuardSettings = GuardSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()


def load(
    path: Path | None = None,
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """A config from a YAML file, ``key.sub=value`` strings and dotted options (None: not given).

    Raises ConfigError with one line.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_yaml(path)
    for pair in sets:
        key, separator, text = pair.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set takes key=value, got '{pair}'")
        try:
            put(values, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: '{text}' is not a YAML value") from error
    for key, value in (options or {}).items():
        if value is not None:
            put(values, key, value)
    return parse(_with_defaults(values))


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over the defaults of the world and of the model they name, the world's first: it
    may name the model."""
    for kind, table in (("env", WORLD_DEFAULTS), ("model", MODEL_DEFAULTS)):
        named = values.get(kind)
        name = named.get("name") if isinstance(named, dict) else named
        for key, default in table.get(str(name), {}).items():
            *parents, last = key.split(".")
            section: Any = values
            for parent in parents:
                section = section.get(parent) if isinstance(section, dict) else None
            # A section may be written as its name alone.
            given = [*section] if isinstance(section, dict) else ["name"] if section else []
            if last not in given:
                put(values, key, default)
    return values


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Validate plain values; raises ConfigError naming key, value, rule and nearest key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(e)) for e in error.errors())) from None


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"config {path} is not valid YAML: {line}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"config {path} must be a mapping of keys to values")
    return loaded


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``a.b.c`` in nested plain values, in place; sections that are missing are made."""
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        if inner is None:  # absent, or left empty in the file
            inner = values[parent] = {}
        # `scheme: rl` in a file is short for `scheme: {name: rl}`.
        if not isinstance(inner, dict):
            inner = values[parent] = {"name": inner}
        values = inner
    values[last] = value


def _explain(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in error["loc"][:-1]:
            annotation = section.model_fields[part].annotation
            section = next(iter(get_args(annotation)), annotation)  # an optional section: itself
        known = list(section.model_fields)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ";"
        return f"unknown key '{where}'{hint} one of: {', '.join(sorted(known))}"
    if error["type"] == "missing":  # its input is all that stands beside it
        return f"{where} is required"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{where} = {error['input']!r}: {error['msg'].lower()}"
