"""Sampler against trainer: figures and weights by hand, and in real GRPO steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from toolrl_box.config import RunConfig, parse
from toolrl_box.errors import ConfigError, MissingExtraError
from toolrl_box.mismatch import mismatch, truncated_weights
from toolrl_box.phases import RL
from toolrl_box.policies import vllm_engines
from toolrl_box.policies.hf import HFPolicy, HFSession
from toolrl_box.sampler import sampler_for
from toolrl_box.signals import Experts
from toolrl_box.train import StepResult
from toolrl_box.trl_backend import TRLBackend
from toolrl_box.types import Generation, Sampling

Make = Callable[..., TRLBackend]


def of(*rows: Sequence[float]) -> torch.Tensor:
    return torch.tensor(rows)


EVERYWHERE = torch.ones(2, 2, dtype=torch.bool)


def test_without_a_mismatch_ratio_and_sample_size_are_one_and_kl_zero() -> None:
    same = of([-1.0, -2.0], [-0.5, -7.0])
    assert mismatch(same, same, EVERYWHERE) == {
        "mismatch_ratio": 1.0,
        "mismatch_kl": 0.0,
        "mismatch_ess": 1.0,
    }


def test_the_figures_are_those_of_the_formulas() -> None:
    trainer, sampler = of([-1.0, -2.0], [-0.5, -7.0]), of([-1.5, -1.8], [-0.5, -6.0])
    w = [math.exp(d) for d in (0.5, -0.2, 0.0, -1.0)]
    whole = [math.exp(0.3), math.exp(-1.0)]
    figures = mismatch(trainer, sampler, EVERYWHERE)
    assert figures["mismatch_ratio"] == pytest.approx(sum(w) / 4)
    assert figures["mismatch_kl"] == pytest.approx(sum(x - 1 - math.log(x) for x in w) / 4)
    expected = sum(whole) ** 2 / (2 * sum(x * x for x in whole))
    assert figures["mismatch_ess"] == pytest.approx(expected)


def test_one_rollout_that_outweighs_all_others_leaves_a_sample_of_one() -> None:
    sampler = of([-90.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    figures = mismatch(torch.zeros(4, 2), sampler, torch.ones(4, 2, dtype=torch.bool))
    assert figures["mismatch_ess"] == pytest.approx(0.25)


def test_tokens_that_were_not_sampled_count_nowhere() -> None:
    trainer, sampler = of([-1.0, -20.0], [-30.0, -40.0]), of([-1.0, 0.0], [0.0, 0.0])
    sampled = torch.tensor([[True, False], [False, False]])
    assert mismatch(trainer, sampler, sampled)["mismatch_ess"] == 1.0
    assert mismatch(trainer, sampler, sampled)["mismatch_kl"] == 0.0
    assert mismatch(trainer, sampler, torch.zeros(2, 2, dtype=torch.bool)) == {}
    assert torch.equal(truncated_weights(trainer, sampler, sampled, 3.0), torch.ones(2, 2))


def test_weights_are_cut_from_above_only() -> None:
    trainer, sampler = of([0.0, -9.0], [-1.0, -1.0]), of([-5.0, 0.0], [-1.0, -1.5])
    weights = truncated_weights(trainer, sampler, EVERYWHERE, 3.0)
    assert weights[0].tolist() == pytest.approx([3.0, math.exp(-9)])
    assert weights[1].tolist() == pytest.approx([1.0, math.exp(0.5)])


# --- in training --------------------------------------------------------------------------------


class Misreporting:
    """The model's own messages, said to have been less likely by ``nats`` a token, as if another
    engine had sampled them."""

    def __init__(self, policy: HFPolicy, nats: float) -> None:
        self.policy = policy
        self.nats = nats

    def session(self, sampling: Sampling) -> MisreportingSession:
        return MisreportingSession(self.policy.session(sampling), self.nats)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.policy.logprobs(sequences)


class MisreportingSession:
    def __init__(self, session: HFSession, nats: float) -> None:
        self.session = session
        self.nats = nats

    def generate(self, appended: Mapping[int, Sequence[int]]) -> Mapping[int, Generation]:
        return {
            row: replace(g, logprobs=tuple(logprob - self.nats for logprob in g.logprobs))
            for row, g in self.session.generate(appended).items()
        }


class Steps:
    def __init__(self) -> None:
        self.results: list[StepResult] = []

    def __call__(self, result: StepResult) -> bool:
        self.results.append(result)
        return False


def configured(tiny_config: RunConfig, **rollout: Any) -> RunConfig:
    values = tiny_config.model_dump(mode="json")
    values["rollout"] |= rollout
    return parse(values)


def trained(
    make_backend: Make, config: RunConfig, nats: float = 0.0, steps: int = 2
) -> tuple[dict[str, torch.Tensor], list[StepResult]]:
    """Weights after some steps of RL, and the steps."""
    backend = make_backend(config)
    if nats:
        collect = backend._collect
        assert isinstance(collect.policy, HFPolicy)
        backend._collect = replace(collect, policy=Misreporting(collect.policy, nats))
    seen = Steps()
    backend.rl(RL(steps), steps, 0, on_step=seen)
    return dict(backend.model.state_dict()), seen.results


def distance(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


def test_an_engine_that_agrees_trains_as_the_model_itself(
    make_backend: Make, tiny_config: RunConfig
) -> None:
    ours, _ = trained(make_backend, tiny_config)
    other, results = trained(make_backend, configured(tiny_config, engine="vllm"))
    assert distance(ours, other) < 1e-4
    for result in results:
        assert result.figures["mismatch_ratio"] == pytest.approx(1, abs=1e-4)
        assert result.figures["mismatch_ess"] == pytest.approx(1, abs=1e-4)
        assert 0 <= result.figures["mismatch_kl"] < 1e-8


def test_the_model_itself_has_no_mismatch_to_log(
    make_backend: Make, tiny_config: RunConfig
) -> None:
    _, results = trained(make_backend, tiny_config)
    assert not any(name.startswith("mismatch_") for name in results[0].figures)


def test_a_mismatch_is_logged_as_it_is(make_backend: Make, tiny_config: RunConfig) -> None:
    _, results = trained(make_backend, configured(tiny_config, engine="vllm"), nats=0.4)
    for result in results:
        assert result.figures["mismatch_ratio"] == pytest.approx(math.exp(0.4), rel=1e-4)
        assert result.figures["mismatch_kl"] == pytest.approx(math.exp(0.4) - 1.4, rel=1e-3)
        assert 0 < result.figures["mismatch_ess"] < 1


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_without_correction_a_mismatch_changes_nothing(
    make_backend: Make, tiny_config: RunConfig, mini_batches: int
) -> None:
    values = configured(tiny_config, engine="vllm", vllm={"correction": "off"}).model_dump()
    config = parse({**values, "grpo": values["grpo"] | {"mini_batches": mini_batches}})
    agreeing, _ = trained(make_backend, config)
    differing, _ = trained(make_backend, config, nats=0.4)
    assert distance(agreeing, differing) == 0.0


def test_the_correction_weighs_tokens_up_to_its_limit(
    make_backend: Make, tiny_config: RunConfig
) -> None:
    def norms(nats: float, limit: float) -> list[float]:
        config = configured(tiny_config, engine="vllm", vllm={"correction_max": limit})
        _, results = trained(make_backend, config, nats, steps=1)
        return [result.figures["loss"] for result in results]

    plain = norms(0.0, 3.0)
    assert plain[0] != 0
    assert norms(0.4, 3.0) == pytest.approx([math.exp(0.4) * x for x in plain], rel=0.02)
    assert norms(0.4, 1.2) == pytest.approx([1.2 * x for x in plain], rel=0.02)


def advantages(backend: TRLBackend, phase: RL, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the trainer is given for its first batch of rollouts, and where each row is from."""
    from toolrl_box import trl_backend

    batches = []
    inner = trl_backend._GRPO._generate_and_score_completions

    def spy(self: Any, inputs: Any) -> dict[str, Any]:
        output = inner(self, inputs)
        sources = [r.source for group in self._meter.groups for r in group.rollouts]
        batches.append(({k: v.clone() for k, v in output.items() if torch.is_tensor(v)}, sources))
        return output

    monkeypatch.setattr(trl_backend._GRPO, "_generate_and_score_completions", spy)
    backend.rl(phase, 1, 0, on_step=Steps())
    return batches[0]


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_gold_rollouts_keep_their_weight_however_far_the_engine_is_from_the_model(
    make_backend: Make, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, gamma: float
) -> None:
    backend = make_backend(configured(tiny_config, engine="vllm"))
    collect = backend._collect
    assert isinstance(collect.policy, HFPolicy)
    backend._collect = replace(collect, policy=Misreporting(collect.policy, -0.7))
    phase = RL(1, experts=Experts(1, only_failed=False, gamma=gamma))
    batch, sources = advantages(backend, phase, monkeypatch)
    assert set(sources) == {"policy", "expert"}
    mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
    for row, source in enumerate(sources):
        given = batch["advantages"][row]
        assert len(set(given[mask[row]].tolist())) <= (1 if source == "expert" else 10**6)
        outside = given[~mask[row]]
        if source == "policy" and len(outside) and outside[0] != 0:
            ratio = given[mask[row]] / outside[0]
            assert ratio.tolist() == pytest.approx([math.exp(-0.7)] * len(ratio), rel=1e-3)
        elif source == "expert":
            assert torch.equal(given, given[:1].expand_as(given))
    # An expert's ratio begins at 1 (scored by the trainer), or is shaped (an old log-prob of 0).
    experts = [row for row, source in enumerate(sources) if source == "expert"]
    old = batch["old_per_token_logps"][experts][mask[experts]]
    assert (old == 0).all() if gamma else (old < 0).all()


# --- who samples --------------------------------------------------------------------------------


def test_an_engine_that_is_not_installed_is_told_before_anything_begins(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engines, "find_spec", lambda name: None)
    nobody: Any = None
    with pytest.raises(MissingExtraError, match=r"docs/vllm\.md"):
        sampler_for(configured(tiny_config, engine="vllm"), nobody, nobody, [[1, 2]])
    assert sampler_for(tiny_config, nobody, nobody, [[1, 2]]) is None, "the policy itself"


def test_vllm_rollouts_are_for_one_process(tiny_config: RunConfig) -> None:
    nobody: Any = None
    with pytest.raises(ConfigError, match="one process"):
        sampler_for(configured(tiny_config, engine="vllm"), nobody, nobody, [[1, 2]], processes=2)
    values = configured(tiny_config, engine="vllm").model_dump()
    adapted = parse(values | {"model": {"name": "pocket", "lora": {"rank": 2}}})
    with pytest.raises(ConfigError, match="does not sync adapters"):
        sampler_for(adapted, nobody, nobody, [[1, 2]])
