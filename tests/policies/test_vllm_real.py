"""vLLM itself, where it is installed: exact syncs, its samples, and whole runs.

Each engine starts in a process of its own, which takes from a quarter of a minute to some minutes.
Run with ``make vllm-test`` in the environment of ``make vllm-env`` (docs/vllm.md).
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from toolrl_box.errors import ModelError
from toolrl_box.models import Loaded, load_model
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.policies.vllm import VLLMPolicy
from toolrl_box.policies.vllm_engines import LLMEngine, start_local
from toolrl_box.runlog import RunLog
from toolrl_box.types import Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="these are tests of the CPU build"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's, TRL's about it, and old names of transformers
]
ROWS = 6


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.set_num_threads(1)
    return load_model("pocket")


@pytest.fixture(scope="module")
def engine(loaded: Loaded) -> LLMEngine:
    return start_local(loaded.model, loaded.stop_ids, 256, ROWS)


@pytest.fixture
def trained(loaded: Loaded) -> Iterator[HFPolicy]:
    """The model's own policy; its weights are put back afterwards."""
    before = copy.deepcopy(loaded.model.state_dict())
    yield HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, 0)
    loaded.model.load_state_dict(before)


@pytest.fixture
def prompt(trained: HFPolicy) -> list[int]:
    return trained.encode("<|im_start|>user\nfind my file<|im_end|>\n<|im_start|>assistant\n")


def policy_of(engine: LLMEngine, trained: HFPolicy, prompt: list[int]) -> VLLMPolicy:
    return VLLMPolicy(engine, trained, trained.stop_ids, [prompt, list(range(30, 90))], 1e-3)


def moved(trained: HFPolicy, by: float = 0.02) -> None:
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def test_weights_arrive_exactly_as_often_as_they_change(
    engine: LLMEngine, trained: HFPolicy, prompt: list[int]
) -> None:
    policy = policy_of(engine, trained, prompt)
    first = policy.logprobs([prompt])[0]
    for _ in range(2):
        moved(trained)
        ours, theirs = trained.logprobs([prompt])[0], policy.logprobs([prompt])[0]
        assert theirs == pytest.approx(ours, abs=1e-4)
        assert max(abs(a - b) for a, b in zip(first, theirs, strict=True)) > 0.1


def test_weights_that_were_not_sent_are_noticed(
    engine: LLMEngine, trained: HFPolicy, prompt: list[int]
) -> None:
    policy = policy_of(
        LLMEngine(engine._llm, sorted(trained.stop_ids), lambda: None), trained, prompt
    )
    moved(trained, 0.1)
    with pytest.raises(ModelError, match="the weights did not arrive"):
        policy.session(Sampling(1.0, 4, 0))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_several_turns_score_as_fresh_forwards_of_the_model_do(
    engine: LLMEngine, trained: HFPolicy, prompt: list[int], temperature: float
) -> None:
    moved(trained)
    session = policy_of(engine, trained, prompt).session(Sampling(temperature, 12, 3))
    rows: dict[int, list[int]] = {row: [] for row in range(ROWS)}
    for turn in range(3):
        appended = {
            row: prompt if turn == 0 else prompt[-5:] for row in rows if turn < 2 or row < 2
        }
        out = session.generate(appended)
        assert out.keys() == appended.keys()
        for row, generation in out.items():
            rows[row] += appended[row]
            start = len(rows[row])
            rows[row] += generation.completion_ids
            with torch.no_grad():
                logits = trained.model(torch.tensor([rows[row]])).logits[0, start - 1 : -1].float()
            logps = torch.log_softmax(logits / (temperature or 1.0), -1)
            for at, token in enumerate(generation.completion_ids):
                assert generation.logprobs[at] == pytest.approx(logps[at, token].item(), abs=1e-3)
                if temperature == 0:
                    assert logps[at, token].item() == pytest.approx(
                        logps[at].max().item(), abs=1e-3
                    )
            stopped = generation.completion_ids[-1] in trained.stop_ids
            assert generation.truncated == (not stopped)
            assert stopped or len(generation.completion_ids) == 12


def test_a_row_is_sampled_the_same_with_and_without_neighbours(
    engine: LLMEngine, trained: HFPolicy, prompt: list[int]
) -> None:
    policy = policy_of(engine, trained, prompt)
    together = policy.session(Sampling(1.0, 12, 5)).generate(dict.fromkeys(range(ROWS), prompt))
    alone = policy.session(Sampling(1.0, 12, 5)).generate({4: prompt})
    assert alone[4].completion_ids == together[4].completion_ids
    assert len({generation.completion_ids for generation in together.values()}) > 1


# --- runs ---------------------------------------------------------------------------------------

SETTINGS = (
    *("--scheme", "interleaved", "--steps", "4", "--no-report"),
    *("--set", "scheme.every=2", "--set", "rollout.engine=vllm", "--set", "grpo.lr=2e-4"),
    *("--set", "grpo.prompts_per_step=2", "--set", "grpo.group_size=4"),
    *("--set", "env.eval_tasks=4", "--set", "eval.ood=false", "--set", "checkpoint.every=2"),
)


def toolrl(*arguments: str, kill_after: Path | None = None) -> int:
    """A command of its own; ``kill_after``: killed as soon as this folder is there, with vLLM's
    processes, which would otherwise outlive it."""
    command = [sys.executable, "-m", "toolrl_box.cli", "run", *arguments]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        if kill_after is not None and kill_after.exists():
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    return process.returncode


def test_a_killed_run_goes_on_and_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert toolrl(*SETTINGS, "--output-dir", str(whole)) == 0
    frame = RunLog.open(whole).metrics()
    rl = frame[frame.phase_kind == "rl"]
    assert len(rl) == 4
    assert (frame.phase_kind == "sft").any()
    assert (rl.mismatch_ratio - 1).abs().max() < 0.01
    assert rl.mismatch_ess.min() > 0.99
    assert rl.mismatch_kl.max() < 1e-4

    first = killed / "checkpoints" / "step_000002"
    assert toolrl(*SETTINGS, "--output-dir", str(killed), kill_after=first) != 0
    assert toolrl("--resume", str(killed), "--no-report") == 0
    again = RunLog.open(killed).metrics()
    # vLLM's batches hold other rows after a resume, so equality is up to rounding.
    assert list(again.step) == list(frame.step)
    assert list(again.sampled_tokens.dropna()) == list(frame.sampled_tokens.dropna())
    assert again.loss.dropna().tolist() == pytest.approx(frame.loss.dropna().tolist(), abs=1e-4)
