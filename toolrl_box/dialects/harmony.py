"""gpt-oss harmony: messages with a channel, closed by ``<|end|>``, ``<|call|>`` or ``<|return|>``.

    <|channel|>analysis<|message|>The user wants the weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>
    {"city": "Oslo"}<|call|>

(no line breaks between them). ``analysis`` is thought; ``final`` and a ``commentary`` without
recipient are natural language; a recipient makes a call. The stop token of the last message may be
missing. In a log without special tokens (``stripped``) the same reads
``analysisThe user wants …assistantcommentary to=functions.get_weather json{"city": "Oslo"}``.

A message without any of this is natural language. Code for the tool ``python`` is one argument,
``code``. Left out: the order of channels, and content types other than JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from re import Match

from toolrl_box.dialects._calls import UNTAGGED, read_arguments, value_end
from toolrl_box.dialects._draft import Draft
from toolrl_box.types import Parsed, ParseError, ToolCall

CHANNELS = ("analysis", "commentary", "final")

_TOKEN = re.compile(r"<\|(start|end|message|channel|constrain|return|call)\|>")
_HEADER = re.compile(
    r"(?:<\|start\|>(?P<role>[^<]{0,200}))?(?:<\|channel\|>(?P<channel>[^<]{0,200}))?"
    r"(?:<\|constrain\|>[^<]{0,40})?<\|message\|>"
)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?(?P<name>[\w.\-]{1,128})")
_CLOSED = ("<|end|>", "<|call|>", "<|return|>")

# Without tokens: the words of a header run into the text before and after them.
_BARE = re.compile(
    r"(?:\A\s*|assistant)(?:\s?to=functions\.(?P<first>[\w.\-]{1,128}?))?"
    r"(?P<channel>analysis|commentary|final)(?:\s?to=(?:functions\.)?(?P<name>[\w.\-]{1,128}))?"
    r"(?:\s?(?:json|code)\s?(?=\{))?"
)
_RESULT = re.compile(r"\s*functions\.[\w.\-]{1,128} ?to=assistant")


@dataclass(frozen=True)
class Harmony:
    """gpt-oss messages, with their tokens or without (``stripped``)."""

    stripped: bool = False
    name = "harmony"
    control_tokens = (
        *("<|channel|>", "<|call|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"),
        *("<|constrain|>", "<|start|>assistant", "<|channel|>commentary to=functions."),
        *("<|channel|>analysis", "<|channel|>final", "<|constrain|>json"),
    )

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        reader = _Reader(Draft(text, UNTAGGED))
        if self.stripped and _TOKEN.search(text) is None:
            headers = list(_BARE.finditer(text))
            if headers and not text[: headers[0].start()].strip():
                reader.read_bare(headers)
        elif "<|" in text:
            reader.read()
        return replace(reader.draft.finish(), asides=tuple(reader.asides))


@dataclass(slots=True)
class _Reader:
    draft: Draft
    asides: list[tuple[int, int]] = field(default_factory=list)

    def _aside(self, end: int) -> None:
        """Markup or thought up to ``end``."""
        if self.draft.position < end:
            self.asides.append((self.draft.position, end))
            self.draft.position = end

    def read(self) -> None:
        """Headers and bodies in turn. What stands between two messages is read as language, so a
        token there is debris."""
        draft = self.draft
        text = draft.text
        marks = [mark.start() for mark in _TOKEN.finditer(text)]
        index = 0
        while index < len(marks):
            start = marks[index]
            header = _HEADER.match(text, start)
            if header is None:
                index += 1
                continue
            draft.say(start)
            index = _after(marks, index, header.end())
            end = marks[index] if index < len(marks) else len(text)
            closed = next((tag for tag in _CLOSED if text.startswith(tag, end)), "")
            self._message(header, end, closed)
            index += 1 if closed else 0

    def _message(self, header: Match[str], end: int, closed: str) -> None:
        draft, over = self.draft, end + len(closed)
        role, channel = (header["role"] or "assistant").strip(), (header["channel"] or "").strip()
        recipient = _RECIPIENT.search(channel) or _RECIPIENT.search(role)
        name = re.split(r"\W", channel, maxsplit=1)[0] or "final"
        if not role.startswith("assistant"):
            draft.broken("role_debris", header.start(), over, f"a message of {role}")
        elif name not in CHANNELS:
            draft.broken("stray_tag", *header.span(), f"no channel '{name}'")
        elif not closed and end < len(draft.text):
            kind = "stray_tag" if recipient is None else "unclosed_call"
            draft.broken(kind, header.start(), end, "goes on without the end of a message")
        elif recipient is not None:
            result = self._call(recipient["name"], header.end(), end)
            if isinstance(result, ParseError) and not closed and result.kind == "bad_json":
                result = replace(result, kind="unclosed_call", start=header.start())
            draft.block(header.start(), over, result)
        elif name == "analysis":
            self._aside(over)
        else:
            self._aside(header.end())
            draft.say(end)
            self._aside(over)

    def _call(self, name: str, start: int, end: int) -> ToolCall | ParseError:
        text = self.draft.text
        if name == "python" and not text[start:end].lstrip().startswith("{"):
            return ToolCall(name, {"code": text[start:end].strip()})
        if not text[start:end].strip():
            return ParseError("empty_call", start, end, "no arguments")
        return read_arguments(name, text, start, end)

    def read_bare(self, headers: list[Match[str]]) -> None:
        """The same without tokens: a header's words begin each part."""
        draft = self.draft
        for header, end in _parts(headers, len(draft.text)):
            name = header["first"] or header["name"]
            if name is not None:
                self._bare_call(name, header, end)
            elif header["channel"] == "analysis":
                self._aside(end)
            else:
                self._aside(header.end())
                draft.say(end)

    def _bare_call(self, name: str, header: Match[str], end: int) -> None:
        draft, text = self.draft, self.draft.text
        opening = (
            header.end() + len(text[header.end() : end]) - len(text[header.end() : end].lstrip())
        )
        if not text.startswith("{", opening, end):
            draft.block(header.start(), end, self._call(name, opening, end))
            return
        close = value_end(text, opening, end)
        if close is None:
            draft.broken("unclosed_call", header.start(), end, "the JSON is not closed")
            return
        draft.block(header.start(), close, read_arguments(name, text, opening, close))
        result = _RESULT.match(text, close, end)
        if result is not None:
            draft.broken("fabricated_result", result.start(), end, "a message of the tool")


def _after(marks: list[int], index: int, position: int) -> int:
    while index < len(marks) and marks[index] < position:
        index += 1
    return index


def _parts(headers: list[Match[str]], length: int) -> Iterator[tuple[Match[str], int]]:
    for index, header in enumerate(headers):
        yield header, headers[index + 1].start() if index + 1 < len(headers) else length
