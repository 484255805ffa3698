"""Hermes and Qwen: ``<tool_call>`` tags around a JSON object, as ``formats.hermes`` reads them.

Two things are added for logs. A thinking block that opens the message is not searched for calls,
as a server's reasoning parser takes it away first. And where the tags were special tokens that a
log dropped (``stripped``), the bare JSON objects are the calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.dialects._calls import UNTAGGED, take_calls
from toolrl_box.dialects._draft import NEVER, Draft
from toolrl_box.dialects._embedded import after_thought
from toolrl_box.formats import Hermes
from toolrl_box.types import Parsed

_FORMAT = Hermes()


@dataclass(frozen=True)
class HermesDialect:
    """JSON calls in ``<tool_call>`` tags, or bare when those were ``stripped``."""

    stripped: bool = False
    name = _FORMAT.name
    control_tokens = _FORMAT.control_tokens

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        if not self.stripped or "<tool_call>" in text:
            return after_thought(text, _FORMAT.parse)
        draft = Draft(text, NEVER)
        draft.skip_thought()
        while (head := UNTAGGED.search(text, draft.position)) is not None:
            take_calls(draft, head.start())
        return draft.finish()
