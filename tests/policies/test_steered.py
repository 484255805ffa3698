"""Counterfactual decoding: whose log-probs count, what a grammar refuses, and what is forced."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from toolrl_box.errors import ModelError
from toolrl_box.formats import FORMATS
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.policies.steered import (
    Forced,
    SteeredPolicy,
    Steering,
    TokenGrammar,
    with_control_of,
)
from toolrl_box.samples import end_of_message_id
from toolrl_box.types import Generation, Policy, Sampling

CONTROL = (3, 7, 11)
STOPS = (7, 20)


def tiny(tokenizer: PreTrainedTokenizerBase, seed: int, layers: int = 2) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=64,
            vocab_size=len(tokenizer),
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


def policy_of(tokenizer: PreTrainedTokenizerBase, seed: int, layers: int = 2) -> HFPolicy:
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return HFPolicy(tiny(tokenizer, seed, layers), tokenizer, STOPS, pad)


def alone(model: PreTrainedModel, context: Sequence[int]) -> torch.Tensor:
    """Logits [1, V] after the context, by a fresh forward."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(context)])).logits[:, -1]
    return logits


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(30, 300), k=count)


def test_control_tokens_have_the_references_probabilities_and_the_rest_keeps_its_odds() -> None:
    torch.manual_seed(0)
    logits_BV, reference_BV = torch.randn(5, 40) * 3, torch.randn(5, 40) * 3
    control_C = torch.tensor(CONTROL)
    mixed_BV = with_control_of(logits_BV, reference_BV, control_C).exp()
    p_BV, q_BV = logits_BV.softmax(1), reference_BV.softmax(1)
    rest = [v for v in range(40) if v not in CONTROL]
    torch.testing.assert_close(mixed_BV.sum(1), torch.ones(5))
    torch.testing.assert_close(mixed_BV[:, control_C], q_BV[:, control_C])
    torch.testing.assert_close(
        mixed_BV[:, rest] / mixed_BV[:, rest].sum(1, keepdim=True),
        p_BV[:, rest] / p_BV[:, rest].sum(1, keepdim=True),
    )


def test_without_control_tokens_or_with_itself_as_the_reference_nothing_changes() -> None:
    torch.manual_seed(0)
    logits_BV, reference_BV = torch.randn(2, 3, 40)
    none = torch.tensor([], dtype=torch.long)
    expected_BV = logits_BV.log_softmax(1)
    torch.testing.assert_close(with_control_of(logits_BV, reference_BV, none), expected_BV)
    same_BV = with_control_of(logits_BV, logits_BV, torch.tensor(CONTROL))
    torch.testing.assert_close(same_BV, expected_BV)


def test_a_model_that_is_certain_of_a_control_token_still_says_what_else_it_would_say() -> None:
    """The collapse itself: all of p is on a control token, so that 1 - p(C) is 0 in float32."""
    logits_BV = torch.tensor([[60.0, 2.0, 1.0, 0.0]])
    reference_BV = torch.tensor([[-60.0, 0.0, 0.0, 0.0]])
    mixed_BV = with_control_of(logits_BV, reference_BV, torch.tensor([0]))
    torch.testing.assert_close(mixed_BV[0, 1:], torch.tensor([2.0, 1.0, 0.0]).log_softmax(0))


ROUNDS: list[dict[int, list[int]]] = [
    {0: ids(9, 0), 1: ids(3, 1), 2: ids(3, 1), 3: ids(17, 3), 4: ids(1, 4)},
    {3: ids(2, 5), 1: ids(11, 6), 9: ids(4, 9)},
    {9: ids(6, 10), 3: ids(5, 11)},
]


def played(policy: Policy, sampling: Sampling) -> list[Mapping[int, Generation]]:
    session = policy.session(sampling)
    return [session.generate(appended) for appended in ROUNDS]


