"""vLLM on a GPU: TRL starts it and carries the weights there; we sample in token ids.

Input: the model in training and the settings of ``rollout.vllm``. Output: an engine for
:class:`~toolrl_box.policies.vllm.VLLMPolicy`. TRL's ``VLLMGeneration`` is made once for a run and
not by a trainer, because every phase has a trainer of its own and vLLM must outlive them.

NOT RUN as yet: no GPU was at hand. What is used of TRL 1.16 is pinned by a contract test that reads
its signatures and source; of the server mode, sampling and scoring were run against a CPU server.

Left out: tensor parallelism, sleep mode, several training processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration

from toolrl_box.config import VLLMSettings
from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.policies.vllm import Engine
from toolrl_box.policies.vllm_engines import LLMEngine, ServerEngine, require

PATIENCE = 240.0  # seconds in which a server must answer
# TRL sets them for vLLM. Left there, every later trainer would believe in a group of processes.
RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    settings: VLLMSettings,
    max_tokens: int,
    rows: int,
) -> Engine:
    """Colocated with ``model`` on its GPU, for ``rows`` sequences of up to ``max_tokens``, or a
    server that runs elsewhere.

    Raises MissingExtraError where vLLM is not installed, ModelError when no server answers and
    ConfigError for one whose log-probs are not those of its samples.
    """
    require()
    server = settings.mode == "server"
    precision = "bf16" if model.dtype.itemsize == 2 else "no"
    with _restored_environment():
        try:
            generation = VLLMGeneration(
                model=model,
                accelerator=Accelerator(mixed_precision=precision),
                processing_class=tokenizer,
                mode="server" if server else "colocate",
                server_host=settings.host,
                server_port=settings.port,
                server_timeout=PATIENCE,
                gpu_memory_utilization=settings.memory,
                max_model_length=max_tokens + 1,  # scoring writes one token
                max_num_seqs=rows,
            )
        except ConnectionError as error:
            raise ModelError(
                f"no vLLM server answers at {settings.host}:{settings.port}; docs/vllm.md says how "
                "to start one"
            ) from error
    if not server:
        return LLMEngine(generation.llm, stop_ids, generation.sync_weights)
    client = generation.vllm_client
    mode = client.get_server_info()["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise ConfigError(
            f"the vLLM server runs with --logprobs-mode {mode}; restart it with "
            "--logprobs-mode processed_logprobs: the trainer needs the probabilities that tokens "
            "were sampled with"
        )
    return ServerEngine(client, stop_ids, generation.sync_weights)


@contextmanager
def _restored_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in RENDEZVOUS}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
