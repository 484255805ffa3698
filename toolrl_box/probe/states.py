"""Sorts an assistant message into one of four structural states, with the span that proves it.

Input: the message's text, what the tool format read in it, and optionally the tools. Output: a
``Finding``. The states follow the collapse study that this package reproduces:

    healthy_call       well-formed, follows the tool's schema, closed, text only before it
    healthy_response   natural language without tool debris
    text_pollution     tags incomplete or misplaced in text, or a call that breaks its contract
    collapsed          degenerate: empty, only control pieces or punctuation, or a loop

A closed, well-formed call to an unknown tool or against the schema is by that definition not
healthy, and it is not degenerate: it counts as ``text_pollution`` under a kind of its own, so
that a study may count it apart. So does a message that the token limit cut (``truncated``).

Kinds: ``call``, ``response``; ``unclosed_call``, ``stray_tag``, ``role_debris``,
``untagged_call``, ``bad_json`` (any unreadable closed block), ``unknown_tool``,
``schema_violation``, ``debris_after_call``, ``truncated``; ``empty``, ``punctuation_only``,
``bare_call_tag`` (nothing but control pieces, as in ``<tool_call><|im_end|>``),
``repeated_fragments``, ``loop``.

Left out: whether a call is *right*, which is the reward's business, and any model: structure only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema
import referencing
import referencing.exceptions

from toolrl_box.errors import DataError
from toolrl_box.types import Finding, Parsed, ParseError, State, ToolCall, ToolSpec

KINDS: Mapping[str, State] = {
    "call": "healthy_call",
    "response": "healthy_response",
    "unclosed_call": "text_pollution",
    "stray_tag": "text_pollution",
    "role_debris": "text_pollution",
    "untagged_call": "text_pollution",
    "bad_json": "text_pollution",
    "unknown_tool": "text_pollution",
    "schema_violation": "text_pollution",
    "debris_after_call": "text_pollution",
    "truncated": "text_pollution",
    "empty": "collapsed",
    "punctuation_only": "collapsed",
    "bare_call_tag": "collapsed",
    "repeated_fragments": "collapsed",
    "loop": "collapsed",
}
"""Every kind and the one state it belongs to."""

WELL_FORMED = ("unknown_tool", "schema_violation")
"""Defects that leave a message's structure intact: the call is wrong, not broken."""

# How a parser's errors are called here; every error not listed is an unreadable closed block.
_KIND_OF_ERROR = {
    "unclosed_call": "unclosed_call",
    "nested_open": "unclosed_call",
    "stray_close": "stray_tag",
    "stray_tag": "stray_tag",
    "role_debris": "role_debris",
    "untagged_call": "untagged_call",
}

DEFAULT_CONTROL_TOKENS = ("<tool_call>", "</tool_call>", "<|im_end|>", "<|im_start|>")

SAME_CALLS = 8
"""So many calls, all alike, are a loop; a few alike may be meant (roll the dice three times)."""
LOOP_LENGTH = 60
"""Characters that a repetition must fill to count as a loop."""
LOOP_ROUNDS = 4
"""Times that a unit must come in a row to count as a loop."""
SIGN_LOOP_LENGTH = 200
"""The same for units without a letter: rules and tables are drawn with those."""
_PROBE = 24

