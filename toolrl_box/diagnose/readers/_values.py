"""JSON values one after another, whatever the layout: a file that is one long list, a single
object, or objects that follow each other over several lines.

A list is read item by item; memory is bounded by the longest item, and an item beyond the limit is
damage, as is the place where the JSON breaks: there is no way to find the next item behind it.
The standard decoder reads each item from a window of text that doubles until the item fits.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

from toolrl_box.diagnose.readers._json import BadRecord, Convert, converted, json_lines, loads
from toolrl_box.diagnose.readers._open import UNREADABLE, open_bytes, why
from toolrl_box.diagnose.readers._source import Source
from toolrl_box.diagnose.records import Damage, Origin, Record

_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def json_objects(source: Source, convert: Convert) -> Iterator[Record]:
    """The records of a file that is one list or one object a line; a damaged line then costs that
    line only."""
    start = source.head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"[") or start.partition(b"\n")[0].strip() == b"{":
        return json_values(source, convert)
    return json_lines(source, convert)


def json_values(source: Source, convert: Convert) -> Iterator[Record]:
    """The records that ``convert`` makes of each object; damage as in :func:`json_lines`. The line
    of a record is the one on which its object begins."""
    for item in values(source):
        if isinstance(item, Damage):
            yield item
        else:
            yield from converted(item[0], lambda: loads(item[1]), convert)  # noqa: B023 - used up at once


def values(source: Source) -> Iterator[tuple[Origin, str] | Damage]:
    """The text of each value, list items apart."""
    window = None
    try:
        with open_bytes(source.path) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
            window = _Window(text, source.limit)
            inside = window.peek() == "["
            if inside:
                window.skip(1)
            while (first := window.peek()) and not (inside and first == "]"):
                if first == ",":
                    window.skip(1)
                    continue
                yield source.origin(window.line), window.take()
    except BadRecord as error:
        yield Damage(source.origin(window.line if window else 1), str(error))
    except UNREADABLE as error:
        line = window.line if window else 1
        yield Damage(source.origin(line), f"the file cannot be read on: {why(error)}")


class _Window:
    """The part of a text that is being looked at."""

    def __init__(self, stream: io.TextIOWrapper, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._text = ""
        self._at = 0
        self.line = 1

    def peek(self) -> str:
        """The next character that is no space, empty at the end."""
        while True:
            blank = _SPACE.match(self._text, self._at)
            assert blank is not None
            self.skip(blank.end() - self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_CHUNK):
                return ""

    def skip(self, count: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def take(self) -> str:
        """The text of the value that begins here. Raises BadRecord if it is broken or too long."""
        wanted = _CHUNK
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise BadRecord("nested too deeply; what follows is not read") from None
            except ValueError as error:
                end, reason = len(self._text), str(error)
            else:
                reason = ""
            # A number at the very end may go on.
            if not reason and end < len(self._text):
                value = self._text[self._at : end]
                self.skip(end - self._at)
                return value
            if len(self._text) - self._at > self._limit:
                limit = f"{self._limit / 2**20:.1f} MB"
                raise BadRecord(f"a value is longer than {limit}; what follows is not read")
            if not self._more(wanted):
                if reason:
                    raise BadRecord(f"not JSON: {reason[:200]}; what follows is not read")
                value = self._text[self._at : end]
                self.skip(end - self._at)
                return value
            wanted *= 2

    def _more(self, count: int) -> bool:
        chunk = self._stream.read(count)
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)
