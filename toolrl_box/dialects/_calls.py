"""Calls written as JSON objects, ``{"name": …, "arguments": {…}}``, the core of several dialects.

Input: text and a position. Output: the call (or its defect) and where the object ends. Which key
holds the arguments is the dialect's: Llama writes ``parameters``, most write ``arguments``.

Left out: arguments as a JSON string, which is the API's spelling and no model's.
"""

from __future__ import annotations

import re
from typing import Any

from toolrl_box.dialects._draft import Draft
from toolrl_box.formats._json import BadJSON, read_json
from toolrl_box.types import ParseError, ToolCall

UNTAGGED = re.compile(
    r'\{\s{0,16}"(?:type"\s*:\s*"function"\s*,\s*")?(?:name|function)"\s{0,16}:\s{0,16}'
    r'"[^"\n]{0,200}"\s{0,16},\s{0,16}"(?:arguments|parameters)"'
)
"""The head of a JSON call in the middle of text."""

ARGUMENTS = ("arguments", "parameters")


# A string that is not closed is read to the end of the text, once.
_MARK = re.compile(r'"(?:[^"\\]|\\.)*+(?P<closed>"?)|[{}\[\]]', re.DOTALL)


def value_end(text: str, start: int, end: int | None = None) -> int | None:
    """Where the brackets that open at ``start`` are closed, or None when that is not before
    ``end`` (default: the end of the text)."""
    depth = 0
    for mark in _MARK.finditer(text, start, len(text) if end is None else end):
        sign = mark[0][0]
        if sign == '"':
            if not mark["closed"]:
                return None
            continue
        depth += 1 if sign in "{[" else -1
        if depth <= 0:
            return mark.end()
    return None


def to_call(value: Any, start: int, end: int) -> ToolCall | ParseError:
    """A decoded object as a call; ``text[start:end]`` is where it stands."""
    if not isinstance(value, dict):
        return ParseError("not_an_object", start, end, "the call is not a JSON object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return ParseError("missing_name", start, end, 'no "name", or not a text')
    given = [key for key in ARGUMENTS if key in value]
    if not given:
        return ParseError("missing_arguments", start, end, 'no "arguments" or "parameters"')
    arguments = value[given[0]]
    if not isinstance(arguments, dict):
        return ParseError("bad_arguments", start, end, f'"{given[0]}" is not an object')
    return ToolCall(name, arguments)


def read_value(text: str, start: int, end: int) -> Any:
    """The one JSON value that ``text[start:end]`` holds, or a ParseError."""
    try:
        value, stop = read_json(text[start:end])
    except BadJSON as error:
        return ParseError("bad_json", start, end, f"{error} at {start + error.position}")
    if text[start + stop : end].strip():
        return ParseError("trailing_debris", start + stop, end, "text after the JSON value")
    return value


def read_arguments(name: str, text: str, start: int, end: int) -> ToolCall | ParseError:
    """A call whose name is known: ``text[start:end]`` must be one JSON object."""
    value = read_value(text, start, end)
    if isinstance(value, ParseError):
        return value
    if not isinstance(value, dict):
        return ParseError("bad_arguments", start, end, "the arguments are no JSON object")
    return ToolCall(name, value)


def take_calls(draft: Draft, at: int, start: int | None = None) -> None:
    """Reads the JSON value that opens at ``at`` as a call, or as a list of calls.

    The block begins at ``start``, where its tag stands (default: at the value).
    """
    text = draft.text
    start = at if start is None else start
    end = value_end(text, at)
    if end is None:
        draft.broken("unclosed_call", start, len(text), "the JSON is not closed")
        return
    value = read_value(text, at, end)
    if isinstance(value, ParseError):
        draft.block(start, end, value)
    elif isinstance(value, list) and value:
        draft.block(start, end, *(to_call(item, at, end) for item in value))
    else:
        draft.block(start, end, to_call(value, at, end))
