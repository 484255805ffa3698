"""Gold calls: where they are due, where name and arguments stand, and who knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from toolrl_box.capability.gold import Accuracy, call_spans, covering, due_calls, teacher_forced
from toolrl_box.envs.pocket import PocketEnv
from toolrl_box.errors import DataError
from toolrl_box.formats import ALL_FORMATS, FORMATS
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.testing import ByteCodec, echo_task
from toolrl_box.types import Message, Task, ToolCall, ToolFormat

every_tool_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
ARGUMENTS = {"city": "Oslo", "days": 3, "q": "Oslo", "deep": [1, {"a": None}], "Q": "Z<b>Q"}


def calling(name: str, arguments: dict[str, Any], *more: ToolCall) -> Message:
    return Message("assistant", "Look.", (ToolCall(name, arguments), *more))


@every_tool_format
def test_name_keys_and_values_are_found_in_any_format(fmt: ToolFormat) -> None:
    message = calling("get_weather", ARGUMENTS, ToolCall("Oslo", {"city": "Q"}))
    text = fmt.render_message(message)
    names, arguments = call_spans(message, 0, fmt)
    assert [text[a:b] for a, b in names] == ["get_weather"]
    parts = [text[a:b] for a, b in arguments]
    assert parts[0::2] == list(ARGUMENTS)
    assert parts[1::2][:3] == ["Oslo", "3", "Oslo"]
    assert parts[7].startswith("[1, {")
    assert parts[9] == "Z<b>Q"
    assert [a for a, _ in arguments] == sorted(a for a, _ in arguments)
    names, arguments = call_spans(message, 1, fmt)
    assert [text[a:b] for a, b in (*names, *arguments)] == ["Oslo", "city", "Q"]


def test_a_format_whose_tags_are_the_names_has_arguments_only() -> None:
    fmt = ALL_FORMATS["icrl"]
    message = calling("search", {"query": "capital of kalo"})
    names, arguments = call_spans(message, 0, fmt)
    text = fmt.render_message(message)
    assert names == []
    assert [text[a:b] for a, b in arguments] == ["capital of kalo"]


def test_an_empty_value_has_no_place() -> None:
    names, arguments = call_spans(calling("f", {"a": ""}), 0, FORMATS["hermes"])
    assert len(names) == len(arguments) == 1


def test_a_token_that_covers_part_of_a_span_belongs_to_it() -> None:
    codec = ByteCodec(("abc", "de"))
    ids = codec.encode("xabcdey")
    assert covering(ids, (2, 5), codec.decode) == [1, 2]
    assert covering(ids, (4, 4), codec.decode) == []
    assert covering(ids, (6, 7), codec.decode) == [3]


def test_a_call_is_due_where_gold_calls() -> None:
    tasks = [echo_task(["a", "b"]), echo_task(["c"])]
    fmt = FORMATS["hermes"]
    assert due_calls(tasks, fmt) == ((True, False, True, False), (True, False))


def test_an_answer_in_the_in_context_format_is_no_due_search() -> None:
    gold = (
        Message("assistant", "Hm.", (ToolCall("search", {"query": "x"}),)),
        Message("tool", "x is y"),
        Message("assistant", "", (ToolCall("answer", {"answer": "y"}),)),
    )
    task = Task("t", "c", (), (Message("user", "x?"),), gold)
    assert due_calls([task], ALL_FORMATS["icrl"]) == ((True, False),)


def test_tasks_without_a_gold_call_are_refused() -> None:
    task = Task("t", "c", (), (Message("user", "Hi"),), (Message("assistant", "Hello"),))
    with pytest.raises(DataError, match="the 1 tasks hold no tool call"):
        due_calls([task], FORMATS["hermes"])


class Knowing(HFPolicy):
    """Knows every token of the gold dialogues except those it is told to miss."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, missed: set[tuple[int, int]]) -> None:
        self.tokenizer = tokenizer
        self.missed = missed

    def most_likely(self, sequences: Sequence[Sequence[int]]) -> list[list[bool]]:
        return [
            [(row, i) not in self.missed for i in range(len(ids))]
            for row, ids in enumerate(sequences)
        ]


@every_tool_format
def test_only_names_and_arguments_count(
    fmt: ToolFormat, pocket_tokenizer: PreTrainedTokenizerBase
) -> None:
    tasks = PocketEnv().tasks("heldout", 8, 0, ["base"])
    knowing = Knowing(pocket_tokenizer, set())
    gold = teacher_forced(tasks, fmt, knowing)
    calls = sum(len(message.tool_calls) for task in tasks for message in task.gold)
    assert gold == Accuracy(calls, 1.0, 1.0, 1.0)

    less = (calls - 1) / calls
    ids = dialogue_to_sample(tasks[0], fmt, knowing.encode).token_ids
    first = next(m for m in tasks[0].gold if m.tool_calls).tool_calls[0]
    structure = {i for i, token in enumerate(ids) if knowing.decode([token]) in fmt.control_tokens}
    assert len(structure) > 4
    knowing.missed = {(0, i) for i in structure}
    assert teacher_forced(tasks, fmt, knowing) == gold

    prompt = dialogue_to_sample(tasks[0], fmt, knowing.encode).prompt_length
    at = next(i for i in range(prompt, len(ids)) if knowing.decode([ids[i]]).strip() == first.name)
    knowing.missed = {(0, at)}
    assert teacher_forced(tasks, fmt, knowing) == Accuracy(calls, less, 1.0, less)

    value = str(next(iter(first.arguments.values())))
    pieces = [knowing.decode([token]).strip() for token in ids]
    at = next(i for i in range(at + 1, len(ids)) if pieces[i] and value.startswith(pieces[i]))
    knowing.missed = {(0, at)}
    assert teacher_forced(tasks, fmt, knowing) == Accuracy(calls, 1.0, less, less)
