"""Text that holds no calls: logs whose calls stand apart from the text, or that have none.

Every call syntax in such text is debris: the server's parser left it there.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.dialects._calls import UNTAGGED
from toolrl_box.dialects._draft import Draft
from toolrl_box.types import Parsed


@dataclass(frozen=True)
class Plain:
    """Natural language; ``stripped`` changes nothing."""

    stripped: bool = False
    name = "plain"
    control_tokens: tuple[str, ...] = ()

    def parse(self, text: str) -> Parsed:
        """Find the debris in one assistant message. Never raises; linear time."""
        draft = Draft(text, UNTAGGED)
        draft.skip_thought()
        return draft.finish()
