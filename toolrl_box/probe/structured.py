"""The structural state of a message whose calls stand apart from its text, as in OpenAI's API.

Input: the text, what a dialect reads in it, and the calls as the log has them: a name, and
arguments as JSON text or as values. Output: a ``Finding`` with the kinds of ``probe.states``; its
span is in :func:`structured_text`, the text and then one line ``name(arguments)`` per call.

The server that made the calls has parsed the model's tokens, so defects of mark-up that it
swallowed cannot be seen; what it left behind in the text can. Empty arguments are ``{}``, as
servers write them for tools without parameters.

Left out: identifiers of calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolrl_box.formats import read_json_object
from toolrl_box.probe.policies import DEFAULT, Policies
from toolrl_box.probe.schemas import follows_schema
from toolrl_box.probe.states import KINDS, SAME_CALLS, classify
from toolrl_box.types import Finding, Parsed, ToolSpec


@dataclass(frozen=True, slots=True)
class StructuredCall:
    """A call as a log has it. ``name`` is empty when the log has none; ``arguments`` are JSON text
    or values."""

    name: str
    arguments: str | Mapping[str, Any]


def _line(call: StructuredCall) -> str:
    given = call.arguments
    if not isinstance(given, str):
        given = json.dumps(dict(given), ensure_ascii=False, default=str)
    return f"{call.name}({given})"


def structured_text(content: str, calls: Sequence[StructuredCall]) -> str:
    """The message as one text: its content, then a line for each call."""
    return "\n".join((*((content,) if content else ()), *map(_line, calls)))


def _spans(content: str, calls: Sequence[StructuredCall]) -> list[tuple[int, int]]:
    position = len(content) + 1 if content else 0
    spans: list[tuple[int, int]] = []
    for call in calls:
        end = position + len(_line(call))
        spans.append((position, end))
        position = end + 1
    return spans


def _finding(kind: str, start: int, end: int) -> Finding:
    return Finding(KINDS[kind], kind, start, end)


def _judge_call(
    call: StructuredCall,
    span: tuple[int, int],
    tools: Mapping[str, ToolSpec],
) -> Finding | None:
    start, end = span
    inside = start + len(call.name) + 1
    arguments: Mapping[str, Any] | None
    if not isinstance(call.arguments, str):
        arguments = call.arguments
    else:
        arguments = read_json_object(call.arguments) if call.arguments.strip() else {}
    if arguments is None or not call.name:
        return _finding("bad_json", inside if call.name else start, end)
    if not tools:
        return None
    if call.name not in tools:
        return _finding("unknown_tool", start, start + len(call.name))
    if not follows_schema(tools[call.name], arguments):
        return _finding("schema_violation", start, end)
    return None


def classify_structured(
    content: str | None,
    calls: Sequence[StructuredCall],
    parsed: Parsed,
    *,
    tools: Sequence[ToolSpec] = (),
    truncated: bool = False,
    control_tokens: Sequence[str] = (),
    policies: Policies = DEFAULT,
) -> Finding:
    """The structural state of one message; spans are in ``structured_text(content, calls)``.

    ``parsed`` is what the log's dialect reads in ``content or ""``. Without calls it is
    :func:`probe.states.classify`; a defect in the text goes before one in the calls.

    Raises DataError when a tool's parameters are no JSON schema.
    """
    content = content or ""
    judged = classify(
        content,
        parsed,
        tools=tools,
        truncated=truncated and not calls,
        control_tokens=control_tokens,
        policies=policies,
    )
    if not calls:
        return judged
    whole = len(structured_text(content, calls))
    if KINDS[judged.kind] not in ("healthy_call", "healthy_response") and judged.kind != "empty":
        return judged
    lines = [_line(call) for call in calls]
    if len(calls) >= SAME_CALLS and len(set(lines)) == 1:
        return _finding("loop", whole - sum(map(len, lines)) - len(lines) + 1, whole)
    by_name = {tool.name: tool for tool in tools}
    spans = _spans(content, calls)
    for index, (call, span) in enumerate(zip(calls, spans, strict=True)):
        wrong = _judge_call(call, span, by_name)
        if wrong is not None and wrong.kind == "bad_json" and truncated and index == len(calls) - 1:
            return _finding("truncated", *span)
        if wrong is not None:
            return wrong
    if policies.text_before_call == "flag" and parsed.text:
        return _finding("text_before_call", 0, len(content))
    if policies.several_calls == "flag" and len(calls) > 1:
        return _finding("several_calls", *spans[1])
    return _finding("call", 0, whole)
