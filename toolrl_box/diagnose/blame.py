"""Which control token a defect is about, and in which slot it is missing or out of place.

Input: a message's text and its finding. Output: :class:`Blame`. Slots are those of the probe
(docs/laboratory.md), so that a log and a probe speak of the same places.

Left out: tokens of the model's own vocabulary; a log of texts does not show them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from toolrl_box.types import Finding

_TAG = re.compile(r"<[^<>\s]{1,30}>|\[/?[A-Z_]{2,24}\]")
_MISSING = {
    "unclosed_call": ("closing tag (missing)", "closing_call"),
    "untagged_call": ("opening tag (missing)", "start_call_due"),
    "bad_json": ("call body", "inside_call"),
    "debris_after_call": ("text after a call", "after_call"),
    "truncated": ("stop token (missing)", "end_text"),
    "empty": ("stop token", "start_text_due"),
    "punctuation_only": ("punctuation", "start_text_due"),
    "loop": ("repetition", "inside_text"),
    "unknown_tool": ("tool name", "inside_call"),
    "schema_violation": ("argument", "inside_call"),
    "speaks_as_user": ("a user's turn", "after_call"),
    "fabricated_result": ("a tool's result", "after_call"),
    "role_word_only": ("role word", "start_text_due"),
}
_PRESENT = {
    "stray_tag": "inside_text",
    "role_debris": "inside_text",
    "bare_call_tag": "after_open",
    "repeated_fragments": "inside_text",
}
WORDS = frozenset(token for token, _ in _MISSING.values()) | {k.replace("_", " ") for k in _PRESENT}
"""What stands for a token where none is in the text."""


@dataclass(frozen=True, slots=True)
class Blame:
    """``token`` as it stands in the text, or what is missing, in words."""

    token: str
    slot: str


def blame(text: str, finding: Finding) -> Blame:
    """Never raises; a kind that this module does not know is its own name, in no slot."""
    if finding.kind in _MISSING:
        return Blame(*_MISSING[finding.kind])
    slot = _PRESENT.get(finding.kind, "elsewhere")
    tag = _TAG.search(text, finding.start, max(finding.end, finding.start + 32))
    return Blame(tag[0] if tag else finding.kind.replace("_", " "), slot)
