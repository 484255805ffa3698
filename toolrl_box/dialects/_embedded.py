"""Reading a message with one of the training formats, behind its thinking block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from toolrl_box.frames import leading_thought
from toolrl_box.types import Parsed


def after_thought(text: str, parse: Callable[[str], Parsed]) -> Parsed:
    """``parse`` of what follows the thinking block that opens the message; spans stay those of
    ``text``."""
    thought = leading_thought(text)
    if thought is None:
        return parse(text)
    shift = thought[1]
    parsed = parse(text[shift:])
    return replace(
        parsed,
        errors=tuple(
            replace(error, start=error.start + shift, end=error.end + shift)
            for error in parsed.errors
        ),
        spans=tuple((start + shift, end + shift) for start, end in parsed.spans),
    )
