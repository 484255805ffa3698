"""Reads JSON that a model wrote, so that whatever it wrote becomes a value or one exception.

Input: text and a position. Output: the value and where it ends, or :class:`BadJSON`. The standard
decoder is used, with what it lets through refused: NaN and infinities (no JSON), lone surrogates
(no tokenizer can encode them back), numbers and nesting so large that later code would fail.

Left out: repair. A call that needs repair is a malformed call, and that is what we measure.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 64
"""Nesting beyond this is refused: schema checks and encoders downstream recurse."""


class BadJSON(ValueError):
    """Not an acceptable JSON value; ``position`` is where reading failed."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def finite_float(digits: str) -> float:
    """``float(digits)``; raises ValueError when it overflows."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=finite_float)


def dumps(value: Any) -> str:
    """JSON as Qwen's templates write it: default separators, text left readable."""
    return json.dumps(value, ensure_ascii=False)


def encodable(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8, that is, holds no lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def too_deep(value: Any, limit: int) -> bool:
    """Whether objects and arrays are nested in more than ``limit`` levels."""
    level = [value]
    for _ in range(limit):
        children: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                children.extend(item.values())
            elif isinstance(item, list):
                children.extend(item)
        if not children:
            return False
        level = children
    return True


def read_json(text: str) -> tuple[Any, int]:
    """The JSON value that ``text`` begins with (after white space) and the index after it.

    Pass a slice, not a long text with an offset: the standard decoder counts the lines before an
    error, which would make many errors in one text quadratic.
    """
    start = len(text) - len(text.lstrip(" \t\n\r"))
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise BadJSON(error.msg, error.pos) from None
    except RecursionError:
        raise BadJSON("nested too deeply", start) from None
    except ValueError as error:
        raise BadJSON(str(error), start) from None
    if text.count("{", start, end) + text.count("[", start, end) > MAX_DEPTH and too_deep(
        value, MAX_DEPTH
    ):
        raise BadJSON("nested too deeply", start)
    if "\\u" in text and not encodable(dumps(value)):
        raise BadJSON("lone surrogate", start)
    return value, end


def read_json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that is all of ``text``, or None."""
    try:
        value, end = read_json(text)
    except BadJSON:
        return None
    return value if isinstance(value, dict) and not text[end:].strip() else None
