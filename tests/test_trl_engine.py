"""Starting vLLM through TRL, with TRL's part played by a stand-in: no GPU is needed or tested."""

from __future__ import annotations

import os
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from toolrl_box import trl_engine
from toolrl_box.config import VLLMSettings
from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.policies.vllm import Engine
from toolrl_box.policies.vllm_engines import LLMEngine, ServerEngine


class Client:
    mode = "processed_logprobs"

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": self.mode}}


class Generation:
    """What is used of TRL's ``VLLMGeneration``."""

    made: dict[str, Any]
    synced = 0

    def __init__(self, **settings: Any) -> None:
        type(self).made = settings
        os.environ["LOCAL_RANK"] = "0"  # as TRL does
        self.llm = self
        self.vllm_client = Client()

    def sync_weights(self) -> None:
        type(self).synced += 1

    def reset_prefix_cache(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_engine, "VLLMGeneration", Generation)
    monkeypatch.setattr(trl_engine, "require", lambda: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def started(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Engine:
    return trl_engine.start(model, tokenizer, [1, 2], VLLMSettings(**settings), 768, 48)


def test_trl_starts_it_with_the_runs_limits_and_leaves_no_rendezvous(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = started(tiny_model, pocket_tokenizer, memory=0.4)
    assert isinstance(engine, LLMEngine)
    assert Generation.made["mode"] == "colocate"
    assert Generation.made["gpu_memory_utilization"] == 0.4
    assert Generation.made["max_model_length"] == 769
    assert Generation.made["max_num_seqs"] == 48
    assert "LOCAL_RANK" not in os.environ
    before = Generation.synced
    engine.sync()
    assert Generation.synced == before + 1


def test_a_server_is_asked_where_it_was_said_to_be(
    tiny_model: Qwen2ForCausalLM, pocket_tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = started(tiny_model, pocket_tokenizer, mode="server", host="10.0.0.2", port=9000)
    assert isinstance(engine, ServerEngine)
    assert Generation.made["mode"] == "server"
    assert (Generation.made["server_host"], Generation.made["server_port"]) == ("10.0.0.2", 9000)


def test_a_server_that_tells_other_logprobs_is_refused(
    tiny_model: Qwen2ForCausalLM,
    pocket_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Client, "mode", "raw_logprobs")
    with pytest.raises(ConfigError, match="raw_logprobs; restart it with"):
        started(tiny_model, pocket_tokenizer, mode="server")


def test_a_server_that_does_not_answer_is_told_in_a_line(
    tiny_model: Qwen2ForCausalLM,
    pocket_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(**_: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(trl_engine, "VLLMGeneration", nobody)
    with pytest.raises(ModelError, match=r"no vLLM server answers at 127\.0\.0\.1:8000"):
        started(tiny_model, pocket_tokenizer, mode="server")