def test_the_reference_reads_the_same_context_through_several_turns(
    pocket_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Rows of unequal length that leave and come, a reference of another depth: every token is
    that of fresh forwards of both models over the whole context."""
    policy = policy_of(pocket_tokenizer, 0)
    reference = policy_of(pocket_tokenizer, 1, layers=3)
    control = (*CONTROL, *range(30, 200))
    steered = SteeredPolicy(policy, Steering(reference, control))
    rounds = played(steered, Sampling(0.0, 10, 0))
    contexts: dict[int, list[int]] = {}
    differ = 0
    for appended, out in zip(ROUNDS, rounds, strict=True):
        for row, given in appended.items():
            context = contexts.setdefault(row, [])
            context += given
            for token, score in zip(out[row].completion_ids, out[row].logprobs, strict=True):
                own_BV, other_BV = (alone(m, context) for m in (policy.model, reference.model))
                expected_BV = with_control_of(own_BV, other_BV, torch.tensor(control))
                assert token == int(expected_BV.argmax())
                assert score == pytest.approx(float(expected_BV[0, token]), abs=1e-3)
                differ += token != int(own_BV.argmax())
                context.append(token)
    assert differ > 10


def test_no_intervention_is_the_plain_policy(pocket_tokenizer: PreTrainedTokenizerBase) -> None:
    policy = policy_of(pocket_tokenizer, 0)
    sampling = Sampling(1.0, 12, 3)
    assert played(SteeredPolicy(policy), sampling) == played(policy, sampling)
    assert SteeredPolicy(policy).logprobs([[1, 2, 3]]) == policy.logprobs([[1, 2, 3]])


def test_a_due_message_begins_with_the_prefix_and_others_do_not(
    pocket_tokenizer: PreTrainedTokenizerBase,
) -> None:
    policy = policy_of(pocket_tokenizer, 0)
    free = played(policy, Sampling(0.0, 6, 0))
    due = ((False,), (True,), (False,), (False, True), (), *[()] * 4, (False, True))
    forced = played(
        SteeredPolicy(policy, Steering(forced=Forced((301, 302), due))), Sampling(0.0, 6, 0)
    )
    for turn, appended in enumerate(ROUNDS):
        for row in appended:
            said = forced[turn][row]
            message = sum(row in earlier for earlier in ROUNDS[:turn])
            if message < len(due[row]) and due[row][message]:
                assert said.completion_ids[:2] == (301, 302)
                assert said.logprobs[:2] == (0.0, 0.0)
            elif not any(due[row][:message]):
                assert said.completion_ids == free[turn][row].completion_ids


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_under_its_grammar_even_an_untrained_model_writes_sound_messages(
    name: str, temperature: float, pocket_tokenizer: PreTrainedTokenizerBase
) -> None:
    fmt, policy = FORMATS[name], policy_of(pocket_tokenizer, 0)
    end = end_of_message_id(FORMATS["hermes"], policy.encode)
    policy.stop_ids = frozenset({end})
    pieces = [policy.decode([token]) for token in range(policy.vocabulary)]
    grammar = TokenGrammar(fmt.grammar, pieces, policy.stop_ids)
    with torch.no_grad():  # an appetite for structure
        head = policy.model.get_output_embeddings().weight
        head[[end, *policy.encode(fmt.call_start), *policy.encode(fmt.call_end)]] *= 3
    steered = SteeredPolicy(policy, Steering(grammar=grammar))
    out = steered.session(Sampling(temperature, 40, 0)).generate({k: ids(4, k) for k in range(60)})
    ended = [g.completion_ids for g in out.values() if not g.truncated]
    assert len(ended) > 5
    errors = [e.kind for said in ended for e in fmt.parse(policy.decode(said[:-1])).errors]
    broken = {"unclosed_call", "nested_open", "stray_close", "role_debris", "bad_json"}
    assert not broken & set(errors)
    for generation in out.values():
        assert all(math.isfinite(score) for score in generation.logprobs)
        assert policy.decode(generation.completion_ids[:-1]).strip()
    plain = policy.session(Sampling(temperature, 40, 0)).generate({k: ids(4, k) for k in range(60)})
    said = [policy.decode(g.completion_ids) for g in plain.values()]
    assert any(broken & {e.kind for e in fmt.parse(text).errors} for text in said)


def test_a_token_is_possible_when_all_of_its_text_is() -> None:
    pieces = ["<tool_call>", "\n", '{"name": "', "a", "</tool_call>", "", "<|im_end|>", " b"]
    grammar = TokenGrammar(FORMATS["hermes"].grammar, pieces, {6})

    def allowed(*said: int) -> list[str]:
        state = grammar.start
        for token in said:
            following = grammar.after(state, token)
            assert following is not None
            state = following
        refused = grammar.refused(state).tolist()
        return [p for p, refuse in zip(pieces, refused, strict=True) if not refuse]

    assert allowed() == ["<tool_call>", "\n", '{"name": "', "a", " b"]
    assert allowed(3) == ["\n", '{"name": "', "a", "<|im_end|>", " b"]
    assert allowed(3, 1) == ["<tool_call>", "\n", '{"name": "', "a", "<|im_end|>", " b"]
    assert allowed(0) == ["\n", '{"name": "']
    assert allowed(0, 2) == ["a", " b"]


def test_a_gold_call_passes_token_by_token_in_the_pocket_vocabulary(
    pocket_tokenizer: PreTrainedTokenizerBase,
) -> None:
    policy = policy_of(pocket_tokenizer, 0)
    pieces = [policy.decode([token]) for token in range(policy.vocabulary)]
    grammar = TokenGrammar(
        FORMATS["hermes"].grammar, pieces, {end_of_message_id(FORMATS["hermes"], policy.encode)}
    )
    call = {"name": "café", "arguments": {"a": "</b> 世", "n": 12}}
    text = f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    state = grammar.start
    for token in [*policy.encode(text), end_of_message_id(FORMATS["hermes"], policy.encode)]:
        assert not grammar.refused(state)[token], policy.decode([token])
        state = grammar.after(state, token)
    assert state is None


def test_a_reference_with_another_vocabulary_is_refused(
    pocket_tokenizer: PreTrainedTokenizerBase,
) -> None:
    from toolrl_box.models.pocket_tokenizer import build_tokenizer

    other = build_tokenizer()
    other.add_tokens(["one more"])
    policy, reference = policy_of(pocket_tokenizer, 0), policy_of(other, 1)
    with pytest.raises(ModelError, match="another vocabulary"):
        SteeredPolicy(policy, Steering(reference, CONTROL))
    reference = policy_of(pocket_tokenizer, 1)
    reference.window = 64
    with pytest.raises(ModelError, match="sliding window is 64"):
        SteeredPolicy(policy, Steering(reference, CONTROL))
