"""A sample is the dialogue token by token, with loss on the assistant's own tokens only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.errors import DataError, ModelError
from toolrl_box.formats.hermes import Hermes
from toolrl_box.formats.pythonic import Pythonic
from toolrl_box.formats.xml import Xml
from toolrl_box.rollout import replay_gold, run_episodes
from toolrl_box.samples import dialogue_to_sample, end_of_message_id, rollout_to_sample
from toolrl_box.testing import ByteCodec, EchoEnvironment, ScriptedPolicy, echo_task
from toolrl_box.types import Kind, Message, Rollout, Sample, Sampling, ToolCall, ToolFormat

CODEC = ByteCodec()
FORMAT = Hermes()
TASK = echo_task(["hi", "ho"])
SAMPLING = Sampling(0.0, 200, 0)


def sampled(script: list[str], max_new_tokens: int = 200) -> Rollout:
    (rollout,) = run_episodes(
        [TASK],
        ScriptedPolicy([script], logprob=-0.5),
        FORMAT,
        EchoEnvironment,
        CODEC.encode,
        CODEC.decode,
        Sampling(0.0, max_new_tokens, 0),
    )
    return rollout


def assistant_text(sample: Sample) -> str:
    """What carries loss, with a bar wherever other tokens stand between."""
    pieces: list[list[int]] = [[]]
    for token, own in zip(sample.token_ids, sample.loss_mask, strict=True):
        if own:
            pieces[-1].append(token)
        elif pieces[-1]:
            pieces.append([])
    return "|".join(CODEC.decode(piece) for piece in pieces if piece)


@pytest.mark.parametrize("fmt", [Hermes(), Pythonic(), Xml()], ids=lambda fmt: fmt.name)
@given(words=st.lists(st.text(max_size=8).map(str.strip).filter(bool), min_size=1, max_size=3))
def test_a_gold_dialogue_and_the_rollout_that_plays_it_have_the_same_tokens(
    fmt: ToolFormat, words: list[str]
) -> None:
    task = echo_task(words)
    written = dialogue_to_sample(task, fmt, CODEC.encode)
    played = replay_gold(task, fmt, EchoEnvironment, CODEC.encode, max_tokens=10**6)
    assert written == rollout_to_sample(played)


def test_loss_is_on_the_assistants_messages_and_the_tokens_that_end_them() -> None:
    sample = dialogue_to_sample(TASK, FORMAT, CODEC.encode)
    messages = [m for m in TASK.gold if m.role == "assistant"]
    assert assistant_text(sample) == "|".join(
        FORMAT.render_message(message) + "<|im_end|>" for message in messages
    )
    assert sample.source == "expert"
    assert sample.logprobs is None
    assert sample.advantage is None


@pytest.mark.parametrize("kind", ["call", "text"])
def test_loss_can_be_on_one_kind_of_message_alone(kind: Kind) -> None:
    sample = dialogue_to_sample(TASK, FORMAT, CODEC.encode, kind)
    messages = [m for m in TASK.gold if m.role == "assistant" and m.kind == kind]
    assert assistant_text(sample) == "|".join(
        FORMAT.render_message(message) + "<|im_end|>" for message in messages
    )
    assert sample.token_ids == dialogue_to_sample(TASK, FORMAT, CODEC.encode).token_ids
    assert 0 < sum(sample.loss_mask) < sum(dialogue_to_sample(TASK, FORMAT, CODEC.encode).loss_mask)


def test_a_gold_sample_reads_as_the_format_renders_the_dialogue() -> None:
    sample = dialogue_to_sample(TASK, FORMAT, CODEC.encode)
    whole = FORMAT.render([*TASK.prompt, *TASK.gold], TASK.tools)
    assert CODEC.decode(sample.token_ids) == whole.removesuffix("\n")
    prompt = FORMAT.render(TASK.prompt, TASK.tools, generation_prompt=True)
    assert CODEC.decode(sample.token_ids[: sample.prompt_length]) == prompt


def test_what_follows_the_last_gold_message_is_left_out() -> None:
    longer = replace(TASK, gold=(*TASK.gold, Message("user", "thanks")))
    assert dialogue_to_sample(longer, FORMAT, CODEC.encode) == dialogue_to_sample(
        TASK, FORMAT, CODEC.encode
    )


def test_two_assistant_messages_in_a_row_keep_their_frame() -> None:
    task = replace(TASK, gold=(Message("assistant", "one"), Message("assistant", "two")))
    sample = dialogue_to_sample(task, FORMAT, CODEC.encode)
    whole = FORMAT.render([*task.prompt, *task.gold], task.tools)
    assert CODEC.decode(sample.token_ids) == whole.removesuffix("\n")
    assert assistant_text(sample) == "one<|im_end|>|two<|im_end|>"


def test_a_rollout_keeps_its_logprobs_where_the_model_wrote_and_zero_elsewhere() -> None:
    sample = rollout_to_sample(sampled(["hi", "ho"]), advantage=1.5)
    assert sample.logprobs == tuple(-0.5 if own else 0.0 for own in sample.loss_mask)
    assert sample.advantage == 1.5
    assert sample.source == "policy"
    assert assistant_text(sample) == "hi<|im_end|>|ho<|im_end|>"
    assert len(sample.token_ids) == len(sample.loss_mask)


def test_the_end_that_the_environment_wrote_for_a_cut_message_carries_no_loss() -> None:
    sample = rollout_to_sample(sampled(["hello", "ho"], max_new_tokens=3))
    assert assistant_text(sample) == "hel|ho<|im_end|>"
    assert "hel<|im_end|>\n" in CODEC.decode(sample.token_ids)


def test_an_experts_rollout_has_no_logprobs() -> None:
    expert = replay_gold(TASK, FORMAT, EchoEnvironment, CODEC.encode)
    sample = rollout_to_sample(expert, advantage=0.0)
    assert sample.logprobs is None
    assert sample.source == "expert"


def test_a_rollout_that_never_spoke_gives_a_sample_without_loss() -> None:
    sample = rollout_to_sample(Rollout(TASK, (1, 2, 3), (), "max_tokens"))
    assert sample == Sample((1, 2, 3), (False,) * 3, 3, (0.0,) * 3)


@pytest.mark.parametrize("gold", [(), (Message("tool", "x"), Message("assistant", "y"))])
def test_gold_must_begin_with_the_assistant(gold: tuple[Message, ...]) -> None:
    with pytest.raises(DataError, match="task 'echo-hi-ho' has no gold dialogue"):
        dialogue_to_sample(replace(TASK, gold=gold), FORMAT, CODEC.encode)


def test_the_end_token_must_be_one_token() -> None:
    assert end_of_message_id(Hermes(), CODEC.encode) == CODEC.id_of("<|im_end|>")
    with pytest.raises(ModelError, match="as 10 tokens"):
        end_of_message_id(Hermes(), ByteCodec(specials=()).encode)


def test_calls_with_any_arguments_survive_into_the_sample() -> None:
    odd = Message("assistant", "", (ToolCall("echo", {"text": '"\n}</tool_call>'}),))
    task = replace(TASK, gold=(odd, *TASK.gold[1:]))
    sample = dialogue_to_sample(task, FORMAT, CODEC.encode)
    assert assistant_text(sample).startswith(FORMAT.render_message(odd) + "<|im_end|>")
