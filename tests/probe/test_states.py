"""A message's structural state, and the span of text that proves it."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.errors import ConfigError, DataError
from toolrl_box.formats import FORMATS
from toolrl_box.probe.policies import Policies
from toolrl_box.probe.schemas import follows_schema
from toolrl_box.probe.states import KINDS, classify
from toolrl_box.types import STATES, Finding, Message, ToolCall, ToolSpec

WEATHER = ToolSpec(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "hours": {"type": "array", "items": {"type": "integer"}},
            "height": {"type": "number", "minimum": 0},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
NESTED = ToolSpec(
    "book",
    {"type": "object", "properties": {"seats": {"type": "array", "items": {"type": "integer"}}}},
)
TOOLS = (WEATHER, NESTED)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def state_of(
    text: str,
    *,
    fmt: str = "hermes",
    tools: tuple[ToolSpec, ...] = TOOLS,
    truncated: bool = False,
) -> Finding:
    return classify(
        text,
        FORMATS[fmt].parse(text),
        tools=tools,
        truncated=truncated,
        control_tokens=FORMATS[fmt].control_tokens,
    )


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("content", ["", "Let me see [1]:"])
def test_a_closed_call_that_follows_the_schema_is_healthy(fmt: str, content: str) -> None:
    calls = (ToolCall("get_weather", {"city": "Oslo", "days": 2}), ToolCall("book", {"seats": [1]}))
    text = FORMATS[fmt].render_message(Message("assistant", content, calls))
    assert state_of(text, fmt=fmt) == Finding("healthy_call", "call", 0, len(text))
    assert state_of(text, fmt=fmt, truncated=True).kind == "call"


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "It rains in Oslo.",
        "42",
        "(Nothing to add.)",
        "Use a < b > c, or f(x) [see 3].",
        "Ho ho ho!",
        "Day 1: rain\nDay 2: rain\nDay 3: rain\nDay 4: sun",
        "| a | b |\n|---|---|\n| 1 | 2 |\n" + "-" * 80,
    ],
)
def test_natural_language_is_a_healthy_response(fmt: str, text: str) -> None:
    assert state_of(text, fmt=fmt) == Finding("healthy_response", "response", 0, len(text))


# format, text, kind, the span that proves it (None: all of the text)
UNHEALTHY = [
    ("hermes", "", "empty", None),
    ("hermes", " \n", "empty", None),
    ("hermes", "...!", "punctuation_only", None),
    ("hermes", "<tool_call>", "bare_call_tag", None),
    ("xml", "<tool_call>\n<function=", "bare_call_tag", None),
    ("pythonic", "[", "bare_call_tag", None),
    ("hermes", '{"name": "', "bare_call_tag", None),
    ("hermes", "<tool_call></tool_call>", "bare_call_tag", None),
    ("hermes", "<tool_call>" * 3, "repeated_fragments", None),
    ("hermes", "Sure. " + "</tool_call>\n" * 3 + "x", "repeated_fragments", "</tool_call>\n" * 2),
    ("hermes", "I am sure that " + "it is so and " * 9, "loop", None),
    ("hermes", "Hi <tool_call> " + "yes no " * 40, "loop", None),
    ("hermes", CALL * 8, "loop", None),
    ("hermes", 'Hi <tool_call>{"name": "f"', "unclosed_call", '<tool_call>{"name": "f"'),
    ("hermes", "It rains.</tool_call>", "stray_tag", "</tool_call>"),
    ("xml", "It rains.</parameter>", "stray_tag", "</parameter>"),
    ("hermes", "It rains.<|im_start|>assistant", "role_debris", "<|im_start|>"),
    ("hermes", '{"name": "f", "arguments": {}}', "untagged_call", '{"name": "f", "arguments"'),
    ("pythonic", 'get_weather(city="Oslo")', "untagged_call", "get_weather(city="),
    ("hermes", "<tool_call>{city: Oslo}</tool_call>", "bad_json", "{city: Oslo}"),
    ("hermes", CALL.replace("get_", "got_"), "unknown_tool", "got_weather"),
    ("pythonic", 'Ok [get_weather(city="x"), f(y=1)]', "unknown_tool", "f"),
    ("pythonic", "[get_weather(city=3)]", "schema_violation", "get_weather(city=3)]"),
    ("hermes", CALL + "\nThere you go.", "debris_after_call", "\nThere you go."),
    ("hermes", "Hi " + CALL + " and " + CALL, "debris_after_call", None),
    ("pythonic", '[get_weather(city="x")] done', "debris_after_call", " done"),
    ("hermes", "assistant\n", "role_word_only", "assistant"),
    (
        "hermes",
        "It rains.\n\nUser: And what about Rome?",
        "speaks_as_user",
        "User: And what about Rome?",
    ),
    ("hermes", CALL + "\n<tool_response>\n7", "fabricated_result", "<tool_response>\n7"),
    ("pythonic", '[get_weather(city="x")]\n{"a": 1}', "fabricated_result", '{"a": 1}'),
    ("hermes", "It rains. </think>Yes.</think>", "stray_tag", "</think>"),
    ("hermes", "<think>It rains.", "stray_tag", "<think>"),
    ("hermes", "<think>It rains.</think>\n", "empty", "<think>It rains.</think>"),
    ("hermes", 'Action: f\nAction Input: {"a": 1}', "untagged_call", None),
]


@pytest.mark.parametrize(("fmt", "text", "kind", "proof"), UNHEALTHY)
def test_each_defect_has_its_kind_and_its_proof(
    fmt: str, text: str, kind: str, proof: str | None
) -> None:
    finding = state_of(text, fmt=fmt)
    assert (finding.kind, finding.state) == (kind, KINDS[kind])
    if proof is not None:
        assert proof in text[finding.start : finding.end]
        assert finding.end - finding.start <= len(proof) + len("</tool_call>")


def test_the_token_limit_leaves_text_and_open_calls_truncated() -> None:
    assert state_of("It rains in", truncated=True).kind == "truncated"
    assert state_of('Hi <tool_call>{"name": "f"', truncated=True).kind == "truncated"
    assert state_of("la la " * 30, truncated=True).kind == "loop"


def test_without_tools_names_and_arguments_are_not_checked() -> None:
    assert state_of(CALL.replace("get_", "got_"), tools=()).kind == "call"


@pytest.mark.parametrize(
    ("arguments", "good"),
    [
        ({"city": "Oslo"}, True),
        ({"city": "Oslo", "days": 2, "unit": "C"}, True),
        ({"city": "Oslo", "days": 2.0}, True),  # JSON Schema counts 2.0 as an integer
        ({"city": "Oslo", "days": True}, False),
        ({"city": "Oslo", "unit": "K"}, False),
        ({"city": None}, False),
        ({"days": 2}, False),
        ({"city": "Oslo", "country": "NO"}, False),
        ({"city": "Oslo", "hours": [6, 18]}, True),
        ({"city": "Oslo", "hours": [6, "18"]}, False),
        ({"city": "Oslo", "hours": 6}, False),
        ({"city": "Oslo", "height": 0}, True),
        ({"city": "Oslo", "height": 2.5}, True),
        ({"city": "Oslo", "height": -1}, False),
        ({"city": "Oslo", "height": True}, False),
    ],
)
def test_the_quick_way_agrees_with_the_json_schema(
    arguments: dict[str, object], good: bool
) -> None:
    assert follows_schema(WEATHER, arguments) is good
    slow = ToolSpec("slow", {**WEATHER.parameters, "minProperties": 0})
    assert follows_schema(slow, arguments) is good


@pytest.mark.parametrize(
    "schema", [{"type": "dict"}, {"$ref": "https://example.org/x"}, {"$ref": "#"}]
)
def test_a_tool_whose_schema_is_none_is_an_error_that_names_it(schema: dict[str, object]) -> None:
    with pytest.raises(DataError, match="tool 'odd'"):
        follows_schema(ToolSpec("odd", schema), {})


POLICIES = [
    ("text_before_call", "Let me see.\n" + CALL, "text_before_call"),
    ("text_after_call", CALL + "\nThere you go.", "debris_after_call"),
    ("several_calls", CALL + "\n" + CALL, "several_calls"),
    ("thinking", "<think>Hm.</think>\nIt rains.", "thinking"),
    ("thinking", "<think>Hm.</think>\n" + CALL, "thinking"),
]


@pytest.mark.parametrize(("policy", "text", "kind"), POLICIES)
def test_a_matter_of_taste_is_decided_by_its_policy(policy: str, text: str, kind: str) -> None:
    def kind_under(**policies: Any) -> str:
        parsed = FORMATS["hermes"].parse(text)
        return classify(text, parsed, tools=TOOLS, policies=Policies(**policies)).kind

    healthy = "call" if CALL in text else "response"
    assert kind_under(**{policy: "flag"}) == kind
    assert kind_under(**{policy: "allow"}) == healthy
    others = dict.fromkeys(("text_before_call", "text_after_call", "several_calls"), "allow")
    assert kind_under(**others | {policy: "flag"}) == kind


def test_an_unknown_policy_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="thinking = 'maybe'; one of: allow, flag"):
        Policies(thinking=cast("Any", "maybe"))


def test_no_policy_heals_a_broken_call() -> None:
    text = "Hm. <tool_call>{"
    everything = Policies("allow", "allow", "allow", "allow")
    parsed = FORMATS["hermes"].parse(text)
    assert classify(text, parsed, policies=everything).kind == "unclosed_call"


SCRAPS = [CALL, "<tool_call>", "</tool_call>", "<|im_end|>", "word ", "[", "[f(x=1)]", '"', "\n"]


@pytest.mark.parametrize("fmt", FORMATS)
@given(text=st.lists(st.sampled_from(SCRAPS), max_size=10).map("".join), truncated=st.booleans())
def test_any_text_has_a_state_and_a_span_within_it(fmt: str, text: str, truncated: bool) -> None:
    finding = state_of(text, fmt=fmt, truncated=truncated)
    assert finding.state in STATES
    assert finding.state == KINDS[finding.kind]
    assert 0 <= finding.start <= finding.end <= len(text)
    assert finding.start < finding.end or text == ""


def test_a_healthy_message_costs_microseconds() -> None:
    parsed = FORMATS["hermes"].parse(CALL)
    state_of(CALL)
    start = time.perf_counter()
    for _ in range(1000):
        classify(CALL, parsed, tools=TOOLS)
    # About 5 µs on an idle core; a validator rebuilt for each message would take a millisecond.
    assert time.perf_counter() - start < 0.2
