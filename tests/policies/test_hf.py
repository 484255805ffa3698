"""The transformers policy against the plainest thing it could be: fresh full-context forwards."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.types import Generation, Policy, Sampling

VOCABULARY = 40
PAD = 0


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    pieces = {chr(ord("a") + i): i for i in range(26)} | {"<|im_end|>": 26}
    inner = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    inner.add_special_tokens(["<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def tiny(attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    model.set_attn_implementation(attention)
    sharpen(model)
    return model


def sharpen(model: PreTrainedModel) -> None:
    """Spread the logits: a fresh model's are so flat that positions and masks hardly matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)


def policy_of(model: PreTrainedModel, stop_ids: Sequence[int] = ()) -> HFPolicy:
    return HFPolicy(model, tokenizer(), stop_ids or [VOCABULARY + 1], PAD)


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1, VOCABULARY), k=count)


def alone(model: PreTrainedModel, context: Sequence[int]) -> torch.Tensor:
    """Log-probs [T, V] of a fresh forward over the context, without cache, batch or mask."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(context)]), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)


def played(
    policy: HFPolicy, rounds: Sequence[Mapping[int, list[int]]], sampling: Sampling
) -> tuple[dict[int, list[int]], list[Mapping[int, Generation]]]:
    """Whole sequences by row, and the generations of each round."""
    session = policy.session(sampling)
    contexts: dict[int, list[int]] = {}
    rounds_out = []
    for appended in rounds:
        out = session.generate(appended)
        for row, given_ids in appended.items():
            contexts[row] = contexts.get(row, []) + given_ids + list(out[row].completion_ids)
        rounds_out.append(out)
    return contexts, rounds_out


# Unequal lengths, a group with one prompt, rows that leave, rows that come later.
ROUNDS: list[dict[int, list[int]]] = [
    {0: ids(9, 0), 1: ids(3, 1), 2: ids(3, 1), 3: ids(17, 3), 4: ids(1, 4), 5: ids(3, 1)},
    {3: ids(2, 5), 1: ids(11, 6), 0: ids(1, 7), 5: ids(1, 8), 9: ids(4, 9)},
    {9: ids(6, 10), 0: ids(5, 11), 5: ids(20, 12)},
    {0: ids(3, 13), 12: ids(7, 14)},
]


def assert_like_alone(
    model: PreTrainedModel,
    contexts: Mapping[int, list[int]],
    rounds: Sequence[Mapping[int, list[int]]],
    out: Sequence[Mapping[int, Generation]],
    *,
    greedy: bool,
    temperature: float = 1.0,
) -> None:
    for row, context in contexts.items():
        logprobs = torch.log_softmax(alone(model, context) / temperature, -1)
        at = 0
        for appended, generations in zip(rounds, out, strict=True):
            if row not in appended:
                continue
            at += len(appended[row])
            for token, score in zip(
                generations[row].completion_ids, generations[row].logprobs, strict=True
            ):
                assert token == context[at]
                if greedy:
                    assert token == int(logprobs[at - 1].argmax())
                assert score == pytest.approx(float(logprobs[at - 1, token]), abs=1e-4)
                at += 1
        assert at == len(context)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stop_ids", [[], [3, 7, 11, 20, 22, 31]], ids=["no stop", "early stops"])
def test_greedy_messages_over_several_turns_equal_fresh_full_context_forwards(
    attention: str, stop_ids: list[int]
) -> None:
    model = tiny(attention)
    contexts, out = played(policy_of(model, stop_ids), ROUNDS, Sampling(0.0, 12, 0))
    assert_like_alone(model, contexts, ROUNDS, out, greedy=True)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_logprobs_are_those_of_the_tempered_distribution_that_was_sampled(
    temperature: float,
) -> None:
    model = tiny()
    stops = [3, 7, 11, 20, 22, 31]
    contexts, out = played(policy_of(model, stops), ROUNDS, Sampling(temperature, 12, 5))
    assert_like_alone(model, contexts, ROUNDS, out, greedy=False, temperature=temperature)


def test_rows_that_stop_early_and_rows_that_go_on_alone_are_both_right() -> None:
    model = tiny()
    stops = [2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35]
    rounds = [{row: ids(2 + row % 5, 100 * turn + row) for row in range(24)} for turn in range(3)]
    contexts, out = played(policy_of(model, stops), rounds, Sampling(1.0, 30, 1))
    lengths = sorted(len(g.completion_ids) for g in out[0].values())
    assert lengths[0] < 3
    assert lengths[-1] > 2 * lengths[12], "the batch must have shrunk"
    assert_like_alone(model, contexts, rounds, out, greedy=False)


def test_prompts_longer_than_one_pass_are_fed_in_pieces() -> None:
    model = tiny()
    policy = policy_of(model)
    policy.tokens_per_pass = 16
    rounds = [{0: ids(70, 0), 1: ids(5, 1), 2: ids(33, 2)}, {2: ids(40, 3), 0: ids(1, 4)}]
    contexts, out = played(policy, rounds, Sampling(0.0, 5, 0))
    assert_like_alone(model, contexts, rounds, out, greedy=True)


@pytest.mark.parametrize(
    "model_of",
    [
        lambda: LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                vocab_size=VOCABULARY,
            )
        ),
        lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=VOCABULARY)
        ),
        lambda: MistralForCausalLM(
            MistralConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=64,
                vocab_size=VOCABULARY,
                sliding_window=128,
            )
        ),
    ],
    ids=["llama", "gpt2", "mistral"],
)
def test_other_families_give_the_same_as_fresh_forwards(model_of: object) -> None:
    assert callable(model_of)
    torch.manual_seed(0)
    model = model_of()
    contexts, out = played(policy_of(model), ROUNDS, Sampling(0.0, 6, 0))
    assert_like_alone(model, contexts, ROUNDS, out, greedy=True)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    policy = policy_of(tiny(), [3, 7, 11])
    greedy = Sampling(0.0, 15, 0)
    together = policy.session(greedy).generate(ROUNDS[0])
    for row, prompt in ROUNDS[0].items():
        single = policy.session(greedy).generate({row: prompt})[row]
        assert single.completion_ids == together[row].completion_ids
        assert single.logprobs == pytest.approx(together[row].logprobs, abs=1e-4)


def test_rows_with_one_prompt_are_drawn_independently() -> None:
    out = (
        policy_of(tiny()).session(Sampling(1.5, 12, 0)).generate({key: [1, 2] for key in range(6)})
    )
    assert len({generation.completion_ids for generation in out.values()}) > 1


def test_a_row_draws_the_same_whoever_is_beside_it() -> None:
    policy = policy_of(tiny(), [3, 7, 11])
    rows = {key: ids(4 + key, key) for key in range(6)}
    whole = policy.session(Sampling(1.0, 12, 0))
    part = policy.session(Sampling(1.0, 12, 0))
    for _ in range(3):  # later messages too: rows stop at different times
        together = whole.generate(rows)
        beside = part.generate({key: rows[key] for key in (4, 1)})
        for key in (1, 4):
            assert beside[key].completion_ids == together[key].completion_ids
            assert beside[key].logprobs == pytest.approx(together[key].logprobs, abs=1e-4)
        rows = {key: [5, 6] for key in rows}


def test_the_same_seed_gives_the_same_messages_and_another_seed_others() -> None:
    policy = policy_of(tiny(), [3, 7, 11])
    first, again, other = (played(policy, ROUNDS, Sampling(1.0, 12, seed))[1] for seed in (4, 4, 5))
    assert first == again
    assert first != other


def test_sampled_frequencies_are_the_models_probabilities() -> None:
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.div_(4.0)  # flat enough that many tokens occur
    expected = alone(model, [1, 2, 3])[-1].exp()
    rows = 4000
    out = (
        policy_of(model)
        .session(Sampling(1.0, 1, 0))
        .generate({key: [1, 2, 3] for key in range(rows)})
    )
    counts = torch.zeros(VOCABULARY)
    for generation in out.values():
        counts[generation.completion_ids[0]] += 1
    chi2 = float(((counts - rows * expected) ** 2 / (rows * expected)).sum())
    # chi-squared with V - 1 = 39 degrees of freedom: 99.9% quantile 72.
    assert chi2 < 72, chi2


@pytest.mark.parametrize("last", [0, 5, VOCABULARY - 1])
def test_a_token_of_probability_zero_is_never_drawn(last: int) -> None:
    model = tiny()
    policy = policy_of(model)
    session = policy.session(Sampling(1.0, 1, 0))
    logits = torch.full((2000, VOCABULARY), -math.inf)
    logits[:, [last, 7]] = torch.tensor([0.0, 0.0])
    draws = random.Random(0)
    u = [0.0, 1 - 2**-24, *(draws.randrange(2**24) / 2**24 for _ in range(1998))]
    tokens, scores = session._sample(logits, u)
    assert set(tokens.tolist()) == {last, 7}
    assert scores.tolist() == pytest.approx([math.log(0.5)] * 2000)


def test_the_stop_token_ends_the_message_and_is_kept_in_it() -> None:
    model = tiny()
    free = policy_of(model).session(Sampling(0.0, 10, 0)).generate({0: ids(5, 0)})[0]
    stop = free.completion_ids[4]
    first = free.completion_ids.index(stop) + 1
    out = policy_of(model, [stop]).session(Sampling(0.0, 10, 0)).generate({0: ids(5, 0)})[0]
    assert out.completion_ids == free.completion_ids[:first]
    assert not out.truncated
    assert free.truncated


def test_a_message_that_stops_on_its_last_allowed_token_is_not_truncated() -> None:
    model = tiny()
    prompt = ids(5, 0)
    token = policy_of(model).session(Sampling(0.0, 1, 0)).generate({0: prompt})[0].completion_ids[0]
    out = policy_of(model, [token]).session(Sampling(0.0, 1, 0)).generate({0: prompt})[0]
    assert not out.truncated


def test_naming_a_finished_row_again_is_a_bug() -> None:
    session = policy_of(tiny()).session(Sampling(1.0, 2, 0))
    session.generate({0: [1], 1: [2]})
    session.generate({0: [3]})
    with pytest.raises(AssertionError, match="row 1 was finished"):
        session.generate({1: [4]})


def test_an_empty_prompt_is_a_bug_but_an_empty_observation_is_not() -> None:
    session = policy_of(tiny()).session(Sampling(1.0, 2, 0))
    with pytest.raises(AssertionError, match="empty prompt"):
        session.generate({0: []})
    session = policy_of(tiny()).session(Sampling(1.0, 2, 0))
    session.generate({0: [1]})
    assert len(session.generate({0: []})[0].completion_ids) == 2
    assert session.generate({}) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_stop_sampling_and_scoring(
    bad: float, temperature: float
) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(bad)
    policy = policy_of(model)
    with pytest.raises(ModelError, match="NaN or infinite"):
        policy.session(Sampling(temperature, 3, 0)).generate({0: [1, 2]})
    with pytest.raises(ModelError, match="NaN or infinite"):
        policy.logprobs([[1, 2, 3]])


def test_scores_of_given_sequences_are_those_of_fresh_forwards_in_the_order_given() -> None:
    model = tiny()
    policy = policy_of(model)
    policy.tokens_per_pass = 64
    sequences = [ids(count, count) for count in (30, 1, 12, 12, 0, 90, 2, 45)]
    scores = policy.logprobs(sequences)
    for sequence, row in zip(sequences, scores, strict=True):
        assert len(row) == len(sequence)
        if len(sequence) < 2:
            assert row == [0.0] * len(sequence)
            continue
        fresh = alone(model, sequence)
        expected = [0.0] + [float(fresh[i, token]) for i, token in enumerate(sequence[1:])]
        assert row == pytest.approx(expected, abs=1e-4)


def test_sampled_logprobs_agree_with_scoring_at_temperature_one() -> None:
    policy = policy_of(tiny(), [3, 7])
    prompt = ids(6, 0)
    out = policy.session(Sampling(1.0, 20, 0)).generate({0: prompt})[0]
    scores = policy.logprobs([prompt + list(out.completion_ids)])[0]
    assert out.logprobs == pytest.approx(scores[len(prompt) :], abs=1e-4)


def test_training_mode_comes_back_module_by_module() -> None:
    model = tiny()
    model.train()
    frozen = next(module for name, module in model.named_modules() if name.endswith("mlp"))
    frozen.eval()
    before = [module.training for module in model.modules()]
    policy = policy_of(model)
    policy.session(Sampling(1.0, 2, 0)).generate({0: [1]})
    policy.logprobs([[1, 2]])
    assert [module.training for module in model.modules()] == before
    loss = model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()  # nothing made under inference mode has stayed in the model


def test_bfloat16_models_sample_and_score() -> None:
    model = tiny().to(torch.bfloat16)
    contexts, out = played(policy_of(model), ROUNDS, Sampling(1.0, 6, 0))
    assert all(math.isfinite(s) for turn in out for g in turn.values() for s in g.logprobs)
    assert set(contexts) == {0, 1, 2, 3, 4, 5, 9, 12}


def test_text_becomes_tokens_and_comes_back_with_special_tokens() -> None:
    policy: Policy = policy_of(tiny())
    assert isinstance(policy, HFPolicy)
    assert policy.encode("abc<|im_end|>") == [0, 1, 2, 26]
    assert policy.decode([26]) == "<|im_end|>"


def test_models_without_a_key_value_cache_are_refused() -> None:
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=VOCABULARY, state_size=4)
    with pytest.raises(ModelError, match="keeps its past in a LinearAttentionLayer"):
        policy_of(MambaForCausalLM(config))


def test_an_episode_that_outgrows_the_sliding_window_is_refused() -> None:
    config = MistralConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=VOCABULARY,
        sliding_window=16,
    )
    session = policy_of(MistralForCausalLM(config)).session(Sampling(1.0, 8, 0))
    with pytest.raises(ModelError, match="sliding window is 16"):
        session.generate({0: ids(9, 0)})


def test_a_policy_without_stop_tokens_and_sampling_that_cannot_be_are_refused() -> None:
    with pytest.raises(ModelError, match="no stop token"):
        HFPolicy(tiny(), tokenizer(), [], PAD)
    for sampling in (Sampling(-1.0, 3, 0), Sampling(1.0, 0, 0)):
        with pytest.raises(ConfigError, match="temperature"):
            policy_of(tiny()).session(sampling)


@settings(max_examples=15)
@given(st.data())
def test_any_pattern_of_turns_gives_what_fresh_forwards_give(data: st.DataObject) -> None:
    model = tiny()
    rows = set(range(data.draw(st.integers(1, 7))))
    rounds: list[dict[int, list[int]]] = []
    for turn in range(data.draw(st.integers(1, 4))):
        if not rows:
            break
        rounds.append(
            {
                row: data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9))
                for row in sorted(rows)
            }
        )
        rows -= data.draw(st.sets(st.sampled_from(sorted(rows))))
        if data.draw(st.booleans()):
            rows.add(100 + turn)
    stops = data.draw(st.sampled_from([[41], [3, 7, 11, 20, 22, 31], list(range(0, 40, 3))]))
    sampling = Sampling(1.0, data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99)))
    contexts, out = played(policy_of(model, stops), rounds, sampling)
    assert_like_alone(model, contexts, rounds, out, greedy=False)
