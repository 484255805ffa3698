"""Plain text transcripts.

Three layouts, told apart by the beginning of the file:

- rendered dialogues with a frame's markers (see ``_turns``), or with headings ``User:``,
  ``Assistant:``, ``Tool:``, ``System:`` at the start of a line. A system message, and a line of
  three or more ``-``, ``=`` or ``*`` alone, begins a new dialogue;
- messages between such separator lines, without roles: each an assistant's message;
- anything else, only when the format is forced: one assistant message a line.

What the log does not say: everything but the texts. A dialogue above the limit of a record is
damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from toolrl_box.diagnose.readers._messages import ROLES, prompt_length, tools_in
from toolrl_box.diagnose.readers._open import lines
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._turns import MARKED, Frame, split
from toolrl_box.diagnose.records import Damage, LoggedMessage, LoggedRollout, Origin, Record

_SEPARATOR = re.compile(r"[-=*]{3,}\s*")
_HEADING = re.compile(
    r"(?:\*\*|\[|#+ )?(system|user|human|assistant|tool|observation)(?:\*\*|\])?:(?:\*\*)?[ \t]*",
    re.I,
)
_TEXT = (".txt", ".log", ".md", ".out", "")


@dataclass(frozen=True)
class Transcript(Plain):
    name = "transcript"
    suffixes = (".txt", ".log", ".md")

    def fits(self, source: Source) -> bool:
        if source.suffix not in _TEXT:
            return False
        head = source.head.decode(errors="replace")
        return _frame(head) is not None or _has_headings(head)

    def read(self, source: Source) -> Iterator[Record]:
        head = source.head.decode(errors="replace")
        frame = _frame(head)
        if frame is None and not _has_headings(head) and not _separated(head):
            return _one_a_line(source)
        return _dialogues(source, frame, with_headings=_has_headings(head))


def _frame(head: str) -> Frame | None:
    return next((frame for frame in MARKED if frame.header.search(head)), None)


def _has_headings(head: str) -> bool:
    roles = {
        found[1].lower()
        for line in head.splitlines()
        if (found := _HEADING.match(line)) is not None
    }
    return "assistant" in roles and len(roles) > 1


def _separated(head: str) -> bool:
    return any(_SEPARATOR.fullmatch(line) for line in head.splitlines())


def _one_a_line(source: Source) -> Iterator[Record]:
    for item in lines(source):
        if isinstance(item, Damage):
            yield item
        elif item[1].strip():
            yield _rollout(source, item[0], (LoggedMessage("assistant", item[1]),))


@dataclass
class _Block:
    """The lines of one dialogue."""

    first: int = 0
    lines: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, line: int, text: str) -> None:
        self.first = self.first or line
        self.lines.append(text)
        self.size += len(text) + 1


def _dialogues(source: Source, frame: Frame | None, *, with_headings: bool) -> Iterator[Record]:
    block = _Block()
    for item in lines(source, blank=True):
        if isinstance(item, Damage):
            yield item
            continue
        origin, text = item
        ends = _SEPARATOR.fullmatch(text) is not None
        if ends or _begins(text, frame, with_headings):
            yield from _block_records(source, block, frame, with_headings)
            block = _Block()
        if not ends and block.size <= source.limit:
            block.add(origin.line, text)
    yield from _block_records(source, block, frame, with_headings)


def _begins(text: str, frame: Frame | None, with_headings: bool) -> bool:
    """Whether a dialogue begins with this line: a system message."""
    header = frame.header.match(text) if frame else _HEADING.match(text) if with_headings else None
    return header is not None and ROLES.get(header[1].lower()) == "system"


def _block_records(
    source: Source, block: _Block, frame: Frame | None, with_headings: bool
) -> Iterable[Record]:
    text = "\n".join(block.lines)
    if not text.strip():
        return
    origin = source.origin(block.first)
    if block.size > source.limit:
        yield Damage(origin, f"a dialogue is longer than {source.limit / 2**20:.1f} MB")
        return
    if frame is not None:
        messages = tuple(split(text, frame, first="assistant"))
    elif with_headings:
        messages = tuple(_under_headings(block.lines))
    else:
        messages = (LoggedMessage("assistant", text),)
    if messages:
        yield _rollout(source, origin, messages)


def _under_headings(block: Iterable[str]) -> Iterator[LoggedMessage]:
    role, gathered = None, list[str]()
    for line in block:
        heading = _HEADING.match(line)
        if heading is None:
            gathered.append(line)
            continue
        if role is not None:
            yield LoggedMessage(ROLES[role], "\n".join(gathered).rstrip("\n"))
        role, gathered = heading[1].lower(), [line[heading.end() :]]
    if role is not None:
        yield LoggedMessage(ROLES[role], "\n".join(gathered).rstrip("\n"))


def _rollout(source: Source, origin: Origin, messages: tuple[LoggedMessage, ...]) -> LoggedRollout:
    return LoggedRollout(
        origin=origin,
        id=source.id(origin.line),
        messages=messages,
        prompt_length=prompt_length(messages),
        step=source.step,
        tools=tools_in(messages),
    )
