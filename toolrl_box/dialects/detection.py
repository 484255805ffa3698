"""Which dialect the assistant messages of a log are written in, and whether its tags are gone.

Input: assistant texts (a bounded sample is read) and whether the log keeps calls apart from them.
Output: ``Detected`` with the counts that decided. Deterministic; the order of the messages
matters only through the bound.

A dialect's own tags decide; a message counts for every dialect whose tags it holds. Only when no
message holds any, bare calls are read: as Llama's JSON (``parameters``), or as those of a dialect
whose tags were special tokens that the log dropped. A log whose calls stand apart, or that has
none, is ``plain``.

Left out: logs that mix dialects; the one with most messages is taken and the counts show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from toolrl_box.dialects.table import Dialect, dialect

SAMPLE = 2000
"""Messages that are read at most."""
HEAD = 20_000
"""Characters of a message that are read at most."""

_TAGS = {
    "hermes": re.compile(
        r"<tool_call>(?!\s*<function=)|(?<!</function>)(?<!</function>\n)</tool_call>"
    ),
    "xml": re.compile(r"<function=[^<>\n]{1,200}>\s*(?:<parameter=|</function>)"),
    "llama3": re.compile(
        r"<\|python_tag\|>|<\|eo[mt]_id\|>|<\|start_header_id\|>|<function=[^<>\n]{1,200}>\s*\{"
    ),
    "mistral": re.compile(r"\[TOOL_CALLS\]|\[ARGS\]"),
    "deepseek": re.compile(r"<｜tool▁(?:call|sep)"),
    "harmony": re.compile(r"<\|channel\|>(?:analysis|commentary|final)|<\|start\|>assistant"),
    "anthropic": re.compile(r"</?(?:antml:)?function_calls>|<(?:antml:)?invoke name=\""),
    "pythonic": re.compile(r"^\s*\[\s*[A-Za-z_][\w.\-]{0,200}\(\s*(?:\)|\w+\s*=)", re.MULTILINE),
    "icrl": re.compile(r"</?(?:search|answer|information)>"),
}
_PARAMETERS = re.compile(r'"parameters"\s{0,8}:')
_BARE = {
    # In this order: the first that reads a bare call in the message counts.
    "harmony": re.compile(
        r"\A\s*(?:analysis|commentary|final)[\s\S]*assistant(?:final|commentary|analysis)"
        r"|\A\s*(?:commentary|analysis)?\s?to=functions\.|assistantcommentary to=functions\."
    ),
    "deepseek": re.compile(r"^\s*function[A-Za-z_][\w.\-]{0,127}\s{0,4}\n```(?:json)?\s*\{", re.M),
    "mistral": re.compile(
        r"^\s*\[\s*\{\s*\"name\"\s*:|^\s*[A-Za-z_][\w.\-]{0,127}\{\s*(?:\"|\})", re.MULTILINE
    ),
    "llama3": re.compile(
        r"\A\s*(?:\{\s*\"(?:type\"\s*:\s*\"function\"\s*,\s*\")?(?:name|function)\"\s*:"
        r"|[A-Za-z_]\w*\.call\()"
    ),
    "hermes": re.compile(r"^\s*\{\s*\"name\"\s*:\s*\"[^\"\n]{0,200}\"\s*,\s*\"arguments\"", re.M),
}


@dataclass(frozen=True, slots=True)
class Detected:
    """``evidence``: messages per dialect that hold its tags, or (``stripped``) its bare calls;
    ``messages``: how many were read."""

    name: str
    stripped: bool
    messages: int
    evidence: Mapping[str, int]

    @property
    def dialect(self) -> Dialect:
        return dialect(self.name, stripped=self.stripped)


def detect(texts: Iterable[str], *, structured_calls: bool = False) -> Detected:
    """The dialect of a log's assistant texts; the first ``SAMPLE`` are read.

    ``structured_calls``: the log keeps calls apart from the text. Then bare calls in texts are
    debris, not a dialect.
    """
    sample = [text[:HEAD] for text in islice(texts, SAMPLE)]
    tagged = {
        name: sum(1 for text in sample if tags.search(text) is not None)
        for name, tags in _TAGS.items()
    }
    if any(tagged.values()):
        return _most(tagged, stripped=False, messages=len(sample))
    bare = dict.fromkeys(_BARE, 0)
    for text in () if structured_calls else sample:
        name = _bare_dialect(text)
        if name is not None:
            bare[name] += 1
    if any(bare.values()):
        return _most(bare, stripped=True, messages=len(sample))
    return Detected("plain", False, len(sample), {})


def _most(counts: Mapping[str, int], *, stripped: bool, messages: int) -> Detected:
    # max() keeps the first of equals, so ties follow the table's order.
    name = max(counts, key=lambda key: counts[key])
    found = {key: count for key, count in counts.items() if count}
    return Detected(name, stripped, messages, found)


def _bare_dialect(text: str) -> str | None:
    for name, calls in _BARE.items():
        if calls.search(text) is not None and (
            name != "llama3" or _PARAMETERS.search(text) or "{" not in text or ".call(" in text
        ):
            return name
    return None
