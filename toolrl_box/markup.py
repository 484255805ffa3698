"""The tags of the in-context format, as data: their names and their brackets.

Input: nothing. Output: :class:`Markup`, which the format writes and reads with and which a recipe
of the search base draws at random, so that a model learns to follow tags and not to know them.

Left out: tags that differ in more than name and bracket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Tag = Literal["think", "search", "information", "answer"]
TAGS: tuple[Tag, ...] = ("think", "search", "information", "answer")


@dataclass(frozen=True, slots=True)
class Markup:
    """One drawing of tag names and brackets (before an opening name, before a closing name, after
    either); the default is the paper's (arXiv 2603.08068)."""

    think: str = "think"
    search: str = "search"
    information: str = "information"
    answer: str = "answer"
    brackets: tuple[str, str, str] = ("<", "</", ">")

    @property
    def names(self) -> dict[Tag, str]:
        """What each tag is called here."""
        own = (self.think, self.search, self.information, self.answer)
        return dict(zip(TAGS, own, strict=True))

    def open(self, tag: Tag) -> str:
        return f"{self.brackets[0]}{self.names[tag]}{self.brackets[2]}"

    def close(self, tag: Tag) -> str:
        return f"{self.brackets[1]}{self.names[tag]}{self.brackets[2]}"

    def wrap(self, tag: Tag, content: str) -> str:
        return self.open(tag) + content + self.close(tag)

    def marks(self) -> Iterator[tuple[str, str]]:
        """(text, name) of all eight tags; a closing tag's name begins with ``/``."""
        for tag in TAGS:
            yield self.open(tag), tag
            yield self.close(tag), f"/{tag}"
