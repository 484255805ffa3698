"""Anthropic-style XML: one element per call and per argument.

    <function_calls>
    <invoke name="get_weather">
    <parameter name="city">Oslo</parameter>
    </invoke>
    </function_calls>

Tags may have the prefix ``antml:``. They are plain text, so ``stripped`` changes nothing. An
``<invoke>`` outside ``<function_calls>`` is ``untagged_call``. Values have no type: what reads as
JSON and is no text is taken as JSON, and schema checks accept the text in its place.

Left out: escapes (``&lt;``), which models write and servers do not undo alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from re import Match
from typing import Any

from toolrl_box.dialects._calls import UNTAGGED
from toolrl_box.dialects._draft import Draft
from toolrl_box.formats._json import BadJSON, read_json
from toolrl_box.types import Parsed, ParseError, ToolCall

_TAG = re.compile(
    r"<(?P<close>/?)(?:antml:)?(?P<tag>function_calls|invoke|parameter)"
    r"(?:\s{1,8}name=\"(?P<name>[^\"<>\n]{0,200})\")?\s{0,8}>"
)


def _value(text: str) -> Any:
    body = text.strip()
    if body and (body[0] in "{[-0123456789" or body in ("true", "false", "null")):
        try:
            value, end = read_json(body)
        except BadJSON:
            return text
        if end == len(body):
            return value
    return text


@dataclass(frozen=True)
class Anthropic:
    """Calls as ``<invoke>`` elements in ``<function_calls>``."""

    stripped: bool = False
    name = "anthropic"
    control_tokens = (
        *("<function_calls>", "</function_calls>", '<invoke name="', "</invoke>"),
        *('<parameter name="', "</parameter>", "<function_results>", "</function_results>"),
    )

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        draft = Draft(text, UNTAGGED)
        draft.skip_thought()
        reader = _Reader(draft)
        if "<" in text:
            for mark in _TAG.finditer(text, draft.position):
                reader.take(mark)
        reader.close(len(text))
        return draft.finish()


@dataclass(slots=True)
class _Reader:
    """Where in the elements the message stands: each field is where that element opened."""

    draft: Draft
    block: int | None = None
    invoke: Match[str] | None = None
    parameter: Match[str] | None = None
    calls: list[ToolCall | ParseError] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    fault: ParseError | None = None
    at: int = 0
    """Inside a call: after the last element that was read."""

    def take(self, mark: Match[str]) -> None:
        opens = not mark["close"]
        if self.parameter is not None:
            self._in_parameter(mark, opens)
        elif self.invoke is not None:
            self._in_invoke(mark, opens)
        elif mark["tag"] == "invoke" and opens:
            self._open_invoke(mark)
        elif mark["tag"] == "function_calls" and opens and self.block is None:
            self.draft.say(mark.start())
            self.block, self.calls, self.at = mark.start(), [], mark.end()
        elif mark["tag"] == "function_calls" and not opens and self.block is not None:
            self._close_block(mark)
        elif self.block is not None:
            self.calls.append(ParseError("bad_syntax", *mark.span(), f"{mark[0]} out of place"))
        # Outside a block any other tag is left to the text, where it is a stray one.

    def _open_invoke(self, mark: Match[str]) -> None:
        if self.block is None:
            self.draft.say(mark.start())
        self.invoke, self.arguments, self.fault, self.at = mark, {}, None, mark.end()
        if not mark["name"]:
            self.fault = ParseError("missing_name", *mark.span(), "the call has no name")

    def _in_parameter(self, mark: Match[str], opens: bool) -> None:
        assert self.parameter is not None, "a parameter is open"
        name = self.parameter["name"]
        if opens or mark["tag"] != "parameter":
            self._wrong("bad_syntax", self.parameter.start(), mark.end(), "a tag inside a value")
            self.parameter = None
            self._in_invoke(mark, opens)
            return
        if not name or name in self.arguments:
            self._wrong("bad_arguments", *self.parameter.span(), f"no name, or twice: {name!r}")
        else:
            value = self.draft.text[self.parameter.end() : mark.start()]
            self.arguments[name] = _value(value)
        self.parameter, self.at = None, mark.end()

    def _in_invoke(self, mark: Match[str], opens: bool) -> None:
        assert self.invoke is not None, "a call is open"
        if self.draft.text[self.at : mark.start()].strip():
            self._wrong("bad_syntax", self.at, mark.start(), "text between parameters")
        self.at = mark.end()
        if mark["tag"] == "parameter" and opens:
            self.parameter = mark
        elif mark["tag"] == "invoke" and not opens:
            self._close_invoke(mark.end())
        elif mark["tag"] == "function_calls" and not opens and self.block is not None:
            self._wrong("bad_syntax", self.invoke.start(), mark.start(), "no </invoke>")
            self._close_invoke(mark.start())
            self._close_block(mark)
        else:
            self._wrong("bad_syntax", *mark.span(), f"{mark[0]} out of place")

    def _wrong(self, kind: str, start: int, end: int, detail: str) -> None:
        self.fault = self.fault or ParseError(kind, start, end, detail)

    def _close_invoke(self, end: int) -> None:
        assert self.invoke is not None, "a call is open"
        call = self.fault or ToolCall(self.invoke["name"], self.arguments)
        start, self.invoke = self.invoke.start(), None
        if self.block is not None:
            self.calls.append(call)
        elif isinstance(call, ToolCall):
            self.draft.broken("untagged_call", start, end, "outside <function_calls>")
        else:
            self.draft.block(start, end, call)

    def _close_block(self, mark: Match[str]) -> None:
        assert self.block is not None, "a block is open"
        between = self.draft.text[self.at : mark.start()]
        if not self.calls:
            kind = "bad_syntax" if between.strip() else "empty_call"
            self.calls.append(ParseError(kind, self.block, mark.end(), "no call inside"))
        self.draft.block(self.block, mark.end(), *self.calls)
        self.block = None

    def close(self, end: int) -> None:
        """The message is over: whatever is open stays open."""
        opened = self.block
        if opened is None and self.invoke is not None:
            opened = self.invoke.start()
        if opened is not None:
            self.draft.position = opened
            self.draft.broken("unclosed_call", opened, end, "no closing tag")