_WORD = re.compile(r"\w+")
_TAG_RUN = re.compile(r"(<[^<>\s]{1,24}>)(?:\s{0,8}\1){2,}")


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What the control tokens of a format say about it."""

    call_start: str
    call_end: str
    tags: tuple[str, ...]
    words: frozenset[str]


@lru_cache(maxsize=64)
def _pieces(control_tokens: tuple[str, ...]) -> _Pieces:
    tokens = control_tokens or DEFAULT_CONTROL_TOKENS
    words = {word for token in (*tokens, *DEFAULT_CONTROL_TOKENS) for word in _WORD.findall(token)}
    # Tokens like '"' or "[" are control tokens too, but no misplaced ones when prose holds them.
    tags = tuple(token for token in tokens if token[0] == "<" and token[-1] in ">=")
    return _Pieces(tokens[0], tokens[1], tags, frozenset(words))


Check = Callable[[Mapping[str, Any]], bool]

_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_NOTES = {"title", "description", "default", "examples"}


def _plain_plan(schema: Any) -> dict[str, tuple[tuple[type, ...], frozenset[str] | None]] | None:
    """Types and allowed texts per property when the schema says nothing else; otherwise None."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return None
    if not schema.keys() <= _NOTES | {"type", "properties", "required", "additionalProperties"}:
        return None
    plan: dict[str, tuple[tuple[type, ...], frozenset[str] | None]] = {}
    for key, rule in schema.get("properties", {}).items():
        if not isinstance(rule, dict) or not rule.keys() <= _NOTES | {"type", "enum"}:
            return None
        kind = rule.get("type")
        if not isinstance(kind, str) or kind not in _PLAIN_TYPES:
            return None
        allowed = None
        if "enum" in rule:
            if kind != "string":
                return None
            allowed = frozenset(item for item in rule["enum"] if isinstance(item, str))
        plan[key] = (_PLAIN_TYPES[kind], allowed)
    return plan


@lru_cache(maxsize=4096)
def _check(schema_json: str) -> Check:
    schema = json.loads(schema_json)
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    # An empty registry: a "$ref" to elsewhere is an error, never a download.
    full = validator(schema, registry=referencing.Registry())
    plan = _plain_plan(schema)
    if plan is None:
        return full.is_valid
    required = schema.get("required", [])

    # Plain arguments are accepted at once, ten times as fast; all else goes the whole way.
    def check(arguments: Mapping[str, Any]) -> bool:
        for key in required:
            if key not in arguments:
                return False
        for key, value in arguments.items():
            rule = plan.get(key)
            if rule is None or type(value) not in rule[0]:
                return full.is_valid(arguments)
            if rule[1] is not None and value not in rule[1]:
                return False
        return True

    return check


# By identity, as a tool's schema is a plain dict; the tool is kept, so no id is given out twice.
_CHECKS: dict[int, tuple[ToolSpec, Check]] = {}


def follows_schema(tool: ToolSpec, arguments: Mapping[str, Any]) -> bool:
    """Whether ``arguments`` follow the tool's JSON schema (draft 2020-12).

    Raises DataError when the schema itself is none, or refers to something outside itself.
    """
    known = _CHECKS.get(id(tool))
    try:
        if known is None:
            if len(_CHECKS) >= 4096:
                _CHECKS.clear()
            known = _CHECKS[id(tool)] = (tool, _check(json.dumps(dict(tool.parameters))))
        return known[1](arguments)
    except jsonschema.SchemaError as error:
        raise DataError(
            f"the parameters of tool '{tool.name}' are no JSON schema: {error.message}"
        ) from error
    except (referencing.exceptions.Unresolvable, RecursionError) as error:
        raise DataError(
            f"the schema of tool '{tool.name}' has a '$ref' that cannot be resolved: {error}"
        ) from error


def _finding(kind: str, start: int, end: int) -> Finding:
    return Finding(KINDS[kind], kind, start, end)


def _bounds(text: str) -> tuple[int, int]:
    """Where the text without outer white space begins and ends."""
    start = len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def find_loop(text: str) -> tuple[int, int] | None:
    """The span of a loop, or None: the same unit over and over at the end of the text, or a long
    text made of very few words."""
    if len(text) < LOOP_LENGTH:
        return None
    end = len(text.rstrip())
    previous = text.rfind(text[end - _PROBE : end], 0, end - 1)
    if previous >= 0:
        period = end - _PROBE - previous
        unit = text[end - period : end]
        start = end - period
        while start >= period and text.startswith(unit, start - period):
            start -= period
        signs_only = not any(character.isalnum() for character in unit)
        least = SIGN_LOOP_LENGTH if signs_only else LOOP_LENGTH
        if end - start >= max(least, LOOP_ROUNDS * period):
            return start, end
    if len(text) >= 3 * LOOP_LENGTH:
        words = text.split()
        if len(words) >= 40 and 6 * len(set(words)) < len(words):
            return _bounds(text)
    return None


def _only_control(text: str, pieces: _Pieces) -> Finding | None:
    words = _WORD.findall(text)
    if not pieces.words.issuperset(words):
        return None
    repeated = max(Counter(words).values(), default=0) >= 3
    return _finding("repeated_fragments" if repeated else "bare_call_tag", *_bounds(text))


