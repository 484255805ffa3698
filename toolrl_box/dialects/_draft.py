"""A message under construction while a dialect reads it from left to right.

Input: the message and what the dialect found, in order. Output: ``Parsed``. Whatever lies between
two findings is natural language; tags of any chat frame in it are defects there, whoever's they
are, and so is a call that lacks its own tags (``untagged``).

Shared by the dialects whose syntax no training format here has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from re import Pattern

from toolrl_box.frames import FRAME, leading_thought
from toolrl_box.types import Parsed, ParseError, ToolCall

NEVER = re.compile(r"(?!)")

# Call tags of any dialect: a dialect reads its own before they get here.
_TAG = re.compile(
    FRAME.pattern + r"|</?tool_call>|\[(?:TOOL_CALLS|ARGS|CALL_ID)\]|</?(?:antml:)?function_calls>"
    r"|</?(?:antml:)?invoke\b|</?(?:antml:)?parameter\b|</?function\b[=>]"
)
_OF_A_CALL = re.compile(r"tool|function|invoke|parameter|python_tag|TOOL_|ARGS|CALL_ID")


@dataclass(slots=True)
class Draft:
    """``position``: all before it has been read."""

    text: str
    untagged: Pattern[str]
    position: int = 0
    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    blocks: int = 0
    errors: list[ParseError] = field(default_factory=list)

    def error(self, kind: str, start: int, end: int, detail: str) -> None:
        self.errors.append(ParseError(kind, start, end, detail))

    def skip_thought(self) -> None:
        """A thinking block that opens the message is neither language nor searched for calls."""
        thought = leading_thought(self.text)
        if thought is not None:
            self.position = thought[1]

    def say(self, end: int) -> None:
        """Natural language up to ``end``."""
        start = self.position
        if start >= end:
            return
        self.pieces.append(self.text[start:end])
        for tag in _TAG.finditer(self.text, start, end):
            kind = "role_debris" if _OF_A_CALL.search(tag[0]) is None else "stray_tag"
            self.error(kind, *tag.span(), f"{tag[0]} in the message")
        for call in self.untagged.finditer(self.text, start, end):
            self.error("untagged_call", *call.span(), "a call outside a call block")
        self.position = end

    def block(self, start: int, end: int, *results: ToolCall | ParseError) -> None:
        """A closed block at ``[start, end)`` with one or more calls, after the language before."""
        self.say(start)
        self.blocks += 1
        calls = [result for result in results if isinstance(result, ToolCall)]
        self.calls += calls
        if calls:
            self.spans.append((start, end))
        self.errors += [result for result in results if isinstance(result, ParseError)]
        self.position = end

    def broken(self, kind: str, start: int, end: int, detail: str) -> None:
        """A defect that ``text[start:end]`` proves and that is no language."""
        self.say(start)
        self.error(kind, start, end, detail)
        self.position = end

    def finish(self) -> Parsed:
        self.say(len(self.text))
        self.errors.sort(key=lambda error: (error.start, error.end))
        text = "".join(self.pieces).strip()
        calls, errors = tuple(self.calls), tuple(self.errors)
        return Parsed(text, calls, self.blocks, errors, spans=tuple(self.spans))
