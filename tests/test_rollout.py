"""The loop says to the policy exactly what the dialogue is, and records exactly what it said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.formats.hermes import Hermes
from toolrl_box.rollout import TRUNCATED, replay_gold, run_episodes
from toolrl_box.testing import ByteCodec, EchoEnvironment, ScriptedPolicy, echo_task
from toolrl_box.types import (
    Environment,
    Generation,
    Message,
    Parsed,
    Policy,
    Rollout,
    Sampling,
    Step,
    Task,
    ToolCall,
)

FORMAT = Hermes()
CODEC = ByteCodec()
GREEDY = Sampling(temperature=0.0, max_new_tokens=200, seed=0)
END = CODEC.id_of("<|im_end|>")
TASK = echo_task(["hi", "ho"])


def call(text: str, name: str = "echo") -> str:
    return FORMAT.render_message(Message("assistant", "", (ToolCall(name, {"text": text}),)))


GOLD = [call("hi"), "hi", call("ho"), "ho"]


def play(
    script: Sequence[Sequence[str]],
    tasks: Sequence[Task] = (TASK,),
    *,
    sampling: Sampling = GREEDY,
    **limits: int,
) -> tuple[list[Rollout], ScriptedPolicy]:
    policy = ScriptedPolicy(script)
    rollouts = run_episodes(
        tasks, policy, FORMAT, EchoEnvironment, CODEC.encode, CODEC.decode, sampling, **limits
    )
    return rollouts, policy


def sequence(rollout: Rollout) -> list[int]:
    ids = list(rollout.prompt_ids)
    for turn in rollout.turns:
        ids += [*turn.completion_ids, *turn.observation_ids]
    return ids


def test_a_correct_dialogue_succeeds_and_reads_as_the_format_renders_it() -> None:
    (rollout,), policy = play([GOLD])
    assert rollout.stop_reason == "answered"
    assert rollout.outcome == {"success": 1.0}
    assert rollout.error is None
    assert rollout.source == "policy"
    assert [turn.text for turn in rollout.turns] == GOLD
    # The last <|im_end|> has no newline after it: nobody wrote one.
    whole = FORMAT.render([*TASK.prompt, *TASK.gold], TASK.tools)
    assert CODEC.decode(sequence(rollout)) == whole.removesuffix("\n")
    assert policy.contexts[0] == sequence(rollout)


def test_the_sampled_tokens_and_logprobs_are_kept_as_they_came() -> None:
    (rollout,), policy = play([GOLD])
    for turn, text in zip(rollout.turns, GOLD, strict=True):
        assert list(turn.completion_ids) == [*CODEC.encode(text), END]
        assert turn.logprobs == (policy.logprob,) * len(turn.completion_ids)
        assert not turn.truncated
        assert turn.parsed == FORMAT.parse(text)


def test_observations_follow_each_message_but_the_last() -> None:
    (rollout,), _ = play([GOLD])
    first, second, _, last = rollout.turns
    assert first.observations == (Message("tool", "hi"),)
    assert CODEC.decode(first.observation_ids) == FORMAT.render_following(first.observations)
    assert second.observations == (Message("user", "Echo ho"),)
    assert last.observations == ()
    assert last.observation_ids == ()


def test_rollouts_come_in_the_order_of_the_tasks_however_long_they_take() -> None:
    tasks = [echo_task(["a", "b", "c"]), echo_task(["d"]), echo_task(["e", "f"])]
    rollouts, policy = play([["a", "b", "c"], ["d"], ["x", call("f"), "f"]], tasks)
    assert [rollout.task for rollout in rollouts] == tasks
    assert [len(rollout.turns) for rollout in rollouts] == [3, 1, 3]
    assert [rollout.outcome["success"] for rollout in rollouts] == [1.0, 1.0, 0.0]
    assert [policy.contexts[row] for row in range(3)] == [sequence(r) for r in rollouts]


def test_a_truncated_message_is_closed_by_the_environment() -> None:
    sampling = Sampling(0.0, max_new_tokens=5, seed=0)
    (rollout,), policy = play([["hello there", "ho"]], sampling=sampling)
    cut, _ = rollout.turns
    assert cut.truncated
    assert cut.text == "hello"
    assert CODEC.decode(cut.completion_ids) == "hello"
    assert CODEC.decode(cut.observation_ids) == "<|im_end|>" + FORMAT.render_following(
        [Message("user", "Echo ho")]
    )
    assert policy.contexts[0] == sequence(rollout)


def test_another_stop_token_ends_the_message_and_stays_in_the_context() -> None:
    (rollout,), _ = play([["hi<|endoftext|>", "ho"]])
    first, second = rollout.turns
    assert first.text == "hi"
    assert first.completion_ids[-1] == CODEC.id_of("<|endoftext|>")
    assert not first.truncated
    assert first.observation_ids[0] == END
    assert second.completion_ids[-1] == END
    assert rollout.outcome["success"] == 1.0


def test_an_empty_message_is_a_message() -> None:
    (rollout,), _ = play([["", "ho"]])
    assert rollout.turns[0].text == ""
    assert rollout.turns[0].completion_ids == (END,)
    assert rollout.outcome["success"] == 0.0


def test_the_limit_of_messages_ends_an_episode_without_an_outcome() -> None:
    (rollout,), _ = play([[call("x")] * 9], max_messages=3)
    assert rollout.stop_reason == "max_messages"
    assert len(rollout.turns) == 3
    assert rollout.outcome == {}
    assert rollout.error is None
    assert rollout.turns[-1].observation_ids == ()


def test_the_last_allowed_message_may_still_succeed() -> None:
    (rollout,), _ = play([GOLD], max_messages=4)
    assert rollout.outcome == {"success": 1.0}


def test_the_limit_of_tokens_is_never_exceeded() -> None:
    task = echo_task(["a"])
    prompt = len(play([["a"]], [task])[0][0].prompt_ids)
    for room in (10, 100, 200, 300, 500):
        sampling = Sampling(0.0, max_new_tokens=90, seed=0)
        (rollout,), _ = play(
            [[call("x")] * 20], [task], sampling=sampling, max_tokens=prompt + room
        )
        assert rollout.stop_reason == "max_tokens"
        assert rollout.outcome == {}
        assert len(sequence(rollout)) <= prompt + room
        assert rollout.turns[-1:] == () or rollout.turns[-1].observation_ids == ()
        assert bool(rollout.turns) == (room >= 90)


def test_a_long_observation_is_cut_to_its_limit_and_says_so() -> None:
    (rollout,), policy = play([[call("x" * 60), "hi", "ho"]], max_observation_tokens=90)
    observed = rollout.turns[0]
    (message,) = observed.observations
    assert message.content.endswith(TRUNCATED)
    assert message.content.startswith("xx")
    assert 80 <= len(observed.observation_ids) <= 90
    assert CODEC.decode(observed.observation_ids) == FORMAT.render_following([message])
    assert policy.contexts[0] == sequence(rollout)


def test_the_longest_of_several_results_is_cut_first() -> None:
    both = call("x" * 100) + "\n" + call("short")
    (rollout,), _ = play([[both, "hi", "ho"]], max_observation_tokens=140)
    long, short = rollout.turns[0].observations
    assert long.content.endswith(TRUNCATED)
    assert short.content == "short"


def test_an_observation_whose_frame_alone_is_too_long_stays_whole() -> None:
    (rollout,), _ = play([[call("x" * 50), "hi", "ho"]], max_observation_tokens=3)
    assert rollout.turns[0].observations == (Message("tool", TRUNCATED),)
    assert len(rollout.turns) == 3


def test_an_environment_that_breaks_ends_its_own_episode_only() -> None:
    rollouts, _ = play([[call("x", name="boom")], ["hi", "ho"]], [TASK, TASK])
    broken, healthy = rollouts
    assert broken.error == "RuntimeError: the environment broke"
    assert broken.stop_reason == "error"
    assert broken.outcome == {}
    assert len(broken.turns) == 1
    assert healthy.outcome == {"success": 1.0}


def test_an_environment_that_cannot_start_gives_a_rollout_without_turns() -> None:
    odd = Task(id="odd", category="echo", tools=(), prompt=TASK.prompt, gold=(), target={})
    rollouts, _ = play([["hi"], ["hi", "ho"]], [odd, TASK])
    assert rollouts[0].error == "KeyError: 'words'"
    assert rollouts[0].turns == ()
    assert rollouts[1].outcome == {"success": 1.0}


@dataclass
class FaultyPolicy:
    def session(self, sampling: Sampling) -> FaultyPolicy:
        return self

    def generate(self, appended: Mapping[int, Sequence[int]]) -> Mapping[int, Generation]:
        raise RuntimeError("a bug")

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return []


def test_errors_outside_the_environment_propagate() -> None:
    policy: Policy = FaultyPolicy()
    with pytest.raises(RuntimeError, match="a bug"):
        run_episodes([TASK], policy, FORMAT, EchoEnvironment, CODEC.encode, CODEC.decode, GREEDY)


def test_no_tasks_give_no_rollouts() -> None:
    assert play([["hi"]], [])[0] == []


@pytest.mark.parametrize("limit", ["max_messages", "max_tokens", "max_observation_tokens"])
def test_limits_below_one_are_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match=f"{limit} is 0"):
        play([["hi"]], **{limit: 0})


def test_a_tokenizer_without_the_end_token_is_refused() -> None:
    plain = ByteCodec(specials=())
    with pytest.raises(ModelError, match="10 tokens"):
        run_episodes(
            [TASK], ScriptedPolicy([["hi"]]), FORMAT, EchoEnvironment, plain.encode, plain.decode,
            GREEDY,
        )  # fmt: skip


def test_gold_is_executed_and_gives_the_same_tokens_as_a_policy_that_says_it() -> None:
    expert = replay_gold(TASK, FORMAT, EchoEnvironment, CODEC.encode)
    (rollout,), _ = play([GOLD])
    assert expert.source == "expert"
    assert expert.outcome == {"success": 1.0}
    assert sequence(expert) == sequence(rollout)
    assert [turn.text for turn in expert.turns] == GOLD
    assert all(set(turn.logprobs) == {0.0} for turn in expert.turns)


def test_gold_that_stops_too_soon_or_breaks_the_environment_is_told() -> None:
    short = Task(**{**fields(TASK), "gold": TASK.gold[:3]})
    assert replay_gold(short, FORMAT, EchoEnvironment, CODEC.encode).stop_reason == "gold_exhausted"
    boom = Task(**{**fields(TASK), "gold": (Message("assistant", "", (ToolCall("boom", {}),)),)})
    assert replay_gold(boom, FORMAT, EchoEnvironment, CODEC.encode).error == (
        "RuntimeError: the environment broke"
    )


def test_gold_keeps_to_the_same_limits() -> None:
    cut = replay_gold(TASK, FORMAT, EchoEnvironment, CODEC.encode, max_messages=2)
    assert cut.stop_reason == "max_messages"
    whole = sequence(replay_gold(TASK, FORMAT, EchoEnvironment, CODEC.encode))
    for max_tokens in (len(whole) - 1, len(whole) - 200):
        cut = replay_gold(TASK, FORMAT, EchoEnvironment, CODEC.encode, max_tokens=max_tokens)
        assert cut.stop_reason == "max_tokens"
        assert len(sequence(cut)) <= max_tokens


def fields(task: Task) -> dict[str, object]:
    return {name: getattr(task, name) for name in Task.__dataclass_fields__}


def test_the_echo_world_is_an_environment() -> None:
    world: Environment = EchoEnvironment()
    assert world.reset(TASK) == TASK.prompt
    step = world.step(Parsed("hi", (), 0, ()))
    assert step == Step((Message("user", "Echo ho"),))
