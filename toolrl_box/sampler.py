"""Who writes the rollouts of training and evaluation: the model itself, or vLLM in its place.

Input: a run's config, its model and what compares the two. Output: a policy. Left out: the probe
and the trainer, which always compute with the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolrl_box.config import RunConfig
from toolrl_box.errors import ConfigError
from toolrl_box.models import Loaded
from toolrl_box.policies import vllm_engines
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.policies.vllm import TOLERANCES, Engine, VLLMPolicy
from toolrl_box.types import Policy


def sampler_for(
    config: RunConfig,
    loaded: Loaded,
    policy: HFPolicy,
    checked: Sequence[Sequence[int]],
    processes: int = 1,
) -> Policy:
    """``policy`` itself with engine "transformers"; else vLLM, started here, whose log-probs of
    ``checked`` must be those of ``policy``.

    Raises MissingExtraError where vLLM is not installed, ConfigError for what it cannot do here.
    """
    rollout = config.rollout
    if rollout.engine == "transformers":
        return policy
    if processes > 1:
        raise ConfigError("rollout.engine = vllm works in one process: start only one")
    if config.model.lora is not None:
        raise ConfigError("rollout.engine = vllm does not sync adapters: leave model.lora out")
    vllm_engines.require()
    length = rollout.max_tokens
    tolerance = rollout.vllm.tolerance or TOLERANCES[config.model.precision]
    return VLLMPolicy(
        _engine(config, loaded),
        policy,
        loaded.stop_ids,
        [ids[:length] for ids in checked],
        tolerance,
    )


def _engine(config: RunConfig, loaded: Loaded) -> Engine:
    settings, length = config.rollout.vllm, config.rollout.max_tokens
    training = config.grpo.prompts_per_step * config.grpo.group_size
    rows = max(training, config.env.eval_tasks)
    if loaded.model.device.type != "cpu":
        from toolrl_box import trl_engine  # imports vLLM

        return trl_engine.start(
            loaded.model, loaded.tokenizer, loaded.stop_ids, settings, length, rows
        )
    if settings.mode == "server":
        raise ConfigError(
            "rollout.vllm.mode = server needs a GPU, from which TRL sends the weights; on a CPU "
            "take local"
        )
    return vllm_engines.start_local(loaded.model, loaded.stop_ids, length, rows)