def _named(text: str, calls: Sequence[ToolCall], index: int, pieces: _Pieces) -> tuple[int, int]:
    """The span of the name of call ``index``; all the calls when it is written with escapes."""
    start = max(text.find(pieces.call_start), 0)
    position = start
    for call in calls[: index + 1]:
        position = text.find(call.name, position)
        if position < 0:
            return start, len(text)
        position += len(call.name)
    return position - len(calls[index].name), position


def _judge_calls(text: str, parsed: Parsed, tools: Sequence[ToolSpec], pieces: _Pieces) -> Finding:
    calls = parsed.calls
    if len(calls) >= SAME_CALLS and all(call == calls[0] for call in calls):
        return _finding("loop", *_bounds(text))
    if tools:
        for index, call in enumerate(calls):
            for tool in tools:
                if tool.name == call.name:
                    break
            else:
                return _finding("unknown_tool", *_named(text, calls, index, pieces))
            if not follows_schema(tool, call.arguments):
                start, end = _named(text, calls, index, pieces)
                close = text.find(pieces.call_end, end)
                end = len(text) if close < 0 else close + len(pieces.call_end)
                return _finding("schema_violation", start, end)
    if parsed.text:
        # All the plain text stands before the calls exactly if a call follows right after it.
        start, _ = _bounds(text)
        rest = text[start + len(parsed.text) :].lstrip()
        if not (text.startswith(parsed.text, start) and rest.startswith(pieces.call_start)):
            last = text.rfind(pieces.call_end) + len(pieces.call_end)
            if not text[last:].strip():  # it stands between two calls
                last = text.find(pieces.call_end) + len(pieces.call_end)
            return _finding("debris_after_call", last, len(text.rstrip()))
    return _finding("call", *_bounds(text))


def _judge_response(text: str, truncated: bool, pieces: _Pieces) -> Finding:
    start, end = _bounds(text)
    if not any(character.isalnum() for character in text):
        bare = text[start:end] == pieces.call_start
        return _finding("bare_call_tag" if bare else "punctuation_only", start, end)
    if text[start] in "<{[(|/":
        control = _only_control(text, pieces)
        if control is not None:
            return control
    loop = find_loop(text)
    if loop is not None:
        return _finding("loop", *loop)
    if "<" in text:
        for tag in pieces.tags:
            at = text.find(tag)
            if at >= 0:
                return _finding("role_debris" if "<|" in tag else "stray_tag", at, at + len(tag))
    return _finding("truncated" if truncated else "response", start, end)


def _judge_debris(
    text: str, errors: Sequence[ParseError], truncated: bool, pieces: _Pieces
) -> Finding:
    control = _only_control(text, pieces)
    if control is not None:
        return control
    run = _TAG_RUN.search(text)
    if run is not None:
        return _finding("repeated_fragments", *run.span())
    loop = find_loop(text)
    if loop is not None:
        return _finding("loop", *loop)
    first = errors[0]
    kind = _KIND_OF_ERROR.get(first.kind, "bad_json")
    if truncated and len(errors) == 1 and first.kind == "unclosed_call":
        kind = "truncated"
    return _finding(kind, first.start, first.end)


def classify(
    text: str,
    parsed: Parsed,
    *,
    tools: Sequence[ToolSpec] = (),
    truncated: bool = False,
    control_tokens: Sequence[str] = (),
) -> Finding:
    """The structural state of one assistant message.

    ``text`` is the message without its stop token and ``parsed`` what its format read in it.
    Without ``tools`` names and schemas are not checked. ``truncated``: the token limit ended the
    message; a call that was closed all the same stays healthy. ``control_tokens`` are the
    format's, its call's start and end first; without them Hermes tags are assumed.

    Raises DataError when a tool's parameters are no JSON schema.
    """
    pieces = _pieces(tuple(control_tokens))
    if not text or text.isspace():
        return _finding("empty", 0, len(text))
    if parsed.errors:
        return _judge_debris(text, parsed.errors, truncated, pieces)
    if parsed.calls:
        return _judge_calls(text, parsed, tools, pieces)
    return _judge_response(text, truncated, pieces)
