"""Every dialect's call syntax, read with its special tokens and without them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrl_box.dialects import DIALECTS, dialect, without_stop
from toolrl_box.errors import ConfigError
from toolrl_box.probe.states import KINDS, classify
from toolrl_box.types import Parsed, ToolCall, ToolSpec

OSLO = ToolCall("get_weather", {"city": "Oslo"})
NOW = ToolCall("get_time", {})
DEEPSEEK = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
DEEPSEEK_31 = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}'
    "<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
HARMONY = (
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Oslo"}<|call|>'
)
ANTHROPIC = (
    '<function_calls>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n'
    "</invoke>\n</function_calls>"
)
# dialect, stripped, text, calls
CALLS = [
    ("hermes", False, '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>', [NOW]),
    ("hermes", True, '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n', [OSLO]),
    ("xml", False, "<tool_call>\n<function=get_time>\n</function>\n</tool_call>", [NOW]),
    ("llama3", False, '{"name": "get_weather", "parameters": {"city": "Oslo"}}', [OSLO]),
    (
        "llama3",
        False,
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}; '
        '{"name": "get_time", "parameters": {}}',
        [OSLO, NOW],
    ),
    ("llama3", False, '<function=get_weather>{"city": "Oslo"}</function>', [OSLO]),
    ("llama3", False, '<|python_tag|>get_weather.call(city="Oslo")', [OSLO]),
    ("llama3", True, 'get_weather.call(city="Oslo")', [OSLO]),
    (
        "llama3",
        False,
        "<|python_tag|>print(1)",
        [ToolCall("code_interpreter", {"code": "print(1)"})],
    ),
    (
        "mistral",
        False,
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}, '
        '{"name": "get_time", "arguments": {}, "id": "a1"}]',
        [OSLO, NOW],
    ),
    (
        "mistral",
        False,
        '[TOOL_CALLS]get_weather[CALL_ID]a1[ARGS]{"city": "Oslo"}[TOOL_CALLS]get_time{}',
        [OSLO, NOW],
    ),
    ("mistral", True, '[{"name": "get_time", "arguments": {}}]', [NOW]),
    ("mistral", True, 'get_weather{"city": "Oslo"}\nget_time{}', [OSLO, NOW]),
    ("deepseek", False, DEEPSEEK, [OSLO]),
    ("deepseek", False, DEEPSEEK_31, [OSLO, NOW]),
    ("deepseek", True, 'functionget_weather\n```json\n{"city": "Oslo"}\n```', [OSLO]),
    ("deepseek", True, 'get_weather{"city": "Oslo"}', [OSLO]),
    ("harmony", False, HARMONY, [OSLO]),
    ("harmony", False, HARMONY.removesuffix("<|call|>"), [OSLO]),
    ("harmony", True, 'commentary to=functions.get_weather json{"city": "Oslo"}', [OSLO]),
    ("anthropic", False, ANTHROPIC, [OSLO]),
    (
        "anthropic",
        False,
        re.sub(r"<(/?)", r"<\1antml:", ANTHROPIC),
        [OSLO],
    ),
    ("pythonic", False, "[get_weather(city='Oslo'), get_time()]", [OSLO, NOW]),
    ("icrl", False, "<search>Oslo</search>", [ToolCall("search", {"query": "Oslo"})]),
]


@pytest.mark.parametrize(("name", "stripped", "text", "calls"), CALLS)
@pytest.mark.parametrize("thought", ["", "<think>\nA call { is due.\n</think>\n", "Due.</think>\n"])
def test_a_call_is_read_with_or_without_a_thought_before_it(
    name: str, stripped: bool, text: str, calls: list[ToolCall], thought: str
) -> None:
    if thought and name in ("harmony", "icrl"):
        thought = ""  # these have thoughts of their own
    read = dialect(name, stripped=stripped)
    parsed = read.parse(thought + text)
    assert list(parsed.calls) == calls
    assert parsed.errors == ()
    assert parsed.text == ""
    start, end = parsed.spans[0][0], parsed.spans[-1][1]
    assert (thought + text)[start:end] == text.strip()
    finding = classify(thought + text, parsed, control_tokens=read.control_tokens)
    assert finding.kind == "call"


@pytest.mark.parametrize(("name", "stripped", "text", "calls"), CALLS)
def test_text_before_a_call_is_text_and_after_it_debris(
    name: str, stripped: bool, text: str, calls: list[ToolCall]
) -> None:
    read = dialect(name, stripped=stripped)
    after = f"{text}\nThere you go."
    if "<|python_tag|>print" in text or text == HARMONY.removesuffix("<|call|>"):
        after = text  # code, and a body without its end, go on to the end
    finding = classify(after, read.parse(after), control_tokens=read.control_tokens)
    assert finding.kind == ("call" if after == text else "debris_after_call")


BARE = [
    ("hermes", '{"name": "get_time", "arguments": {}}'),
    ("mistral", '[{"name": "get_time", "arguments": {}}]'),
    ("mistral", 'get_weather{"city": "Oslo"}'),
    ("deepseek", '{"name": "get_time", "arguments": {}}'),
    ("harmony", '{"name": "get_time", "arguments": {}}'),
    ("llama3", 'It is: {"name": "get_time", "parameters": {}}'),
    ("anthropic", '<invoke name="get_time">\n</invoke>'),
    ("pythonic", "get_time(zone='UTC')"),
    ("plain", '{"name": "get_time", "arguments": {}}'),
]


@pytest.mark.parametrize(("name", "text"), BARE)
def test_a_bare_call_is_untagged_when_the_log_keeps_its_tags(name: str, text: str) -> None:
    read = DIALECTS[name]
    parsed = read.parse(text)
    assert parsed.calls == ()
    assert classify(text, parsed, control_tokens=read.control_tokens).kind == "untagged_call"


BROKEN = [
    ("deepseek", DEEPSEEK.removesuffix("<｜tool▁calls▁end｜>"), "unclosed_call"),
    ("deepseek", DEEPSEEK.removeprefix("<｜tool▁calls▁begin｜>"), "untagged_call"),
    ("deepseek", DEEPSEEK.replace("```", ""), "bad_json"),
    ("deepseek", "Hi <｜tool▁calls▁end｜>", "stray_tag"),
    ("harmony", HARMONY.replace('"}', ""), "bad_json"),
    ("harmony", HARMONY.replace('"}<|call|>', ""), "unclosed_call"),
    ("harmony", "<|channel|>final<|message|>Hi <|channel|> there", "stray_tag"),
    ("harmony", "<|channel|>musing<|message|>Hi there", "stray_tag"),
    ("anthropic", ANTHROPIC.replace("</invoke>\n", ""), "bad_json"),
    ("anthropic", ANTHROPIC.replace("</parameter>", ""), "bad_json"),
    ("anthropic", ANTHROPIC.replace('name="get_weather"', ""), "bad_json"),
    ("anthropic", ANTHROPIC.removesuffix("</function_calls>"), "unclosed_call"),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": ', "unclosed_call"),
    ("mistral", "[TOOL_CALLS] let me see", "unclosed_call"),
    ("mistral", '[TOOL_CALLS] [{"name": 3, "arguments": {}}]', "bad_json"),
    ("llama3", '{"name": "f", "parameters": 3}', "bad_json"),
    ("llama3", "<|python_tag|>f.call(1)", "bad_json"),
    ("llama3", '<|python_tag|>{"name": "f"', "unclosed_call"),
    ("llama3", "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|> Hi", "role_debris"),
]


@pytest.mark.parametrize(("name", "text", "kind"), BROKEN)
def test_a_broken_message_has_its_kind(name: str, text: str, kind: str) -> None:
    read = DIALECTS[name]
    finding = classify(text, read.parse(text), control_tokens=read.control_tokens)
    assert finding.kind == kind


def test_an_xml_value_without_a_type_fits_number_and_text() -> None:
    text = ANTHROPIC.replace("Oslo", "2026")
    assert DIALECTS["anthropic"].parse(text).calls[0].arguments == {"city": 2026}
    for kind, expected in (
        ("string", "call"),
        ("integer", "call"),
        ("boolean", "schema_violation"),
    ):
        tool = ToolSpec("get_weather", {"type": "object", "properties": {"city": {"type": kind}}})
        finding = classify(
            text,
            DIALECTS["anthropic"].parse(text),
            tools=[tool],
            control_tokens=DIALECTS["anthropic"].control_tokens,
        )
        assert finding.kind == expected


def test_an_unknown_dialect_is_named_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="unknown tool format 'mistal'; did you mean 'mistral'"):
        dialect("mistal")


def test_stop_and_padding_tokens_are_cut_at_the_end_only() -> None:
    assert without_stop("Hi<|im_end|><|endoftext|><|endoftext|>") == "Hi"
    assert without_stop("<|im_end|>Hi") == "<|im_end|>Hi"
    assert without_stop("Hi") == "Hi"


SCRAPS = [
    *(text for _, _, text, _ in CALLS),
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|eot_id|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁calls▁end｜>", "```json\n", "```", "<|channel|>", "<|message|>", "<|start|>"),
    *("analysis", "final", "assistant", " to=functions.f", "<|call|>", "<|end|>", "user\n"),
    *("<function_calls>", "</function_calls>", '<invoke name="f">', "</invoke>"),
    *('<parameter name="a">', "</parameter>", "<function=f>", "</function>", "<think>"),
    *("</think>", "[THINK]", '{"name": "f", ', '"parameters": {', "{", "}", "[", "]", '"', "\\"),
    *("f.call(", "f{", "\n", " ", "word ", "User: ", "Observation: {", "\u200b", "é"),
]
MESSAGES = st.one_of(
    st.lists(st.sampled_from(SCRAPS), max_size=12).map("".join),
    st.text(max_size=60),
)


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=60, deadline=None)
@given(text=MESSAGES, stripped=st.booleans(), truncated=st.booleans())
def test_any_text_is_read_and_every_span_lies_in_it(
    name: str, text: str, stripped: bool, truncated: bool
) -> None:
    read = dialect(name, stripped=stripped)
    parsed = read.parse(text)
    check_spans(text, parsed)
    finding = classify(text, parsed, truncated=truncated, control_tokens=read.control_tokens)
    assert finding.state == KINDS[finding.kind]
    assert 0 <= finding.start <= finding.end <= len(text)
    assert finding.start < finding.end or text == ""


def check_spans(text: str, parsed: Parsed) -> None:
    for error in parsed.errors:
        assert 0 <= error.start <= error.end <= len(text)
    assert [e.start for e in parsed.errors] == sorted(e.start for e in parsed.errors)
    end = 0
    for span in sorted((*parsed.spans, *parsed.asides)):
        assert end <= span[0] < span[1] <= len(text)
        end = span[1]
    assert bool(parsed.calls) <= bool(parsed.spans)
    assert parsed.blocks >= len(parsed.spans) or parsed.tags


HOSTILE = [
    '<tool_call>{"name": "f", "arguments": {',
    '{"name": "f", "arguments": {"a": "',
    '[TOOL_CALLS]f[ARGS]{"a":',
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    "<|channel|>analysis<|message|>",
    "assistantcommentary to=functions.f json{",
    '<function_calls><invoke name="f">',
    "[f(",
    '\\"',
    "\nuser\n",
    "\n\nUser: ",
    "\nObservation: {",
    "assistant  ",
    "<think>",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear_in_hostile_text(unit: str) -> None:
    def seconds(name: str, size: int) -> float:
        text = unit * (size // len(unit))
        read = dialect(name, stripped=True)
        start = time.process_time()
        classify(text, read.parse(text), control_tokens=read.control_tokens)
        return time.process_time() - start

    for name in DIALECTS:
        # Quadratic code would need minutes for a megabyte, so the larger text is only tried
        # when the smaller one was quick.
        small = seconds(name, 20_000)
        assert small < 1.0, name
        if small > 0.02:
            assert seconds(name, 80_000) < 10 * small, name
