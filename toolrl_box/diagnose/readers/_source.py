"""A file to read, and the reader's side of the contract.

A :class:`Source` is a file that was found inside the paths that the user gave; ``head`` is the
beginning of its contents, unpacked, for a cheap look at its format; once that is known, no more
than the first characters are kept. A :class:`Reader` says whether it knows such
a file and turns it into records.

Left out: how files are found and readers chosen (``diagnose.sources``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from toolrl_box.diagnose.records import Origin, Record

HEAD_BYTES = 1 << 16
"""How much of a file is looked at to know its format."""
MAX_RECORD = 64 << 20
"""Longest line or value in bytes; a longer one is skipped, named as damage and never held."""

_PACKED = (".gz", ".zst")
_STEP_IN_NAME = re.compile(r"(?:^|[^a-z0-9])(?:step|completions)s?[-_]?(?:val[-_])?(\d+)", re.I)
_STEP_FOLDER = re.compile(r"(?:global_)?step[-_]?(\d+)", re.I)
_MAX_STEP_DIGITS = 12


@dataclass(frozen=True)
class Source:
    """``path`` as the user will see it; ``inside``: the folders between the given path and the
    file, and the file's name, from which a step may be read; ``limit``: see :data:`MAX_RECORD`."""

    path: Path
    inside: tuple[str, ...]
    head: bytes
    limit: int = MAX_RECORD

    @cached_property
    def name(self) -> str:
        """The file's name in lower case, without the ending of a packer."""
        name = self.path.name.lower()
        for ending in _PACKED:
            name = name.removesuffix(ending)
        return name

    @cached_property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @cached_property
    def stem(self) -> str:
        return Path(self.name).stem

    def origin(self, line: int) -> Origin:
        return Origin(self.path, line)

    def id(self, line: int) -> str:
        """A name for a rollout that its log did not name."""
        return f"{self.stem}:{line}"

    @cached_property
    def step(self) -> int | None:
        """The step that the file's name says, or the nearest folder's: ``12.jsonl``,
        ``completions_00012.parquet``, ``rollouts/step_12/train/traces.jsonl``."""
        if self.stem.isdecimal():
            return _step(self.stem)
        found = _STEP_IN_NAME.search(self.stem)
        folders = map(_STEP_FOLDER.fullmatch, reversed(self.inside[:-1]))
        found = found or next((folder for folder in folders if folder), None)
        return _step(found[1]) if found else None


def _step(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MAX_STEP_DIGITS else None


class Reader(Protocol):
    """A format. Frozen dataclasses implement it; ``suffixes`` are the endings a file may have when
    the format is forced on a folder."""

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def fits(self, source: Source) -> bool:
        """Whether the name and the head speak for this format. Never raises."""

    def select(self, sources: Sequence[Source]) -> Sequence[Source]:
        """Which of the files that fit are to be read, in order (all, for most formats)."""

    def read(self, source: Source) -> Iterator[Record]:
        """The records in the order of the file. Never raises for what the file holds."""


@dataclass(frozen=True)
class Plain:
    """What most readers share."""

    def select(self, sources: Sequence[Source]) -> Sequence[Source]:
        return sources
