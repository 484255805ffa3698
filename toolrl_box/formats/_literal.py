"""Reads a bracketed literal character by character: a JSON object, or a Python list of calls.

Input: a state and the next character. Output: the next state, or None when no literal goes on like
that. The format's grammar asks it what may come next inside a call.

A state is finite in number: of a number only that it is one is remembered, brackets stop at the
depth that the parsers refuse. Left out: the exact spelling of numbers and of ``\\u`` escapes (what
is wrong there is let through, nothing right is refused), and keys given twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from toolrl_box.formats._json import MAX_DEPTH

SPACE = " \t\n\r"
CALLS = "L"
_CLOSING = {"[": "]", "{": "}", "(": ")", CALLS: "]"}
_ESCAPABLE = "\"'\\/bfnrtu"
_IN_NUMBER = "0123456789.eE+-"


class Reading(NamedTuple):
    """Where a literal stands: the open brackets (``L`` is a list of calls), what is expected, and
    the quote of the string or the part of the word that is being read."""

    stack: str
    expects: str
    part: str = ""

    @property
    def done(self) -> bool:
        return not self.stack and self.expects == "separator"


OBJECT = Reading("", "object")
"""Before a JSON object."""
FIRST_CALL = Reading(f"{CALLS}(", "argument or end")
"""After the ``[name(`` with which a list of calls begins."""

_AFTER_COMMA = {"{": "key", "[": "value", "(": "argument", CALLS: "call"}
# White space may stand before these.
_SPACED = {"object", "separator", "colon", "equals", "unpacked", *_AFTER_COMMA.values()}


@dataclass(frozen=True)
class Literals:
    """A dialect: its quotes, its words, and whether a comma may stand before a closing bracket."""

    quotes: str
    words: tuple[str, ...]
    trailing_comma: bool

    def step(self, at: Reading, char: str) -> Reading | None:
        expects, may_close = at.expects.removesuffix(" or end"), at.expects.endswith(" or end")
        if char in SPACE and expects in _SPACED:
            return at
        if may_close and char == _CLOSING[at.stack[-1]]:
            return at._replace(stack=at.stack[:-1], expects="separator")
        match expects:
            case "object" | "unpacked":
                return self._pushed(at, "{", "key or end") if char == "{" else None
            case "value":
                return self._value(at, char)
            case "key":
                return Reading(at.stack, "key text", char) if char in self.quotes else None
            case "text" | "key text":
                return self._text(at, char)
            case "text escape" | "key text escape":
                fits = char in _ESCAPABLE
                return at._replace(expects=expects.removesuffix(" escape")) if fits else None
            case "colon":
                return at._replace(expects="value") if char == ":" else None
            case "number" | "word":
                return self._scalar(at, char)
            case "separator":
                return self._separator(at, char)
        return self._call(at, expects, char)

    def _pushed(self, at: Reading, bracket: str, expects: str) -> Reading | None:
        deep = len(at.stack) >= MAX_DEPTH
        return None if deep else Reading(at.stack + bracket, expects)

    def _value(self, at: Reading, char: str) -> Reading | None:
        if char in self.quotes:
            return Reading(at.stack, "text", char)
        if char == "{":
            return self._pushed(at, "{", "key or end")
        if char == "[":
            return self._pushed(at, "[", "value or end")
        if char == "-" or char in "0123456789":
            return Reading(at.stack, "number", "-" if char == "-" else "0")
        begins = any(word.startswith(char) for word in self.words)
        return Reading(at.stack, "word", char) if begins else None

    def _text(self, at: Reading, char: str) -> Reading | None:
        if char == "\\":
            return at._replace(expects=f"{at.expects} escape")
        if char == at.part:
            return Reading(at.stack, "colon" if at.expects == "key text" else "separator")
        return at if char >= " " else None  # JSON has no raw control characters in strings

    def _scalar(self, at: Reading, char: str) -> Reading | None:
        if at.expects == "number":
            if char in _IN_NUMBER and (at.part == "0" or char in "0123456789"):
                return at._replace(part="0")
            complete = at.part == "0"
        else:
            word = at.part + char
            if any(known.startswith(word) for known in self.words):
                return at._replace(part=word)
            complete = at.part in self.words
        return self.step(Reading(at.stack, "separator"), char) if complete else None

    def _separator(self, at: Reading, char: str) -> Reading | None:
        if not at.stack:
            return None
        top = at.stack[-1]
        if char == _CLOSING[top]:
            return Reading(at.stack[:-1], "separator")
        if char == ",":
            closing = " or end" if self.trailing_comma else ""
            return Reading(at.stack, _AFTER_COMMA[top] + closing)
        return None

    def _call(self, at: Reading, expects: str, char: str) -> Reading | None:
        """Inside a list of calls: names of calls and of arguments."""
        word = begins_name(char) or (char in "0123456789")
        match expects:
            case "call":
                return at._replace(expects="call name") if begins_name(char) else None
            case "call name":
                if char == "(":
                    return self._pushed(at, "(", "argument or end")
                return at if word or char in ".-" else None
            case "argument":
                if char == "*":
                    return at._replace(expects="star")
                return at._replace(expects="argument name") if begins_name(char) else None
            case "argument name":
                if word:
                    return at
                return self.step(at._replace(expects="equals"), char)
            case "equals":
                return at._replace(expects="value") if char == "=" else None
            case _:
                assert expects == "star", expects
                return at._replace(expects="unpacked") if char == "*" else None


def begins_name(char: str) -> bool:
    return char == "_" or (char.isascii() and char.isalpha())


JSON = Literals('"', ("true", "false", "null"), trailing_comma=False)
PYTHON = Literals("\"'", ("True", "False", "None"), trailing_comma=True)
