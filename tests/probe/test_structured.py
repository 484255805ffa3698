"""Messages whose calls stand apart from their text."""

from __future__ import annotations

import pytest

from toolrl_box.dialects import DIALECTS
from toolrl_box.probe.policies import Policies
from toolrl_box.probe.states import KINDS
from toolrl_box.probe.structured import StructuredCall, classify_structured, structured_text
from toolrl_box.types import Finding, ToolSpec

WEATHER = ToolSpec(
    "get_weather",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
OSLO = StructuredCall("get_weather", '{"city": "Oslo"}')


def judged(
    content: str | None,
    *calls: StructuredCall,
    truncated: bool = False,
    policies: Policies | None = None,
) -> tuple[Finding, str]:
    finding = classify_structured(
        content,
        calls,
        DIALECTS["plain"].parse(content or ""),
        tools=[WEATHER],
        truncated=truncated,
        policies=policies or Policies(),
    )
    text = structured_text(content or "", calls)
    assert finding.state == KINDS[finding.kind]
    return finding, text[finding.start : finding.end]


@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_calls_with_or_without_text_are_healthy(content: str | None) -> None:
    finding, proof = judged(content, OSLO, StructuredCall("get_weather", {"city": "Rome"}))
    assert finding.kind == "call"
    assert proof.endswith('get_weather({"city": "Rome"})')


@pytest.mark.parametrize(
    ("call", "kind", "proof"),
    [
        (StructuredCall("get_weather", '{"city": '), "bad_json", '{"city": )'),
        (StructuredCall("get_weather", '"Oslo"'), "bad_json", '"Oslo")'),
        (StructuredCall("get_weather", "{} {}"), "bad_json", "{} {})"),
        (StructuredCall("", '{"city": "Oslo"}'), "bad_json", '({"city": "Oslo"})'),
        (StructuredCall("weather", "{}"), "unknown_tool", "weather"),
        (StructuredCall("get_weather", ""), "schema_violation", "get_weather()"),
        (
            StructuredCall("get_weather", {"city": 7}),
            "schema_violation",
            'get_weather({"city": 7})',
        ),
    ],
)
def test_each_defect_of_a_call_has_its_kind_and_its_proof(
    call: StructuredCall, kind: str, proof: str
) -> None:
    finding, found = judged("One moment.", OSLO, call)
    assert (finding.kind, found) == (kind, proof)


def test_empty_arguments_are_an_empty_object() -> None:
    no_tools = classify_structured("", [StructuredCall("ping", "")], DIALECTS["plain"].parse(""))
    assert no_tools.kind == "call"


def test_arguments_that_the_token_limit_cut_are_truncated() -> None:
    call = StructuredCall("get_weather", '{"city": "Os')
    assert judged("", call, truncated=True)[0].kind == "truncated"
    assert judged("", call, OSLO, truncated=True)[0].kind == "bad_json"
    assert judged("", OSLO, truncated=True)[0].kind == "call"


def test_debris_that_the_server_left_in_the_text_is_found() -> None:
    finding, proof = judged("Ok </tool_call>", OSLO)
    assert (finding.kind, proof) == ("stray_tag", "</tool_call>")


def test_many_equal_calls_are_a_loop() -> None:
    finding, proof = judged("Hm.", *[OSLO] * 8)
    assert finding.kind == "loop"
    assert proof.startswith("get_weather(")
    assert judged("Hm.", *[OSLO] * 7)[0].kind == "call"


def test_without_calls_it_is_a_plain_message() -> None:
    assert judged("It rains.")[0].kind == "response"
    assert judged(None)[0].kind == "empty"


def test_policies_hold_here_too() -> None:
    flagged = Policies(text_before_call="flag", several_calls="flag")
    assert judged("Hm.", OSLO, policies=flagged)[0].kind == "text_before_call"
    finding, proof = judged(
        "", OSLO, StructuredCall("get_weather", '{"city": "Rome"}'), policies=flagged
    )
    assert (finding.kind, proof) == ("several_calls", 'get_weather({"city": "Rome"})')
