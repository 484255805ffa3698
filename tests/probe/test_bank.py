"""Every token of a gold message stands in a slot with the right name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest

from toolrl_box.envs.pocket import CATEGORIES, make_tasks
from toolrl_box.errors import DataError
from toolrl_box.formats import FORMATS
from toolrl_box.probe.bank import SLOTS, Bank, build_bank, control_ids, name_slots
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.testing import ByteCodec
from toolrl_box.types import Message, Task, ToolCall, ToolFormat

Encode = Callable[[str], list[int]]
TASKS = make_tasks("bank", 12, 0, CATEGORIES)
CALL = Message("assistant", "", (ToolCall("book_room", {"city": "oslo", "day": "friday"}),))
every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)


def named(message: Message, fmt: ToolFormat, encode: Encode) -> list[tuple[int, str]]:
    """Token and slot of a message with its end token."""
    ids = [*encode(fmt.render_message(message)), *encode("<|im_end|>")]
    return list(
        zip(ids, name_slots(ids, encode(fmt.call_start), encode(fmt.call_end)), strict=True)
    )


def shape(slots: list[str]) -> list[str]:
    """Slots in order, without repetitions."""
    return [slot for slot, _ in groupby(slots)]


@every_format
def test_a_call_message_goes_from_its_opening_tag_to_its_end(
    fmt: ToolFormat, encode: Encode
) -> None:
    ids, slots = zip(*named(CALL, fmt, encode), strict=True)
    assert shape(list(slots)) == [
        *("start_call_due", "after_open", "inside_call", "closing_call", "after_call")
    ]
    assert slots.count("after_open") == slots.count("after_call") == 1
    opening, closing = encode(fmt.call_start), encode(fmt.call_end)
    assert [i for i, s in zip(ids, slots, strict=True) if s == "start_call_due"] == opening
    assert [i for i, s in zip(ids, slots, strict=True) if s == "closing_call"] == closing
    assert [ids[slots.index("after_call")]] == encode("<|im_end|>")


@every_format
def test_a_text_message_has_a_start_an_inside_and_an_end(fmt: ToolFormat, encode: Encode) -> None:
    slots = [slot for _, slot in named(Message("assistant", "That is done."), fmt, encode)]
    assert shape(slots) == ["start_text_due", "inside_text", "end_text"]
    assert slots.count("start_text_due") == slots.count("end_text") == 1


@every_format
def test_short_messages_have_as_many_slots_as_tokens(fmt: ToolFormat, encode: Encode) -> None:
    assert [s for _, s in named(Message("assistant", ""), fmt, encode)] == ["end_text"]
    assert [s for _, s in named(Message("assistant", "!"), fmt, encode)] == [
        *("start_text_due", "end_text")
    ]


@every_format
def test_text_before_a_call_is_text(fmt: ToolFormat, encode: Encode) -> None:
    message = Message("assistant", "Done.", CALL.tool_calls)
    slots = shape([slot for _, slot in named(message, fmt, encode)])
    assert slots[:3] == ["start_text_due", "inside_text", "start_call_due"]
    assert slots[-2:] == ["closing_call", "after_call"]


@every_format
def test_tags_of_several_tokens_are_slots_of_several_tokens(fmt: ToolFormat) -> None:
    codec = ByteCodec(specials=("<|im_end|>",))
    ids, slots = zip(*named(CALL, fmt, codec.encode), strict=True)
    assert shape(list(slots))[0] == "start_call_due"
    assert slots.count("start_call_due") == len(fmt.call_start)
    assert slots.count("closing_call") == len(fmt.call_end)
    assert codec.decode(ids[: len(fmt.call_start)]) == fmt.call_start


def test_a_closing_tag_that_is_fused_with_what_precedes_it_is_its_last_token() -> None:
    opening, fused, end = 1, 9, 2
    assert name_slots([opening, 5, 6, fused, end], [opening], [7]) == [
        *("start_call_due", "after_open", "inside_call", "closing_call", "after_call")
    ]


@every_format
def test_the_bank_scores_every_token_that_an_assistant_wrote(
    fmt: ToolFormat, encode: Encode
) -> None:
    bank = build_bank(TASKS, fmt, encode)
    samples = [dialogue_to_sample(task, fmt, encode) for task in TASKS]
    assert bank.sequences == tuple(sample.token_ids for sample in samples)
    learned = {
        (row, column)
        for row, sample in enumerate(samples)
        for column, own in enumerate(sample.loss_mask)
        if own
    }
    positions = list(zip(bank.rows_N, bank.columns_N, strict=True))
    assert len(positions) == len(set(positions)) == len(bank.slots_N)
    assert set(positions) == learned
    assert {SLOTS[slot] for slot in bank.slots_N} == set(SLOTS)


def at(bank: Bank, slot: str) -> list[int]:
    """The right tokens of a slot."""
    places = zip(bank.rows_N, bank.columns_N, bank.slots_N, strict=True)
    return [bank.sequences[r][c] for r, c, s in places if SLOTS[s] == slot]


@every_format
def test_the_slots_count_the_messages_of_gold(fmt: ToolFormat, encode: Encode) -> None:
    bank = build_bank(TASKS, fmt, encode)
    spoken = [m for task in TASKS for m in task.gold if m.role == "assistant"]
    calls = [message for message in spoken if message.tool_calls]
    assert at(bank, "start_call_due") == encode(fmt.call_start) * len(calls)
    assert at(bank, "closing_call") == encode(fmt.call_end) * len(calls)
    assert at(bank, "after_call") == encode("<|im_end|>") * len(calls)
    assert at(bank, "end_text") == encode("<|im_end|>") * (len(spoken) - len(calls))
    assert len(at(bank, "start_text_due")) == len(spoken) - len(calls)


@every_format
def test_control_pieces_that_are_one_token_are_followed(fmt: ToolFormat, encode: Encode) -> None:
    bank = build_bank(TASKS, fmt, encode)
    assert {fmt.call_start, fmt.call_end, "<|im_end|>"} <= bank.control.keys()
    assert list(bank.control) == [p for p in fmt.control_tokens if p in bank.control]
    assert all(encode(piece) == [token] for piece, token in bank.control.items())


def test_a_control_piece_that_the_tokenizer_splits_is_left_out() -> None:
    codec = ByteCodec()
    pieces = FORMATS["hermes"].control_tokens
    assert set(control_ids(pieces, codec.encode)) == {
        *("<tool_call>", "</tool_call>", "<|im_end|>", "<|im_start|>")
    }


def test_a_bank_without_any_call_is_refused(encode: Encode) -> None:
    mute = Task("t", "base", (), TASKS[0].prompt, (Message("assistant", "Done."),))
    with pytest.raises(DataError, match="the probe's bank holds no tool call"):
        build_bank([mute], FORMATS["hermes"], encode)


def test_the_first_calls_are_opening_messages_up_to_the_end_of_their_call(encode: Encode) -> None:
    bank = build_bank(TASKS, FORMATS["hermes"], encode)
    begins = [row for row, task in enumerate(TASKS) if task.gold[0].tool_calls]
    assert 0 < len(begins) < len(TASKS)
    assert [bank.rows_N[call.start] for call in bank.first_calls] == begins
    for call, row in zip(bank.first_calls, begins, strict=True):
        columns = bank.columns_N[call]
        ids = [bank.sequences[row][column] for column in columns]
        assert ids == encode(FORMATS["hermes"].render_message(TASKS[row].gold[0]))
