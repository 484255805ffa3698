"""The training formats whose tags no tokenizer drops: read by ``formats``, after a thinking block.

``xml`` is Qwen3-Coder's, ``pythonic`` that of ACEBench, BFCL's prompting mode and Llama 4 (a list
of Python calls), ``icrl`` the search tags of ICRL and Search-R1, which have thoughts of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolrl_box.dialects._embedded import after_thought
from toolrl_box.formats import Icrl, Pythonic, Xml
from toolrl_box.types import Parsed


@dataclass(frozen=True)
class Embedded:
    """A training format as a dialect. Its tags are plain text, so ``stripped`` changes nothing."""

    format: Xml | Pythonic | Icrl
    stripped: bool = False

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def control_tokens(self) -> tuple[str, ...]:
        return self.format.control_tokens

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        if isinstance(self.format, Icrl):
            return self.format.parse(text)
        return after_thought(text, self.format.parse)
