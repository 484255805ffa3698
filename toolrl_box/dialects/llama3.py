"""Llama 3.1 to 3.3: JSON calls, the python tag, and the ``<function=…>`` spelling.

    {"name": "get_weather", "parameters": {"city": "Oslo"}}
    <|python_tag|>brave_search.call(query="weather in Oslo")
    <function=get_weather>{"city": "Oslo"}</function>

A message that begins with the JSON object is a call, with or without ``<|python_tag|>`` before it;
several are separated by ``;`` or white space. The same object after text is ``untagged_call``, as
Llama's parsers read calls at the start only. ``<|python_tag|>`` before anything else is code for
the tool ``code_interpreter``.

Left out: whether that code is Python.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from toolrl_box.dialects._calls import (
    ARGUMENTS,
    UNTAGGED,
    read_arguments,
    read_value,
    take_calls,
    value_end,
)
from toolrl_box.dialects._draft import Draft
from toolrl_box.formats import Pythonic
from toolrl_box.types import Parsed, ParseError, ToolCall

TAG = "<|python_tag|>"
CODE_TOOL = "code_interpreter"

_HEAD = re.compile(r"\s*(?P<call>\{\s*['\"]?(?:name|function|type)['\"]?\s*:)")
_NEXT = re.compile(r"[\s;,]*(?P<call>\{\s*\"(?:name|type)\"\s*:)")
_BUILTIN = re.compile(r"\s*(?P<call>(?P<name>[A-Za-z_]\w*)\.call\()")
_FUNCTION = re.compile(r"<function=(?P<name>[^<>\s]{1,200})>")
_CLOSE = "</function>"
_STOP = re.compile(r"<\|e(?:om|ot)_id\|>")


@dataclass(frozen=True)
class Llama3:
    """``stripped``: ``<|python_tag|>`` is missing, so that ``name.call(…)`` alone is a call."""

    stripped: bool = False
    name = "llama3"
    control_tokens = (
        *(TAG, "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        *('{"name": "', '", "parameters": {'),
    )

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        draft = Draft(text, UNTAGGED)
        draft.skip_thought()
        tag = text.find(TAG, draft.position)
        if tag >= 0:
            draft.say(tag)
            self._tagged(draft, tag)
        else:
            self._untagged(draft)
        return draft.finish()

    def _untagged(self, draft: Draft) -> None:
        head = _HEAD.match(draft.text, draft.position)
        if head is not None and not _is_answer(draft.text, head.start("call")):
            _json_calls(draft, head.start("call"), head.start("call"))
        elif self.stripped and (call := _BUILTIN.match(draft.text, draft.position)) is not None:
            _builtin(draft, call.start("call"), call)
        while (function := _FUNCTION.search(draft.text, draft.position)) is not None:
            _function(draft, function)

    def _tagged(self, draft: Draft, tag: int) -> None:
        text, body = draft.text, tag + len(TAG)
        stop = _STOP.search(text, body)
        end = len(text) if stop is None else stop.start()
        if not text[body:end].strip():
            draft.broken("empty_call", tag, end, "nothing after the python tag")
            return
        call = _BUILTIN.match(text, body)
        if text[body:end].lstrip().startswith("{"):
            _json_calls(draft, tag, text.index("{", body))
        elif call is not None:
            _builtin(draft, tag, call)
        else:
            code = ToolCall(CODE_TOOL, {"code": text[body:end].strip()})
            draft.block(tag, end, code)


def _json_calls(draft: Draft, start: int, at: int) -> None:
    """Calls one after the other; the first block begins at ``start``, its object at ``at``."""
    take_calls(draft, at, start)
    while (further := _NEXT.match(draft.text, draft.position)) is not None:
        draft.position = further.start("call")
        take_calls(draft, draft.position)


def _is_answer(text: str, at: int) -> bool:
    """Whether the object at ``at`` is a JSON answer that happens to have a "name"."""
    end = value_end(text, at)
    value = None if end is None else read_value(text, at, end)
    return isinstance(value, dict) and not any(key in value for key in ARGUMENTS)


def _builtin(draft: Draft, start: int, call: re.Match[str]) -> None:
    """``brave_search.call(query="…")``, read as a list of one Python call."""
    text, opening = draft.text, call.start("call")
    end = text.find("\n", opening)
    end = len(text) if end < 0 else end
    end = opening + len(text[opening:end].rstrip())
    read = Pythonic().parse(f"[{text[opening:end]}]")
    if not text[opening:end].endswith(")"):
        draft.broken("unclosed_call", start, end, "the call is not closed")
    elif len(read.calls) == 1 and not read.errors and not read.text:
        draft.block(start, end, ToolCall(call["name"], read.calls[0].arguments))
    else:
        draft.block(start, end, ParseError("bad_syntax", opening, end, "not a call of literals"))


def _function(draft: Draft, opening: re.Match[str]) -> None:
    text = draft.text
    close = text.find(_CLOSE, opening.end())
    if close < 0:
        draft.broken("unclosed_call", opening.start(), len(text), "no </function>")
        return
    call = read_arguments(opening["name"], text, opening.end(), close)
    draft.block(opening.start(), close + len(_CLOSE), call)
