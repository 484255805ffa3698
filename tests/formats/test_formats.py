"""Every format writes dialogues, reads calls back exactly and reports each defect where it is."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from toolrl_box.errors import DataError
from toolrl_box.formats import (
    FORMATS,
    INSTRUCTIONS,
    TOOLS_HEADER,
    Hermes,
    Pythonic,
    Xml,
    to_chat,
    to_tools,
)
from toolrl_box.formats._chatml import ChatML
from toolrl_box.types import Message, ToolCall, ToolFormat, ToolSpec

HERMES, PYTHONIC, XML = Hermes(), Pythonic(), Xml()
ALL: tuple[ChatML, ...] = (HERMES, PYTHONIC, XML)
every_format = pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)

FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "<tool_response>", "<|im_end|>", "<|im_start|>", "tool_call>"),
    *("<function=f>", "</function>", "<parameter=p>", "</parameter>", "<tools>", "<", ">", "|"),
    *('"', "'", "\\", "\n", " ", "\t", "{", "}", "[", "]", "(", ")", ")]", "[f(", "=", ",", ":"),
    *("true", "None", "12", "-1.5e3", "NaN", "1_0", "\\u003c", "\u2028", "é", "世", "😀", "\x00"),
)
nasty_text = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=8).map(
    "".join
)
json_values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), nasty_text),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(nasty_text, inner, max_size=3)
    ),
    max_leaves=8,
)
argument_names = st.one_of(st.sampled_from(["city", "class", "x"]), nasty_text)
tool_calls = st.builds(
    ToolCall,
    name=st.sampled_from(["get_weather", "math.add", "a-b"]),
    arguments=st.dictionaries(argument_names, json_values, max_size=3),
)
callers = st.builds(
    Message,
    role=st.just("assistant"),
    content=st.sampled_from(["", "Let me look.", "Zwei Zeilen,\nalso Text."]),
    tool_calls=st.lists(tool_calls, min_size=1, max_size=3).map(tuple),
)
SCRAPS = (
    *FRAGMENTS,
    '{"name": "f", "arguments": {"x": ',
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    "<tool_call>\n<function=f>\n</function>\n</tool_call>",
    '[f(x="a")]',
    "words",
)
scraps = st.lists(st.sampled_from(SCRAPS), max_size=12).map("".join)

TOOLS = (
    ToolSpec("get_weather", {"type": "object", "properties": {}}, "Wie ist das Wetter? <b>"),
    ToolSpec("ping", {"type": "object"}),
)
PROMPT = (Message("system", "Be brief."), Message("user", "Weather in Oslo?"))
CALLING = Message("assistant", "Sure.", (ToolCall("get_weather", {"city": "Oslo"}),))
FOLLOWING = (Message("tool", "rain"), Message("tool", "wind"), Message("user", "And?", (), TOOLS))
ANSWER = Message("assistant", "Take an umbrella.")


def test_the_table_names_each_format_by_its_own_name() -> None:
    def conforms(fmt: ToolFormat) -> str:
        return fmt.name

    assert [conforms(fmt) for fmt in FORMATS.values()] == list(FORMATS)
    assert list(INSTRUCTIONS) == list(FORMATS)


def test_hermes_lays_a_dialogue_out_as_qwen_does() -> None:
    assert HERMES.render([*PROMPT, CALLING, *FOLLOWING[:2]], TOOLS[1:], generation_prompt=True) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist "
        "with the user query.\n\nYou are provided with function signatures within <tools></tools> "
        'XML tags:\n<tools>\n{"type": "function", "function": {"name": "ping", "parameters": '
        '{"type": "object"}}}\n</tools>\n\nFor each function call, return a json object with '
        "function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather in Oslo?<|im_end|>\n"
        '<|im_start|>assistant\nSure.\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Oslo"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nwind\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_calls_look_as_each_format_documents() -> None:
    message = Message("assistant", "", (ToolCall("f", {"a": "x", "b": [1, None]}),))
    assert PYTHONIC.render_message(message) == '[f(a="x", b=[1, None])]'
    assert XML.render_message(message) == (
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n<parameter=b>\n[1, null]\n"
        "</parameter>\n</function>\n</tool_call>"
    )


@every_format
def test_tools_stand_between_the_header_and_the_instructions(fmt: ChatML) -> None:
    text = fmt.render(PROMPT, TOOLS)
    assert f"Be brief.{TOOLS_HEADER}{{" in text
    assert f"}}{INSTRUCTIONS[fmt.name]}<|im_end|>" in text


@every_format
def test_a_dialogue_is_its_prompt_messages_and_what_follows_them(fmt: ChatML) -> None:
    pieced = (
        fmt.render(PROMPT, TOOLS, generation_prompt=True)
        + (fmt.render_message(CALLING) + "<|im_end|>" + fmt.render_following(FOLLOWING))
        + (fmt.render_message(ANSWER) + "<|im_end|>" + "\n")
    )
    assert pieced == fmt.render([*PROMPT, CALLING, *FOLLOWING, ANSWER], TOOLS)


@every_format
def test_messages_that_cannot_be_are_refused(fmt: ChatML) -> None:
    with pytest.raises(DataError, match="only assistants call"):
        fmt.render([Message("user", "", (ToolCall("f", {}),))])
    with pytest.raises(DataError, match="only users can"):
        fmt.render([Message("tool", "", (), TOOLS)])
    with pytest.raises(DataError, match="not a user's"):
        fmt.render_message(PROMPT[1])
    with pytest.raises(DataError, match="render_following"):
        fmt.render_following([ANSWER])


def test_a_name_that_is_no_identifier_has_no_pythonic_form() -> None:
    with pytest.raises(DataError, match="'get weather'"):
        PYTHONIC.render_message(Message("assistant", "", (ToolCall("get weather", {}),)))


def by_template(
    fmt: ChatML, messages: Sequence[Message], tools: Sequence[ToolSpec], prompt: bool
) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"x": 0}, "x")))  # type: ignore[no-untyped-call]
    text = tokenizer.apply_chat_template(
        to_chat(messages),
        tools=list(to_tools(tools)) or None,
        chat_template=fmt.chat_template,
        add_generation_prompt=prompt,
        tokenize=False,
    )
    assert isinstance(text, str)
    return text


@every_format
@pytest.mark.parametrize("messages", [PROMPT, PROMPT[1:], (*PROMPT, CALLING, *FOLLOWING, ANSWER)])
@pytest.mark.parametrize("tools", [(), TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_chat_template_renders_the_same_text(
    fmt: ChatML, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...], prompt: bool
) -> None:
    expected = fmt.render(messages, tools, generation_prompt=prompt)
    assert by_template(fmt, messages, tools, prompt) == expected


@every_format
@given(message=callers)
def test_the_chat_template_writes_any_call_the_same(fmt: ChatML, message: Message) -> None:
    assert by_template(fmt, [message], (), False) == fmt.render([message])


@every_format
@given(message=callers)
def test_reading_what_was_written_gives_the_same_calls(fmt: ChatML, message: Message) -> None:
    parsed = fmt.parse(fmt.render_message(message))
    assert parsed.errors == ()
    assert parsed.text == message.content
    # As JSON, because 1 == True == 1.0 in Python.
    written = [(call.name, json.dumps(call.arguments)) for call in message.tool_calls]
    assert [(call.name, json.dumps(call.arguments)) for call in parsed.calls] == written
    assert parsed.blocks == (1 if fmt is PYTHONIC else len(message.tool_calls))


@every_format
@given(text=st.one_of(scraps, nasty_text))
def test_any_text_is_read_and_every_defect_points_into_it(fmt: ChatML, text: str) -> None:
    parsed = fmt.parse(text)
    assert all(0 <= e.start < e.end <= len(text) and e.detail for e in parsed.errors)
    assert list(parsed.errors) == sorted(parsed.errors, key=lambda e: (e.start, e.end))
    assert fmt is PYTHONIC or len(parsed.calls) <= parsed.blocks


@every_format
@given(text=scraps, cuts=st.lists(st.integers(0, 80), max_size=6))
def test_a_message_may_arrive_in_any_chunks(fmt: ChatML, text: str, cuts: list[int]) -> None:
    parser = fmt.parser()
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        parser.feed(text[start:end])
        assert parser.closed == fmt.parse(text[:end]).blocks
    assert parser.finish() == fmt.parse(text)


@every_format
def test_prose_is_text_and_nothing_else(fmt: ChatML) -> None:
    parsed = fmt.parse("  It is [mostly] fine (see below); 3 < 4 and f(x) holds.\n")
    assert (parsed.text, parsed.calls, parsed.blocks, parsed.errors) == (
        "It is [mostly] fine (see below); 3 < 4 and f(x) holds.",
        *((), 0, ()),
    )


HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
# format, text, closed blocks, then each defect with the span that proves it
DEFECTS: list[tuple[ChatML, str, int, list[tuple[str, str]]]] = [
    (HERMES, "<tool_call>", 0, [("unclosed_call", "<tool_call>")]),
    (HERMES, "a </tool_call>", 0, [("stray_close", "</tool_call>")]),
    (HERMES, "<tool_call> </tool_call>", 1, [("empty_call", "<tool_call> </tool_call>")]),
    (HERMES, "<tool_call>{x}</tool_call>", 1, [("bad_json", "{x}")]),
    (HERMES, '<tool_call>{"name": NaN}</tool_call>', 1, [("bad_json", '{"name": NaN}')]),
    (HERMES, '<tool_call>"\\ud800"</tool_call>', 1, [("bad_json", '"\\ud800"')]),
    (HERMES, "<tool_call>1e999</tool_call>", 1, [("bad_json", "1e999")]),
    (HERMES, "<tool_call>[1]</tool_call>", 1, [("not_an_object", "[1]")]),
    (HERMES, '<tool_call>{"name": 3}</tool_call>', 1, [("missing_name", '{"name": 3}')]),
    (HERMES, '<tool_call>{"name": "f"}</tool_call>', 1, [("missing_arguments", '{"name": "f"}')]),
    (
        HERMES,
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        1,
        [("bad_arguments", '{"name": "f", "arguments": "{}"}')],
    ),
    (HERMES, HERMES_CALL.replace("}}", "}}}"), 1, [("trailing_debris", "}\n")]),
    (HERMES, "<tool_call>{" + HERMES_CALL, 1, [("nested_open", "<tool_call>{<tool_call>")]),
    (
        HERMES,
        "<tool_call>{<|im_end|></tool_call>",
        1,
        [("bad_json", "{<|im_end|>"), ("role_debris", "<|im_end|>")],
    ),
    (HERMES, "hi<|im_start|>", 0, [("role_debris", "<|im_start|>")]),
    (HERMES, "hi <tool_call", 0, [("stray_tag", "<tool_call")]),
    (HERMES, "hi tool_call>", 0, [("stray_tag", "tool_call>")]),
    (HERMES, "<tool_response>", 0, [("stray_tag", "<tool_response>")]),
    (
        HERMES,
        'x {"name": "f", "arguments": {}}',
        0,
        [("untagged_call", '{"name": "f", "arguments"')],
    ),
    (PYTHONIC, "[f(", 0, [("unclosed_call", "[f(")]),
    (PYTHONIC, '[f(x="a"', 0, [("unclosed_call", '[f(x="a"')]),
    (PYTHONIC, "[f(x=1) [g()]", 1, [("nested_open", "[f(x=1) [g(")]),
    (PYTHONIC, "[f(1)]", 1, [("bad_arguments", "[f(1)]")]),
    (PYTHONIC, "[f(x=1, x=2)]", 1, [("bad_arguments", "[f(x=1, x=2)]")]),
    (PYTHONIC, '[f(x="a)]', 1, [("bad_syntax", '[f(x="a)]')]),
    (PYTHONIC, "[f(x=g())]", 1, [("bad_syntax", "[f(x=g())]")]),
    (PYTHONIC, "[f(x=1e999)]", 1, [("bad_syntax", "[f(x=1e999)]")]),
    (PYTHONIC, "f(x=1)", 0, [("untagged_call", "f(x=")]),
    (PYTHONIC, "<tool_call>", 0, [("stray_tag", "<tool_call>")]),
    (PYTHONIC, "[f()]<|im_end|>", 1, [("role_debris", "<|im_end|>")]),
    (XML, "<tool_call>\n<function=f>", 0, [("unclosed_call", "<tool_call>\n<function=f>")]),
    (XML, "<function=f>", 0, [("untagged_call", "<function=")]),
    (XML, "<tool_call>f</tool_call>", 1, [("bad_syntax", "f")]),
    (XML, "<tool_call><function=></function></tool_call>", 1, [("missing_name", "<function=>")]),
    (XML, "<tool_call><function=f></tool_call>", 1, [("bad_syntax", "<function=f>")]),
    (XML, XML_CALL.replace("n>\n<", "n>x<"), 1, [("trailing_debris", "x")]),
    (
        XML,
        "<tool_call><function=f><parameter=></parameter></function></tool_call>",
        1,
        [("bad_arguments", "<parameter=></parameter>")],
    ),
    (XML, XML_CALL + "</tool_call>", 1, [("stray_close", "</tool_call>")]),
]


@pytest.mark.parametrize(("fmt", "text", "blocks", "defects"), DEFECTS, ids=lambda x: str(x)[:30])
def test_each_defect_is_named_and_shown(
    fmt: ChatML, text: str, blocks: int, defects: list[tuple[str, str]]
) -> None:
    parsed = fmt.parse(text)
    assert [(e.kind, text[e.start : e.end]) for e in parsed.errors] == defects
    assert parsed.blocks == blocks


def test_a_good_call_survives_a_bad_neighbour() -> None:
    parsed = HERMES.parse("Hm.<tool_call>{</tool_call> so " + HERMES_CALL + " ok")
    assert parsed.calls == (ToolCall("f", {}),)
    assert (parsed.blocks, parsed.text) == (2, "Hm. so  ok")


def test_an_odd_quote_does_not_swallow_the_calls_after_it() -> None:
    broken = '<tool_call>{"name": "f, "arguments": {}}</tool_call> He said "hi". '
    parsed = HERMES.parse(broken + HERMES_CALL)
    assert (parsed.blocks, parsed.calls) == (2, (ToolCall("f", {}),))


def test_python_spellings_that_models_use_are_read() -> None:
    parsed = PYTHONIC.parse("[ f( a='it\\'s \"so\"', b={'k': [True,],}, ), g()\n]")
    assert parsed.calls == (
        ToolCall("f", {"a": 'it\'s "so"', "b": {"k": [True]}}),
        ToolCall("g", {}),
    )
    assert parsed.errors == ()


@every_format
def test_nesting_without_end_is_a_defect_and_no_crash(fmt: ChatML) -> None:
    deep = "[" * 100_000
    for text in (
        f'<tool_call>{{"name": "f", "arguments": {{"x": {deep}</tool_call>',
        f"<tool_call>\n{deep}{']' * 100_000}</tool_call>",
        f"[f(x={deep}{']' * 100_000})]",
    ):
        assert fmt.parse(text).calls == ()


HOSTILE = (
    *("<tool_call>", "</tool_call>", '<tool_call>{"', '<tool_call>\\"', '<tool_call>[","', "<"),
    *(
        '<tool_call>{"a" </tool_call>',
        '<tool_call>{"a":"\\',
        '{"name": "',
        "[a(",
        '[a(x="',
        "[",
        "(",
    ),
    *("[a(x='\"", '[a(x="\\"', ")]", ") ", "[a(x=1)]", "<tool_call><function=a><parameter=b>"),
)


@every_format
@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_the_length_only(fmt: ChatML, unit: str) -> None:
    def seconds(characters: int) -> float:
        text = '[a(x="<tool_call>{"a":"' + unit * (characters // len(unit))
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            fmt.parse(text)
            best = min(best, time.process_time() - start)
        return best

    # Eight times the text: 64 times the work if quadratic. Half of that leaves room for noise.
    assert seconds(64_000) < 32 * seconds(8_000) + 0.05
