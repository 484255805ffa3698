"""Hermes tool calls, the format of Qwen2.5 and Hermes 2 Pro: a JSON object in tags.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    </tool_call>

Input and output: see ``ToolFormat``. The end of a call is the first closing tag; when the body up
to there is no JSON because the tag stands inside one of its strings, the next one outside.

Left out: other spellings of the keys (``parameters``, ``function``) and arguments as a JSON
string; models that write them are reported, not helped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from toolrl_box.formats._chatml import ChatML, template, write_arguments
from toolrl_box.formats._grammar import Mode, TagGrammar
from toolrl_box.formats._json import BadJSON, dumps, read_json
from toolrl_box.formats._literal import JSON, OBJECT
from toolrl_box.formats._scan import CLOSE, OPEN, parse_tagged
from toolrl_box.types import Parsed, ParseError, ToolCall

INSTRUCTIONS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)

_UNTAGGED = re.compile(r'\{\s*"name"\s*:\s*"[^"\n]{0,200}"\s*,\s*"(?:arguments|parameters)"')
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# A backslash outside a string stops the search: with it, text could be written in which every
# opening tag starts a search to the end.
_BETWEEN = re.compile(r'[^"<\\]*')

_CALLS = (
    "{%- for call in message.tool_calls -%}"
    "{{- '<tool_call>\\n{\"name\": ' + (call.function.name | tojson) -}}"
    "{{- ', \"arguments\": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' -}}"
    "{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
)


def _end_outside_strings(text: str, position: int) -> int | None:
    while True:
        between = _BETWEEN.match(text, position)
        assert between is not None, "the pattern matches the empty string"
        position = between.end()
        string = _STRING.match(text, position)
        if string is None:
            return position if text.startswith(CLOSE, position) else None
        position = string.end()


def _read_body(text: str, start: int, end: int) -> ToolCall | ParseError:
    body = text[start:end]
    if not body.strip():
        return ParseError("empty_call", start - len(OPEN), end + len(CLOSE), "nothing inside")
    try:
        value, stop = read_json(body)
    except BadJSON as error:
        return ParseError("bad_json", start, end, f"{error} at {start + error.position}")
    if not isinstance(value, dict):
        return ParseError("not_an_object", start, end, "the call is not a JSON object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return ParseError("missing_name", start, end, 'no "name", or not a text')
    if "arguments" not in value:
        return ParseError("missing_arguments", start, end, 'no "arguments"')
    arguments = value["arguments"]
    if not isinstance(arguments, dict):
        return ParseError("bad_arguments", start, end, '"arguments" is not an object')
    if body[stop:].strip():
        return ParseError("trailing_debris", start + stop, end, "text after the JSON object")
    return ToolCall(name, arguments)


@dataclass(frozen=True)
class Hermes(ChatML):
    """JSON calls in ``<tool_call>`` tags."""

    name = "hermes"
    instructions = INSTRUCTIONS
    control_tokens = (
        "<tool_call>",
        "</tool_call>",
        "<|im_end|>",
        "<|im_start|>",
        "<tool_response>",
        "</tool_response>",
        '{"name": "',
        '", "arguments": {"',
        "}}",
    )
    call_start = OPEN
    call_end = CLOSE
    chat_template = template(INSTRUCTIONS, "", _CALLS)
    grammar = TagGrammar(
        {
            "text": Mode("text", {OPEN: "call"}, ends=True),
            "call": Mode("literal", {CLOSE: "closed"}, literal=OBJECT),
            "closed": Mode("blank", {OPEN: "call"}, ends=True),
        },
        JSON,
    )

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        return "\n".join(
            f'{OPEN}\n{{"name": {dumps(call.name)}, "arguments": '
            f"{write_arguments(call.arguments)}}}\n{CLOSE}"
            for call in calls
        )

    def parse(self, text: str) -> Parsed:
        return parse_tagged(text, _read_body, _UNTAGGED, _end_outside_strings)
