"""What a message does that breaks out of its frame."""

from __future__ import annotations

import pytest

from toolrl_box.frames import foreign_turn, leading_thought, only_roles, opened_turn


@pytest.mark.parametrize(
    ("text", "voice", "begins"),
    [
        ("Done.\n\nUser: Can you do more?", "user", "User"),
        ("Done.\n\n**User:** Can you do more?", "user", "User"),
        ("Done.\n\n### User:\nCan you do more?", "user", "User"),
        ("Done.\nHuman: more please", "user", "Human"),
        ("好的。\n\n用户:再来一次", "user", "用户"),
        ("Done.\nuser\nCan you do more?", "user", "user"),
        ("Done.user\n\nCan you do more?", "user", "user"),
        ("assistant\nHello.", "frame", "assistant"),
        ("Done.\n\nAssistant: Hello to you all.", "frame", "Assistant"),
        ("Done.\ntool\n{}", "tool", "tool"),
        ('Observation: {"a": 1}', "tool", "Observation"),
        ('Tool response:\n{"a": 1}\nSo it is 1.', "tool", "Tool response"),
    ],
)
def test_a_turn_is_told_without_tags(text: str, voice: str, begins: str) -> None:
    turn = foreign_turn(text, 0, len(text))
    assert turn is not None
    assert turn.voice == voice
    assert text[turn.start :].startswith(begins)


@pytest.mark.parametrize(
    "text",
    [
        "Account:\nUser: alice\nRole: admin",
        "A script, as you wished:\n\nUser: Where is my parcel?\nAssistant: In Oslo.",
        "The roles are\nsystem\nuser\nassistant",
        "The user\nand the assistant\ntalk.",
        "Observation: the left sensor is warmer.",
        'Observation: {"a": 1} is how an entry looks.',
        "Result: 7",
    ],
)
def test_lists_scripts_and_reports_are_no_turns(text: str) -> None:
    assert foreign_turn(text, 0, len(text)) is None


@pytest.mark.parametrize("text", ['{"a": 1}', "Result: 7", "Observation: rain", "[Tool output] 7"])
def test_after_a_call_less_is_needed_to_tell_a_result(text: str) -> None:
    turn = foreign_turn(text, 0, len(text), after_call=True)
    assert turn is not None
    assert turn.voice == "tool"


@pytest.mark.parametrize(
    ("text", "voice"),
    [
        ("<|im_end|>\n<|im_start|>user\nMore?", "user"),
        ("<|im_end|>\n<|im_start|>user\n<tool_response>\n{}7\n", "tool"),
        ("<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nMore?", "user"),
        ("<|start_header_id|>ipython<|end_header_id|>\n\n7", "tool"),
        ("</s>[INST] More?", "user"),
        ("[TOOL_RESULTS] 7", "tool"),
        ("<｜User｜>More?", "user"),
        ("<start_of_turn>user\nMore?", "user"),
        ("<|im_start|>user\n", None),
        ("<tool_response></tool_response>", None),
        ("<|im_end|> More?", None),
    ],
)
def test_a_frame_opens_a_turn_when_something_is_said_in_it(text: str, voice: str | None) -> None:
    turn = opened_turn(text, 0)
    assert (None if turn is None else turn.voice) == voice


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think>Hm.</think> Hi", "<think>Hm.</think>"),
        ("\n<thinking>Hm.</thinking>", "<thinking>Hm.</thinking>"),
        ("[THINK]Hm.[/THINK]Hi", "[THINK]Hm.[/THINK]"),
        ("Hm.</think> Hi", "Hm.</think>"),
        ("<think>Hm.", None),
        ("Hi <think>Hm.</think>", None),
        ("I think so.", None),
    ],
)
def test_a_thought_opens_the_message_or_is_none(text: str, thought: str | None) -> None:
    span = leading_thought(text)
    assert (None if span is None else text[slice(*span)]) == thought


def test_roles_alone_are_told_in_linear_time() -> None:
    assert only_roles("assistant\n\nassistant:\n")
    assert not only_roles("assistant manager")
    assert not only_roles("assistant  " * 50_000 + "x")
