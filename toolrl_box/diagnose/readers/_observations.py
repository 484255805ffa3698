"""Splits a response that holds the environment's answers without any marker around them.

Some frameworks append what a tool returned to the response's own tokens and log the returned texts
beside it. Each returned text is looked for in the response, in order; what stands between is the
model's. A text that is not found there (cut, or wrapped differently) splits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from toolrl_box.diagnose.records import LoggedMessage

MAX_TURNS = 1000
"""More are not looked for: each costs a search of the response."""


def observations(interactions: Any) -> list[str]:
    """The returned texts of verl-tool's ``tool_interact_info``: a list of ``{"action", "obs", …}``;
    ``obs`` may be a text or ``{"obs": text}``."""
    found = []
    for item in interactions[:MAX_TURNS] if isinstance(interactions, list) else ():
        text = item.get("obs") if isinstance(item, dict) else None
        if isinstance(text, dict):
            text = text.get("obs")
        if isinstance(text, str) and text.strip():
            found.append(text)
    return found


def split_at(response: str, returned: Sequence[str]) -> Iterator[LoggedMessage]:
    """Assistant messages and, between them, the returned texts as tool messages."""
    start = 0
    for text in returned:
        at = response.find(text, start)
        if at < 0:
            continue
        yield LoggedMessage("assistant", response[start:at])
        yield LoggedMessage("tool", text)
        start = at + len(text)
    if start < len(response) or start == 0:
        yield LoggedMessage("assistant", response[start:])
