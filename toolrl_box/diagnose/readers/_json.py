"""Foreign JSON made harmless, and turned into records one at a time.

``json`` of the standard library reads it; what would raise later is caught here: nesting beyond
the recursion limit, integers with thousands of digits, lone surrogates (no file can hold them as
UTF-8; they become U+FFFD). NaN and infinities stay: a NaN in a log is evidence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from toolrl_box.diagnose.readers._open import raw_lines
from toolrl_box.diagnose.readers._source import Source
from toolrl_box.diagnose.records import Damage, Origin, Record
from toolrl_box.formats import too_deep

MAX_DEPTH = 100
"""Nesting of schemas and dumped arguments; what is deeper makes later code recurse too far."""
_DECODER = json.JSONDecoder()
_NAME = re.compile(r'"(\w{1,40})"\s*:')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class BadRecord(ValueError):
    """A record that is not what the format says; its text is the reason for :class:`Damage`."""


def loads(text: str | bytes) -> Any:
    """The value. Raises BadRecord."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    try:
        value = json.loads(text)
        return _whole_characters(value) if _SURROGATE.search(text) else value
    except RecursionError:
        raise BadRecord("nested too deeply") from None
    except ValueError as error:
        raise BadRecord(f"not JSON: {str(error)[:200]}") from None


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    return value


Convert = Callable[[Origin, dict[str, Any]], Iterable[Record]]
"""What a reader makes of one object; it raises BadRecord where the object is not of the format."""


def json_lines(source: Source, convert: Convert) -> Iterator[Record]:
    """The records that ``convert`` makes of each line's object; damage where it raises BadRecord,
    where the line is no JSON object, and where there is no line to read."""
    for item in raw_lines(source):
        if isinstance(item, Damage):
            yield item
        elif not item[1].isspace():
            yield from converted(item[0], lambda: loads(item[1]), convert)  # noqa: B023 - used up at once


def converted(origin: Origin, load: Callable[[], Any], convert: Convert) -> Iterable[Record]:
    """What ``convert`` makes of one object, or its damage."""
    try:
        value = load()
        if not isinstance(value, dict):
            raise BadRecord(f"an object was expected, not {kind(value)}")
        return tuple(convert(origin, value))
    except BadRecord as error:
        return (Damage(origin, str(error)),)
    except RecursionError:
        return (Damage(origin, "nested too deeply"),)


@lru_cache(maxsize=1)
def glance(head: bytes) -> tuple[dict[str, Any], frozenset[str]]:
    """The first object of a file's head, and the names in it.

    The object is empty when the head holds none or breaks off inside it; the names are then all
    that stand before a colon, so that a format can still be known by them. Kept for the next
    reader that is asked about the same file.
    """
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text.startswith(("{", "[")):
        return {}, frozenset()
    try:
        first, _ = _DECODER.raw_decode(text.removeprefix("[").lstrip())
    except (ValueError, RecursionError):
        return {}, frozenset(_NAME.findall(text))
    return (first, frozenset(first)) if isinstance(first, dict) else ({}, frozenset())


def kind(value: Any) -> str:
    """``a list``, ``a number``: what JSON calls the value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def number(value: Any) -> float | None:
    """A figure; None for anything else. Booleans count as 0 and 1, as in most reward functions."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def numbers(value: Any) -> dict[str, float]:
    """The figures of an object, the rest left out."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): found for key, item in value.items() if (found := number(item)) is not None}


def whole(value: Any) -> int | None:
    """A step or count: a whole number, also as ``12.0``; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and abs(value) < 10**12 else None


def text(value: Any) -> str | None:
    """A text, or a number written out; None for anything else or nothing."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and abs(value) < 10**30 else None


def dumps(value: Any) -> str:
    """JSON text with the characters left readable. Raises BadRecord beyond :data:`MAX_DEPTH`."""
    if too_deep(value, MAX_DEPTH):
        raise BadRecord("nested too deeply")
    return json.dumps(value, ensure_ascii=False, default=str)
