"""Finds tags in an assistant message and cuts the message into call blocks and plain text.

Input: the message (without stop token) and a reader for one block's body. Output: ``Parsed``.
Shared by the formats that wrap calls in ``<tool_call>`` tags; the tag table also serves the
format that does not, because a tag in its text is debris all the same.

Every pass goes forward only, so that hostile text costs linear time; nothing here raises.

Left out: guessing. A call outside its tags is reported (``untagged_call``), never executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from re import Match, Pattern

from toolrl_box.types import Parsed, ParseError, ToolCall

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

# Whole tags first, then what is left of a tag that lost its head or tail. The order matters:
# alternatives are tried left to right, so a whole tag never counts as a fragment.
TAG = re.compile(
    r"</?(?:tool_call|tool_response|tools)>"
    r"|<\|(?:im_start|im_end|endoftext)\|>"
    r"|<(?:function|parameter)=|</(?:function|parameter)>"
    r"|</?tool_(?:call|response)\b|<\|(?:im_start|im_end|endoftext)\b"
    r"|(?<!\w)/?tool_(?:call|response)>|\|?(?<!\w)im_(?:start|end)\|>"
)


def is_role(tag: str) -> bool:
    """Whether a tag belongs to the chat frame, which only the template may write."""
    return "im_" in tag or "endoftext" in tag


ReadBody = Callable[[str, int, int], "ToolCall | ParseError"]
"""``read(text, start, end)``: the call in ``text[start:end]``, or what is wrong with it."""

FindEnd = Callable[[str, int], "int | None"]
"""``find(text, start)``: where the closing tag stands, if tags inside strings do not count."""


@dataclass(slots=True)
class Draft:
    """A ``Parsed`` under construction."""

    text: str
    untagged: Pattern[str]
    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    blocks: int = 0
    errors: list[ParseError] = field(default_factory=list)

    def error(self, kind: str, start: int, end: int, detail: str) -> None:
        self.errors.append(ParseError(kind, start, end, detail))

    def outside(self, start: int, end: int) -> None:
        """Plain text between blocks and tags; a call written here lacks its tags."""
        if start < end:
            self.pieces.append(self.text[start:end])
            for match in self.untagged.finditer(self.text, start, end):
                self.error("untagged_call", *match.span(), "a call outside a call block")

    def tag_outside(self, match: Match[str]) -> None:
        """A tag that stands in plain text."""
        tag = match.group()
        if is_role(tag):
            self.error("role_debris", *match.span(), f"{tag} in the message")
        elif tag == CLOSE:
            self.error("stray_close", *match.span(), f"{tag} without an opening tag")
        elif tag == "<function=":
            self.error("untagged_call", *match.span(), "a call outside a call block")
        else:
            self.error("stray_tag", *match.span(), f"{tag} outside a call block")

    def roles_inside(self, match: Match[str]) -> None:
        """A tag in a malformed body; only the frame's tags are a defect of their own there."""
        if is_role(match.group()):
            self.error("role_debris", *match.span(), f"{match.group()} in a call block")

    def finish(self) -> Parsed:
        self.errors.sort(key=lambda error: (error.start, error.end))
        text = "".join(self.pieces).strip()
        return Parsed(
            text, tuple(self.calls), self.blocks, tuple(self.errors), spans=tuple(self.spans)
        )


def has_no_tags(text: str) -> bool:
    """Cheap test that lets ordinary prose skip the tag search."""
    return "<" not in text and ">" not in text


def parse_tagged(
    text: str, read: ReadBody, untagged: Pattern[str], find_end: FindEnd | None = None
) -> Parsed:
    """Cut ``text`` at its ``<tool_call>`` tags and read each block.

    A block ends at the first closing tag. When that leaves a body that cannot be read and
    ``find_end`` is given, the end that it names is tried too and taken only if the body is then
    well-formed: a closing tag inside a string is content. A second opening tag abandons the
    first (``nested_open``).
    """
    draft = Draft(text, untagged)
    marks = [] if has_no_tags(text) else list(TAG.finditer(text))
    position = 0
    index = 0
    while index < len(marks):
        mark = marks[index]
        draft.outside(position, mark.start())
        position = mark.end()
        index += 1
        if mark.group() != OPEN:
            draft.tag_outside(mark)
            continue
        inner = index
        while index < len(marks) and marks[index].group() not in (OPEN, CLOSE):
            index += 1
        if index == len(marks):
            draft.error("unclosed_call", mark.start(), len(text), "no closing tag")
            for tag in marks[inner:index]:
                draft.roles_inside(tag)
            position = len(text)
            break
        boundary = marks[index]
        result: ToolCall | ParseError | None = None
        if boundary.group() == CLOSE:
            result = read(text, position, boundary.start())
        if find_end is not None and (
            result is None or (isinstance(result, ParseError) and result.kind == "bad_json")
        ):
            further = find_end(text, position)
            if further is not None and further > boundary.start():
                retry = read(text, position, further)
                if isinstance(retry, ToolCall):
                    result = retry
                    while marks[index].start() < further:
                        index += 1
                    boundary = marks[index]
        if isinstance(result, ToolCall):
            draft.calls.append(result)
            draft.spans.append((mark.start(), boundary.end()))
        else:
            for tag in marks[inner:index]:
                draft.roles_inside(tag)
        if result is None:
            draft.error("nested_open", mark.start(), boundary.end(), "opened again before closing")
            position = boundary.start()
            continue
        if isinstance(result, ParseError):
            draft.errors.append(result)
        draft.blocks += 1
        position = boundary.end()
        index += 1
    draft.outside(position, len(text))
    return draft.finish()


class StreamParser:
    """Reads a message as it is written: any chunking gives the same result as ``parse``.

    It keeps the text and parses it again only when somebody asks for ``closed`` after a character
    arrived that can close a block. Left out: a true streaming automaton; messages are short and
    at most a few blocks long.
    """

    def __init__(self, parse: Callable[[str], Parsed], closing: str) -> None:
        self._parse = parse
        self._closing = closing
        self._chunks: list[str] = []
        self._closed = 0
        self._stale = False

    def feed(self, chunk: str) -> None:
        self._chunks.append(chunk)
        self._stale = self._stale or self._closing in chunk

    @property
    def closed(self) -> int:
        """``parse(what came so far).blocks``."""
        if self._stale:
            self._closed = self.finish().blocks
            self._stale = False
        return self._closed

    def finish(self) -> Parsed:
        """``parse`` of everything fed; feeding may go on afterwards."""
        text = "".join(self._chunks)
        self._chunks = [text]
        return self._parse(text)
