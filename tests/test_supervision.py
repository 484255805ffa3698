"""The analyst finds what went wrong by asking the environment, and says so without mark-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from toolrl_box.envs.pocket import CATEGORIES, PocketEnv, make_tasks
from toolrl_box.errors import DataError
from toolrl_box.formats import FORMATS
from toolrl_box.rollout import replay_gold
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.supervision import (
    Analyst,
    Dialogue,
    Said,
    diagnose,
    judge_prompt,
    judged,
    quote,
    write_call,
)
from toolrl_box.testing import ByteCodec, EchoEnvironment, echo_task
from toolrl_box.types import Message, Task, ToolCall

HERMES = FORMATS["hermes"]
TASK = echo_task(["one", "two"])
USER = [Said("user", "Echo one"), Said("user", "Echo two")]


def call(word: str, name: str = "echo") -> Said:
    message = Message("assistant", "", (ToolCall(name, {"text": word}),))
    return Said("assistant", HERMES.render_message(message))


def say(text: str) -> Said:
    return Said("assistant", text)


def tool(text: str) -> Said:
    return Said("tool", text)


def step_of(*log: Said, task: Task = TASK) -> tuple[int, int] | None:
    found = diagnose(task, log, HERMES, EchoEnvironment)
    return None if found is None else (found.step, found.turn)


def test_a_solved_episode_has_nothing_wrong() -> None:
    assert step_of(USER[0], call("one"), tool("one"), say("one"), USER[1], say("two")) is None


def test_the_first_wrong_step_is_the_one_that_gold_cannot_mend() -> None:
    assert step_of(USER[0], say("none"), USER[1], say("two")) == (1, 0)
    assert step_of(USER[0], say("one"), USER[1], call("x"), tool("x"), say("no")) == (2, 1)
    assert step_of(USER[0], call("x"), tool("x"), say("one"), USER[1], say("no")) == (3, 1)


def test_an_episode_that_was_cut_off_is_wrong_in_its_last_step() -> None:
    assert step_of(USER[0], call("one"), tool("one"), call("one"), tool("one")) == (2, 0)


def test_one_that_breaks_its_environment_is_wrong_there() -> None:
    assert step_of(USER[0], call("one"), tool("one"), call("x", "boom")) == (2, 0)


def test_an_episode_without_a_message_says_nothing() -> None:
    assert step_of(USER[0]) is None


def test_gold_that_does_not_succeed_is_named() -> None:
    task = replace(TASK, gold=(Message("assistant", "no"),))
    with pytest.raises(DataError, match=f"gold dialogue of task '{TASK.id}' does not succeed"):
        step_of(USER[0], say("none"), task=task)


# --- the pocket world -----------------------------------------------------------------------

POOL = make_tasks("train", 60, 0)


def spoilt(task: Task, encode: Callable[[str], list[int]], at: int, text: str) -> list[Said]:
    """Gold, but assistant message ``at`` says ``text``; what follows is the environment's."""
    messages = [m for m in task.gold if m.role == "assistant"]
    texts = [HERMES.render_message(m) for m in messages]
    texts[at] = text
    log = [Said(m.role, m.content) for m in task.prompt if m.role != "system"]
    episode = PocketEnv()()
    episode.reset(task)
    for said in texts:
        step = episode.step(HERMES.parse(said))
        log.append(Said("assistant", said))
        log += [Said(m.role, m.content) for m in step.messages]
        if step.done:
            break
    return log


@pytest.mark.parametrize("task", make_tasks("heldout", 24, 0, CATEGORIES), ids=lambda t: t.id)
def test_whatever_call_of_gold_is_left_out_is_found(
    task: Task, encode: Callable[[str], list[int]]
) -> None:
    assert replay_gold(task, HERMES, PocketEnv(), encode).outcome["success"] == 1.0
    messages = [m for m in task.gold if m.role == "assistant"]
    analyst = Analyst(HERMES, PocketEnv(), POOL)
    for at, message in enumerate(messages):
        if not message.tool_calls:
            continue
        log = spoilt(task, encode, at, "Done.")
        found = diagnose(task, log, HERMES, PocketEnv())
        assert found is not None
        assert found.step == at + 1
        assert found.missing[0] == message.tool_calls[0]
        what, near = analyst(task, log)
        assert f'Step {at + 1} is wrong: "Done.".' in what.answer
        assert write_call(message.tool_calls[0]) in what.answer
        assert not any(f"right is {call.name}(" in near.answer for call in found.missing)


def test_wrong_arguments_are_blamed_and_not_the_reply_that_hid_them(
    encode: Callable[[str], list[int]],
) -> None:
    task = next(t for t in POOL if t.gold[0].tool_calls and t.gold[0].tool_calls[0].arguments)
    right = task.gold[0].tool_calls[0]
    wrong = ToolCall(right.name, dict.fromkeys(right.arguments, "nobody"))
    log = [Said(m.role, m.content) for m in task.prompt[1:]]
    log += [Said("assistant", HERMES.render_message(Message("assistant", "", (wrong,))))]
    log += [tool('{"error": "no such"}'), say("Done."), Said("user", "more"), say("Done.")]
    (what, _) = Analyst(HERMES, PocketEnv(), POOL)(task, log)
    assert what.answer.startswith(f"Step 1 is wrong: {write_call(wrong)}.")
    assert '{"error": "no such"}' in what.answer


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_texts_hold_no_mark_up_and_are_short(
    fmt: object, encode: Callable[[str], list[int]]
) -> None:
    analyst = Analyst(HERMES, PocketEnv(), POOL)
    junk = '<tool_call><|im_end|>{"name": <function=x>' * 3
    lengths = []
    for task in POOL:
        for dialogue in analyst(task, spoilt(task, encode, 0, junk)):
            assert not set("<>") & set(dialogue.question + dialogue.answer)
            lengths.append(len(encode(dialogue.answer)))
    assert lengths
    assert max(lengths) <= 160
    assert sum(lengths) / len(lengths) <= 90


def test_only_the_answer_is_learned(encode: Callable[[str], list[int]]) -> None:
    codec = ByteCodec()
    task = Dialogue("What?", "That.").task("reflection-1-0-0-0", TASK)
    sample = dialogue_to_sample(task, HERMES, codec.encode)
    pairs = zip(sample.token_ids, sample.loss_mask, strict=True)
    assert codec.decode([token for token, learned in pairs if learned]) == "That.<|im_end|>"
    assert codec.decode(sample.token_ids) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nThat.<|im_end|>"
    )


# --- the judge's part -----------------------------------------------------------------------

LOG: Sequence[Said] = (USER[0], call("x"), tool("x"), say("<tool_call>"))


def test_a_judge_is_told_tools_log_and_right_calls() -> None:
    system, user = judge_prompt(TASK, LOG, HERMES)
    assert (system["role"], user["role"]) == ("system", "user")
    for part in ("echo(text)", '1. echo(text="x")', '2. "[tool_call]"', '1. echo(text="one")'):
        assert part in user["content"]


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("one", ["one"]),
        ("one\n---\ntwo", ["one", "two"]),
        ("---\none\n -----\n\ntwo\n---\nthree", ["one", "two"]),
        ("<tool_call>x</tool_call>", ["[tool_call]x[/tool_call]"]),
    ],
)
def test_a_judges_answer_is_at_most_two_texts(answer: str, texts: list[str]) -> None:
    assert [dialogue.answer for dialogue in judged(answer, LOG, HERMES)] == texts


def test_a_quotation_is_one_short_line() -> None:
    assert quote("a\n <b> c") == "a [b] c"
    assert len(quote("x" * 500)) == 160
