"""Which dialect a log is in, from its texts alone."""

from __future__ import annotations

import itertools

import pytest

from toolrl_box.dialects import DIALECTS, detect
from toolrl_box.dialects.detection import SAMPLE

PROSE = ["It rains in Oslo.", "Which city?", "[1] and [2] say so.", "{}", ""]
LOGS = {
    "hermes": ['<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'],
    "xml": ["<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"],
    "llama3": ['<|python_tag|>{"name": "f", "parameters": {}}'],
    "mistral": ['[TOOL_CALLS] [{"name": "f", "arguments": {}}]'],
    "deepseek": ["<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"],
    "harmony": ["<|channel|>analysis<|message|>Hm.<|end|>", "<|channel|>final<|message|>Hi"],
    "anthropic": ['<function_calls>\n<invoke name="f">\n</invoke>\n</function_calls>'],
    "pythonic": ["[f(a=1)]"],
    "icrl": ["<think>Hm</think><search>f</search>"],
}
STRIPPED = {
    "hermes": ['Ok\n{"name": "f", "arguments": {}}'],
    "llama3": ['{"name": "f", "parameters": {"a": 1}}', "search.call(query='x')"],
    "mistral": ['[{"name": "f", "arguments": {}}]', 'f{"a": 1}'],
    "deepseek": ['functionf\n```json\n{"a": 1}\n```'],
    "harmony": ["analysisHm.assistantfinalHi", "commentary to=functions.f json{}"],
}


@pytest.mark.parametrize("name", LOGS)
def test_a_dialect_is_told_by_its_tags(name: str) -> None:
    found = detect(PROSE + LOGS[name])
    assert (found.name, found.stripped) == (name, False)
    assert found.evidence[name] == len(LOGS[name])
    assert found.messages == len(PROSE) + len(LOGS[name])
    assert found.dialect == DIALECTS[name]


@pytest.mark.parametrize("name", STRIPPED)
def test_bare_calls_tell_a_dialect_whose_tokens_were_dropped(name: str) -> None:
    found = detect(PROSE + STRIPPED[name])
    assert (found.name, found.stripped) == (name, True)
    assert found.evidence == {name: len(STRIPPED[name])}
    assert found.dialect.stripped


def test_one_tag_outweighs_many_bare_calls() -> None:
    """A policy that loses its tags is no log that drops them."""
    found = detect(STRIPPED["hermes"] * 50 + LOGS["hermes"])
    assert (found.name, found.stripped) == ("hermes", False)


def test_most_messages_decide_and_the_table_decides_ties() -> None:
    assert detect(LOGS["mistral"] * 3 + LOGS["hermes"]).name == "mistral"
    for order in itertools.permutations([*LOGS["mistral"], *LOGS["hermes"], *LOGS["icrl"]]):
        assert detect(order).name == "hermes"


@pytest.mark.parametrize("texts", [[], PROSE])
def test_a_log_without_calls_is_plain(texts: list[str]) -> None:
    found = detect(texts)
    assert (found.name, found.stripped, dict(found.evidence)) == ("plain", False, {})


def test_bare_calls_beside_structured_ones_are_debris() -> None:
    assert detect(STRIPPED["hermes"], structured_calls=True).name == "plain"
    assert detect(LOGS["hermes"], structured_calls=True).name == "hermes"


def test_only_a_bounded_sample_is_read() -> None:
    found = detect(itertools.repeat("Hello."))
    assert found.messages == SAMPLE
