"""XML-like tool calls in the manner of Qwen3-Coder: one element per argument.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Oslo
    </parameter>
    </function>
    </tool_call>

Input and output: see ``ToolFormat``. A value is a string as it stands, unless it would read as
other JSON or break the layout: then, like everything that is no string, it is written as JSON.
JSON is written without ``<`` (as ``\\u003c``), so no value ever holds a tag, and reading back
gives the same arguments whatever they hold.

Left out: typing values by the tool's schema, as Qwen3-Coder's server-side parser does. Here the
text alone decides, so a bare ``12345`` is a number even where the schema wants a string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolrl_box.formats._chatml import ChatML, template
from toolrl_box.formats._grammar import Mode, TagGrammar
from toolrl_box.formats._json import BadJSON, dumps, read_json
from toolrl_box.formats._literal import JSON
from toolrl_box.formats._scan import CLOSE, OPEN, parse_tagged
from toolrl_box.types import Parsed, ParseError, ToolCall

INSTRUCTIONS = (
    "\n</tools>\n\nFor each function call, reply in the following format within "
    "<tool_call></tool_call> XML tags, one parameter element per argument:\n<tool_call>\n"
    "<function=example_function_name>\n<parameter=example_parameter>\nvalue\n</parameter>\n"
    "</function>\n</tool_call>"
)

_UNTAGGED = re.compile(r"(?!)")  # never: an untagged call shows as a ``<function=`` tag
_FUNCTION = re.compile(r"\s*<function=([^<>\n]*)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]*)>(.*?)</parameter>", re.DOTALL)
_FUNCTION_END = re.compile(r"\s*</function>")
# A raw value may hold none of these; whatever _INSIDE finds holds one of them.
_RISKY = ("</", "<|", "<tool", "<function", "<parameter")
_INSIDE = re.compile(r"</?(?:tool_call|tool_response|tools|function|parameter)\b|<\|[ie]")

# The two tests below exist twice, here and in Jinja; the tests compare them.
_MACROS = (
    "{%- macro key(text) -%}"
    "{%- if text and text == text.strip() and '<' not in text and '>' not in text"
    " and '\\n' not in text and not text.startswith('\"') -%}{{- text -}}"
    "{%- else -%}{{- (text | tojson).replace('<', '\\\\u003c').replace('>', '\\\\u003e') -}}"
    "{%- endif -%}{%- endmacro -%}"
    "{%- macro value(item) -%}"
    "{%- if item is string and item and item == item.strip()"
    " and item[0] not in '\"{[' and item not in ('true', 'false', 'null')"
    " and (item | float(none)) is none"
    + "".join(f" and {dumps(piece)} not in item" for piece in _RISKY)
    + " -%}{{- item -}}"
    "{%- else -%}{{- (item | tojson).replace('<', '\\\\u003c') -}}"
    "{%- endif -%}{%- endmacro -%}"
)
_CALLS = (
    "{%- for call in message.tool_calls -%}"
    "{{- '<tool_call>\\n<function=' + key(call.function.name) + '>\\n' -}}"
    "{%- for name, item in call.function.arguments | items -%}"
    "{{- '<parameter=' + key(name) + '>\\n' + value(item) + '\\n</parameter>\\n' -}}"
    "{%- endfor -%}"
    "{{- '</function>\\n</tool_call>' -}}"
    "{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _write_key(text: str) -> str:
    plain = text and text == text.strip() and not text.startswith('"')
    if plain and "<" not in text and ">" not in text and "\n" not in text:
        return text
    return dumps(text).replace("<", "\\u003c").replace(">", "\\u003e")


def _write_value(value: Any) -> str:
    if (
        isinstance(value, str)
        and value
        and value == value.strip()
        and value[0] not in '"{['
        and value not in ("true", "false", "null")
        and not _is_number(value)
        and not any(piece in value for piece in _RISKY)
    ):
        return value
    return dumps(value).replace("<", "\\u003c")


def _read_key(text: str) -> str | None:
    if not text.startswith('"'):
        return text.strip() or None
    try:
        value, end = read_json(text)
    except BadJSON:
        return None
    return value if isinstance(value, str) and end == len(text) else None


def _read_value(text: str) -> Any:
    if text.startswith("\n"):
        text = text[1:]
    if text.endswith("\n"):
        text = text[:-1]
    body = text.strip()
    if body and (body[0] in '"{[-0123456789' or body in ("true", "false", "null")):
        try:
            value, end = read_json(body)
        except BadJSON:
            return text
        if end == len(body):
            return value
    return text


def _read_body(text: str, start: int, end: int) -> ToolCall | ParseError:
    if not text[start:end].strip():
        return ParseError("empty_call", start - len(OPEN), end + len(CLOSE), "nothing inside")
    function = _FUNCTION.match(text, start, end)
    if function is None:
        return ParseError("bad_syntax", start, end, "no <function=…>")
    name = _read_key(function[1])
    if not name:
        return ParseError("missing_name", *function.span(), "the function has no name")
    arguments: dict[str, Any] = {}
    position = function.end()
    while (parameter := _PARAMETER.match(text, position, end)) is not None:
        key = _read_key(parameter[1])
        if key is None:
            return ParseError("bad_arguments", *parameter.span(), "the parameter has no name")
        if key in arguments:
            return ParseError("bad_arguments", *parameter.span(), f"{key!r} is given twice")
        if "<" in parameter[2] and _INSIDE.search(parameter[2]) is not None:
            return ParseError("bad_syntax", *parameter.span(), "a tag inside a value")
        arguments[key] = _read_value(parameter[2])
        position = parameter.end()
    function_end = _FUNCTION_END.match(text, position, end)
    if function_end is None:
        return ParseError("bad_syntax", start, end, f"no parameter or </function> at {position}")
    if text[function_end.end() : end].strip():
        return ParseError("trailing_debris", function_end.end(), end, "text after </function>")
    return ToolCall(name, arguments)


@dataclass(frozen=True)
class Xml(ChatML):
    """Calls as ``<function=…>`` elements in ``<tool_call>`` tags."""

    name = "xml"
    instructions = INSTRUCTIONS
    control_tokens = (
        "<tool_call>",
        "</tool_call>",
        "<|im_end|>",
        "<|im_start|>",
        "<function=",
        "</function>",
        "<parameter=",
        "</parameter>",
        "<tool_response>",
        "</tool_response>",
    )
    call_start = OPEN
    call_end = CLOSE
    chat_template = template(INSTRUCTIONS, _MACROS, _CALLS)
    grammar = TagGrammar(
        {
            "text": Mode("text", {OPEN: "call"}, ends=True),
            "call": Mode("blank", {"<function=": "function"}),
            "function": Mode("name", {">": "body"}),
            "body": Mode("blank", {"<parameter=": "parameter", "</function>": "read"}),
            "parameter": Mode("name", {">": "value"}),
            "value": Mode("free", {"</parameter>": "body"}),
            "read": Mode("blank", {CLOSE: "closed"}),
            "closed": Mode("blank", {OPEN: "call"}, ends=True),
        },
        JSON,
    )

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        blocks: list[str] = []
        for call in calls:
            parameters = "".join(
                f"<parameter={_write_key(key)}>\n{_write_value(value)}\n</parameter>\n"
                for key, value in call.arguments.items()
            )
            blocks.append(
                f"{OPEN}\n<function={_write_key(call.name)}>\n{parameters}</function>\n{CLOSE}"
            )
        return "\n".join(blocks)

    def parse(self, text: str) -> Parsed:
        return parse_tagged(text, _read_body, _UNTAGGED)
