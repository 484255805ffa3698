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
from toolrl_box.diagnose.readers._open import UNREADABLE, lines, why
from toolrl_box.diagnose.readers._open import head as beginning
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._turns import MARKED, Frame, begins, split
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
        head = source.head.decode("utf-8-sig", errors="replace")
        return _frame(head) is not None or _has_headings(head)

    def read(self, source: Source) -> Iterator[Record]:
        try:
            head = beginning(source.path).decode("utf-8-sig", errors="replace")
        except UNREADABLE as error:
            return iter((Damage(source.origin(0), f"cannot be opened: {why(error)}"),))
        layout = _Layout(_frame(head), _has_headings(head))
        if layout.frame is None and not layout.headings and not _separated(head):
            return _one_a_line(source)
        return _dialogues(source, layout)


def _frame(head: str) -> Frame | None:
    return next((frame for frame in MARKED if frame.seen_in(head)), None)


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


@dataclass(frozen=True)
class _Layout:
    """How the file tells dialogues and messages apart."""

    frame: Frame | None
    headings: bool

    def is_header(self, line: str) -> bool:
        """Whether a message begins with this line; without roles every line may begin one."""
        if self.frame is not None:
            return self.frame.header.match(line) is not None
        return not self.headings or _HEADING.match(line) is not None

    def begins(self, line: str) -> bool:
        """Whether a dialogue begins with this line."""
        if self.frame is not None:
            return begins(line, self.frame)
        heading = _HEADING.match(line) if self.headings else None
        return heading is not None and ROLES[heading[1].lower()] == "system"

    def messages(self, lines: list[str]) -> tuple[LoggedMessage, ...]:
        if self.headings and self.frame is None:
            return tuple(_under_headings(lines))
        text = "\n".join(lines)
        if self.frame is not None:
            return tuple(split(text, self.frame, first="assistant"))
        return (LoggedMessage("assistant", text),)


@dataclass
class _Block:
    """The lines of one dialogue, no more than the limit allows."""

    limit: int
    first: int = 0
    lines: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, line: int, text: str) -> None:
        self.first = self.first or line
        self.size += len(text) + 1
        if self.size <= self.limit:
            self.lines.append(text)


def _dialogues(source: Source, layout: _Layout) -> Iterator[Record]:
    block = _Block(source.limit)
    held: list[tuple[int, str]] = []  # a separator, and blank lines after it
    for item in lines(source, blank=True):
        if isinstance(item, Damage):
            yield item
            continue
        line, text = item[0].line, item[1]
        if _SEPARATOR.fullmatch(text) or (held and not text.strip()):
            held.append((line, text))
            continue
        # A rule inside a message separates nothing: after a separator comes a message's beginning.
        if (held and layout.is_header(text)) or layout.begins(text):
            yield from _records(source, block, layout)
            block = _Block(source.limit)
        else:
            for place, separator in held:
                block.add(place, separator)
        held = []
        block.add(line, text)
    yield from _records(source, block, layout)


def _records(source: Source, block: _Block, layout: _Layout) -> Iterable[Record]:
    origin = source.origin(block.first)
    if block.size > block.limit:
        yield Damage(origin, f"a dialogue is longer than {block.limit / 2**20:.1f} MB")
    elif any(line.strip() for line in block.lines) and (messages := layout.messages(block.lines)):
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
