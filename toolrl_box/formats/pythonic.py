"""Tool calls written like Python, as in ACEBench and BFCL's prompting mode: one list of calls.

    [get_weather(city="Oslo", days=3), get_time(zone=None)]

Input and output: see ``ToolFormat``. Values are literals read by the small reader below; nothing
is ever evaluated. Strings are written as JSON strings (single quotes are read as well); argument
names that are no identifiers are written as ``**{"odd name": 1}``.

A block is a list that begins with a call, ``[name(``, and is closed. When a call cannot be read,
the block ends at the next ``)]``; a further ``[name(`` before it abandons the block.

Left out: positional arguments (JSON calls have none), tuples, sets, nested calls, expressions.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolrl_box.errors import DataError
from toolrl_box.formats._chatml import ChatML, template
from toolrl_box.formats._grammar import ListGrammar, Mode
from toolrl_box.formats._json import MAX_DEPTH, BadJSON, dumps, finite_float, read_json
from toolrl_box.formats._literal import PYTHON
from toolrl_box.formats._scan import TAG, Draft, has_no_tags
from toolrl_box.types import Parsed, ToolCall

INSTRUCTIONS = (
    "\n</tools>\n\nFor function calls, reply with one list in this format, with named arguments "
    'and Python literals as values:\n[function_a(name="text", count=3), function_b(flag=True)]'
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_OPEN = re.compile(r"\[\s*[A-Za-z_][A-Za-z0-9_.\-]*\(")
_CLOSE = re.compile(r"\)\s*\]")
_CALL = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.\-]*)\(")
_KEY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=")
_UNPACK = re.compile(r"\s*\*\*\s*")
_SPACE = re.compile(r"\s*")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|\'[^\'\\]*(?:\\.[^\'\\]*)*\'', re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![\w.])")
_WORD = re.compile(r"(?:True|False|None)(?!\w)")
_WORDS = {"True": True, "False": False, "None": None}
_QUOTE_OR_ESCAPE = re.compile(r'\\(.)|"', re.DOTALL)
# Only at the start of a line: prose may mention ``print(end="")`` without meaning to call it.
_UNTAGGED = re.compile(
    r"^[ \t]*[A-Za-z_][A-Za-z0-9_.\-]*\(\s*[A-Za-z_][A-Za-z0-9_]*=(?!=)", re.MULTILINE
)

_MACROS = (
    "{%- macro literal(item) -%}"
    "{%- if item is none -%}None"
    "{%- elif item is sameas true -%}True{%- elif item is sameas false -%}False"
    "{%- elif item is string or item is number -%}{{- item | tojson -}}"
    "{%- elif item is mapping -%}{{- '{' -}}"
    "{%- for key, value in item | items -%}"
    "{{- (key | tojson) + ': ' + literal(value) -}}"
    "{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}"
    "{%- endfor -%}{{- '}' -}}"
    "{%- else -%}{{- '[' -}}"
    "{%- for value in item -%}"
    "{{- literal(value) -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}"
    "{%- endfor -%}{{- ']' -}}"
    "{%- endif -%}{%- endmacro -%}"
)
_CALLS = (
    "{{- '[' -}}{%- for call in message.tool_calls -%}{{- call.function.name + '(' -}}"
    "{%- for key, value in call.function.arguments | items -%}"
    "{%- if key.isascii() and key.isidentifier() -%}{{- key + '=' + literal(value) -}}"
    "{%- else -%}{{- '**{' + (key | tojson) + ': ' + literal(value) + '}' -}}{%- endif -%}"
    "{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- ')' -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}"
    "{%- endfor -%}{{- ']' -}}"
)


class _Fault(Exception):
    """Why a call list cannot be read, and where."""

    def __init__(self, kind: str, position: int, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.position = position


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


def _requote(match: re.Match[str]) -> str:
    if match[1] is None:
        return '\\"'
    return "'" if match[1] == "'" else match[0]


def _read_string(text: str, position: int) -> tuple[str, int]:
    match = _STRING.match(text, position)
    if match is None:
        raise _Fault("bad_syntax", position, "a text without its closing quote")
    token = match[0]
    if token[0] == "'":
        token = '"' + _QUOTE_OR_ESCAPE.sub(_requote, token[1:-1]) + '"'
    try:
        value, _ = read_json(token)
    except BadJSON as error:
        raise _Fault("bad_syntax", position, str(error)) from None
    assert isinstance(value, str), "a quoted token is a text"
    return value, match.end()


def _read_number(text: str, position: int) -> tuple[int | float, int]:
    match = _NUMBER.match(text, position)
    if match is None:
        raise _Fault("bad_syntax", position, "not a number")
    try:
        whole = match[1] is None and match[2] is None
        return (int(match[0]) if whole else finite_float(match[0])), match.end()
    except ValueError as error:
        raise _Fault("bad_syntax", position, str(error)) from None


def _separator(text: str, position: int, closing: str) -> tuple[bool, int]:
    """After an item: whether more items follow, and where reading goes on."""
    position = _skip(text, position)
    if text.startswith(",", position):
        position = _skip(text, position + 1)
        if not text.startswith(closing, position):
            return True, position
    if text.startswith(closing, position):
        return False, position + 1
    raise _Fault("bad_syntax", position, f"neither ',' nor '{closing}'")


def _read_value(text: str, position: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise _Fault("bad_syntax", position, "nested too deeply")
    first = text[position : position + 1]
    if first in ('"', "'"):
        return _read_string(text, position)
    if first == "[":
        items: list[Any] = []
        position = _skip(text, position + 1)
        more = not text.startswith("]", position)
        position += 0 if more else 1
        while more:
            item, position = _read_value(text, position, depth + 1)
            items.append(item)
            more, position = _separator(text, position, "]")
        return items, position
    if first == "{":
        return _read_dict(text, position, depth)
    word = _WORD.match(text, position)
    if word is not None:
        return _WORDS[word[0]], word.end()
    return _read_number(text, position)


def _read_dict(text: str, position: int, depth: int) -> tuple[dict[str, Any], int]:
    entries: dict[str, Any] = {}
    position = _skip(text, position + 1)
    more = not text.startswith("}", position)
    position += 0 if more else 1
    while more:
        key, position = _read_string(text, position)
        position = _skip(text, position)
        if not text.startswith(":", position):
            raise _Fault("bad_syntax", position, "no ':' after a key")
        entries[key], position = _read_value(text, _skip(text, position + 1), depth + 1)
        more, position = _separator(text, position, "}")
    return entries, position


def _read_call(text: str, position: int) -> tuple[ToolCall, int]:
    head = _CALL.match(text, position)
    if head is None:
        raise _Fault("bad_syntax", position, "no call here")
    arguments: dict[str, Any] = {}
    position = _skip(text, head.end())
    more = not text.startswith(")", position)
    position += 0 if more else 1
    while more:
        start = position
        unpack = _UNPACK.match(text, position)
        key = None if unpack is not None else _KEY.match(text, position)
        if unpack is not None and text.startswith("{", unpack.end()):
            given, position = _read_dict(text, unpack.end(), 0)
        elif key is not None:
            value, position = _read_value(text, _skip(text, key.end()), 1)
            given = {key[1]: value}
        else:
            raise _Fault("bad_arguments", position, "an argument without a name")
        if not arguments.keys().isdisjoint(given):
            raise _Fault("bad_arguments", start, "an argument given twice")
        arguments.update(given)
        more, position = _separator(text, position, ")")
    return ToolCall(head[1], arguments), position


def _read_list(text: str, position: int) -> tuple[list[ToolCall], int]:
    calls: list[ToolCall] = []
    position += 1
    more = True
    while more:
        call, position = _read_call(text, position)
        calls.append(call)
        more, position = _separator(text, position, "]")
    return calls, position


def _literal(value: Any) -> str:
    if value is None or value is True or value is False:
        return str(value)
    if isinstance(value, (str, int, float)):
        return dumps(value)
    if isinstance(value, dict):
        entries = (f"{dumps(key)}: {_literal(item)}" for key, item in value.items())
        return "{" + ", ".join(entries) + "}"
    return "[" + ", ".join(_literal(item) for item in value) + "]"


def _argument(key: str, value: Any) -> str:
    if key.isascii() and key.isidentifier():
        return f"{key}={_literal(value)}"
    return f"**{{{dumps(key)}: {_literal(value)}}}"


def _outside(draft: Draft, start: int, end: int, tagged: bool) -> None:
    text = draft.text
    if tagged:
        for mark in TAG.finditer(text, start, end):
            draft.outside(start, mark.start())
            # The tags of other formats are no blocks here, so neither opens nor closes anything.
            if mark.group() in ("<tool_call>", "</tool_call>"):
                draft.error("stray_tag", *mark.span(), f"{mark.group()} is not of this format")
            else:
                draft.tag_outside(mark)
            start = mark.end()
    draft.outside(start, end)


@dataclass(frozen=True)
class Pythonic(ChatML):
    """Calls as one Python-like list."""

    name = "pythonic"
    instructions = INSTRUCTIONS
    control_tokens = (
        "[",
        ")]",
        "<|im_end|>",
        "<|im_start|>",
        "(",
        '="',
        '", ',
        "<tool_response>",
        "</tool_response>",
    )
    call_start = "["
    call_end = ")]"
    chat_template = template(INSTRUCTIONS, _MACROS, _CALLS)
    grammar = ListGrammar(
        {"text": Mode("text", {}, ends=True), "list": Mode("literal", {}, ends=True)}, PYTHON
    )

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        """Raises DataError when a tool's name is no (dotted) identifier."""
        parts: list[str] = []
        for call in calls:
            if _NAME.fullmatch(call.name) is None:
                raise DataError(
                    f"tool name '{call.name}' cannot be written in the pythonic format; "
                    "it must be made of letters, digits, '_', '.' and '-'"
                )
            arguments = ", ".join(_argument(*pair) for pair in call.arguments.items())
            parts.append(f"{call.name}({arguments})")
        return "[" + ", ".join(parts) + "]"

    def parse(self, text: str) -> Parsed:
        draft = Draft(text, _UNTAGGED)
        tagged = not has_no_tags(text)  # once: looked up for each block it would be quadratic
        opens = [match.span() for match in _OPEN.finditer(text)] if "[" in text else []
        closes = [match.span() for match in _CLOSE.finditer(text)] if opens else []
        position = 0
        index = 0
        while index < len(opens):
            start, head_end = opens[index]
            _outside(draft, position, start, tagged)
            try:
                calls, position = _read_list(text, start)
                draft.calls.extend(calls)
                draft.spans.append((start, position))
                draft.blocks += 1
            except _Fault as fault:
                # The next "[name(" or ")]" after the fault decides how the block ends.
                after = bisect_left(opens, (fault.position, 0), index + 1)
                closing = bisect_left(closes, (fault.position, 0))
                close = closes[closing] if closing < len(closes) else None
                if after < len(opens) and (close is None or opens[after] < close):
                    end = opens[after][1]
                    draft.error("nested_open", start, end, "opened again before closing")
                    position = opens[after][0]
                elif close is not None:
                    position = close[1]
                    draft.error(fault.kind, start, position, f"{fault} at {fault.position}")
                    draft.blocks += 1
                else:
                    position = len(text)
                    draft.error("unclosed_call", start, position, "the list is not closed")
                if tagged:
                    for mark in TAG.finditer(text, start, position):
                        draft.roles_inside(mark)
            index = bisect_left(opens, (max(position, head_end), 0), index)
        _outside(draft, position, len(text), tagged)
        return draft.finish()
