"""Rendered dialogues are split as their templates put them together."""

from __future__ import annotations

import pytest

from toolrl_box.diagnose.readers._observations import split_at
from toolrl_box.diagnose.readers._turns import dialogue, ended_fact
from toolrl_box.diagnose.records import LoggedMessage
from toolrl_box.formats import FORMATS
from toolrl_box.types import Message, ToolCall

SYSTEM, ASK, CALL, RESULT, ANSWER = "Be kind.", "Weather?", "[weather()]", "clear", "It is clear."
TURNS = [
    ("system", SYSTEM),
    ("user", ASK),
    ("assistant", CALL),
    ("tool", RESULT),
    ("assistant", ANSWER),
]


def shown(prompt: str, completion: str) -> tuple[list[tuple[str, str]], int]:
    messages, length = dialogue(prompt, completion)
    return [(message.role, message.text) for message in messages], length


def rendered(start: str, end: str, names: dict[str, str]) -> tuple[str, str]:
    """Prompt and completion in a frame of headers, ``{}`` standing for the role. A completion ends
    where the model stopped, without what the template would write next."""
    parts = [start.format(names.get(role, role)) + text + end for role, text in TURNS]
    prompt = "".join(parts[:2]) + start.format(names.get("assistant", "assistant"))
    rest = "".join(parts[2:]).removeprefix(start.format(names.get("assistant", "assistant")))
    return prompt, rest.removesuffix("\n")


FRAMES = {
    "chatml": ("<|im_start|>{}\n", "<|im_end|>\n", {}),
    "llama": ("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", {"tool": "ipython"}),
    "gemma": ("<start_of_turn>{}\n", "<end_of_turn>\n", {"assistant": "model"}),
    "chatml, stripped": ("{}\n", "\n", {}),
    "llama, stripped": ("{}\n\n", "", {"tool": "ipython"}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_dialogue_of_many_turns_is_split_in_every_frame(name: str) -> None:
    assert shown(*rendered(*FRAMES[name])) == (TURNS, 2)


def test_mistrals_frame_has_its_own_marks() -> None:
    prompt = f'<s>[AVAILABLE_TOOLS] [{{"name": "weather"}}][/AVAILABLE_TOOLS][INST] {ASK}[/INST]'
    completion = f"[TOOL_CALLS] {CALL}</s>[TOOL_RESULTS] {RESULT}[/TOOL_RESULTS] {ANSWER}</s>"
    assert shown(prompt, completion) == (
        [
            ("system", '[{"name": "weather"}]'),
            ("user", ASK),
            ("assistant", f"[TOOL_CALLS] {CALL}"),
            ("tool", RESULT),
            ("assistant", f" {ANSWER}"),
        ],
        2,
    )


@pytest.mark.parametrize("name", FORMATS)
def test_what_our_own_formats_render_is_read_back(name: str) -> None:
    form = FORMATS[name]
    call = Message("assistant", "", (ToolCall("weather", {"city": "Rome"}),))
    prompt = form.render([Message("system", SYSTEM), Message("user", ASK)], generation_prompt=True)
    said = form.render_message(call)
    following = form.render_following([Message("tool", RESULT)])
    messages, length = dialogue(prompt, f"{said}<|im_end|>{following}{ANSWER}<|im_end|>")
    assert [message.role for message in messages[length:]] == ["assistant", "user", "assistant"]
    assert messages[length].text == said
    assert messages[-1].text == ANSWER


@pytest.mark.parametrize("name", ["chatml", "llama"])
def test_a_stripped_completion_after_a_marked_prompt_is_split(name: str) -> None:
    prompt, _ = rendered(*FRAMES[name])
    _, completion = rendered(*FRAMES[f"{name}, stripped"])
    assert shown(prompt, completion) == (TURNS, 2)


def test_marks_in_a_completion_whose_prompt_has_none_are_the_models_text() -> None:
    prompt, _ = rendered(*FRAMES["chatml, stripped"])
    leaked = f"{ANSWER}<|im_start|>user\nagain"
    assert shown(prompt, leaked) == ([*TURNS[:2], ("assistant", leaked)], 2)


def test_texts_without_any_frame_are_a_question_and_an_answer() -> None:
    assert shown("2 + 2 =", " 4\n") == ([("user", "2 + 2 ="), ("assistant", " 4\n")], 1)


def test_an_empty_completion_is_an_empty_message() -> None:
    assert shown(f"user\n{ASK}\nassistant\n", "")[0][-1] == ("assistant", "")


def test_an_episode_that_ended_before_the_models_turn_has_no_empty_message() -> None:
    prompt = f"user\n{ASK}\nassistant\n"
    found, length = shown(prompt, f"{CALL}\nuser\n{RESULT}\nassistant\n")
    assert found[length:] == [("assistant", CALL), ("user", RESULT)]


def test_an_opened_thought_in_the_prompt_is_no_message() -> None:
    for opened in ("", "<think>\n", "<think>\n\n</think>\n\n"):
        found, length = shown(f"user\n{ASK}\nassistant\n{opened}", ANSWER)
        assert (found, length) == ([("user", ASK), ("assistant", ANSWER)], 1)


def test_demonstrations_in_the_prompt_stay_in_the_prompt() -> None:
    prompt = f"user\n{ASK}\nassistant\n{CALL}\nuser\n{ASK}\nassistant\n"
    found, length = shown(prompt, ANSWER)
    assert [role for role, _ in found] == ["user", "assistant", "user", "assistant"]
    assert length == 3


def test_blanks_of_a_message_are_kept() -> None:
    prompt = f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
    assert shown(prompt, "  \n{}  \n<|im_end|>")[0][-1] == ("assistant", "  \n{}  \n")


def test_the_word_user_alone_in_a_text_splits_nothing_without_a_frame() -> None:
    assert len(dialogue("Who?", "The roles are\nuser\nand others.")[0]) == 2


def test_an_end_marker_inside_a_message_is_left_in_it() -> None:
    prompt = f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
    said = f"{CALL}<|im_end|> and more"
    assert shown(prompt, said)[0][-1] == ("assistant", said)


def test_padding_after_the_end_is_no_part_of_a_message() -> None:
    prompt = f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
    for end in (
        "<|im_end|>",
        "<|im_end|>\n",
        "<|im_end|><|endoftext|><|endoftext|>",
        "<|endoftext|>",
    ):
        assert shown(prompt, f"{ANSWER}{end}")[0][-1] == ("assistant", ANSWER)
    assert shown(prompt, f"{ANSWER}<|im_end|><|im_end|>")[0][-1][1] == f"{ANSWER}<|im_end|>"


def test_whether_the_last_message_was_ended_is_told_where_the_text_shows_it() -> None:
    prompt = f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
    assert ended_fact(prompt, "a<|im_end|>\n") == {"ended_with_eos": 1.0}
    assert ended_fact(prompt, "a<|endoftext|>") == {"ended_with_eos": 1.0}
    turns = "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc"
    assert ended_fact(prompt, turns) == {"ended_with_eos": 0.0}
    assert ended_fact(prompt, "a") == {}
    assert ended_fact("user\nq\nassistant\n", "a") == {}


def test_returned_texts_split_a_response_that_has_no_headers() -> None:
    assert list(split_at("code<out>1</out>done", ["<out>1</out>", "not there"])) == [
        LoggedMessage("assistant", "code"),
        LoggedMessage("tool", "<out>1</out>"),
        LoggedMessage("assistant", "done"),
    ]
    assert list(split_at("", [])) == [LoggedMessage("assistant", "")]
