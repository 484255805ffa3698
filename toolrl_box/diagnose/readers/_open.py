"""Opens a log, packed or not, and gives its lines without ever holding more than one.

Whether a file is packed is seen from its first bytes, not from its name. Invalid UTF-8 becomes
U+FFFD, a byte order mark is dropped, lines may end in CRLF; a line above the limit, and a file that
breaks off inside its packing, become :class:`Damage`.

zstd is unpacked by pyarrow, which the package needs anyhow (``compression.zstd`` came with Python
3.14).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from toolrl_box.diagnose.readers._source import HEAD_BYTES, Source
from toolrl_box.diagnose.records import Damage, Origin

UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What opening or unpacking a file may raise, whatever it holds."""

_GZIP, _ZSTD, _BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"
_BLOCK = 1 << 20


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unpacked. Raises what :data:`UNREADABLE` names, then or when read."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(path), _BLOCK)
    if magic == _ZSTD:
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), _BLOCK)
    return path.open("rb", buffering=_BLOCK)


def head(path: Path) -> bytes:
    """The first :data:`HEAD_BYTES` of the file, unpacked, or as far as it can be read. Raises what
    :data:`UNREADABLE` names when it cannot be opened."""
    found = b""
    with open_bytes(path) as stream, contextlib.suppress(*UNREADABLE):  # `read` names the reason
        while len(found) < HEAD_BYTES and (more := stream.read(HEAD_BYTES - len(found))):
            found += more
    return found


def why(error: Exception) -> str:
    """The error on one line, without the path, which the origin has."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def raw_lines(source: Source, *, blank: bool = False) -> Iterator[tuple[Origin, bytes] | Damage]:
    """The lines without their ends, those that are empty only if ``blank``, and the damage between
    them."""
    line = 0
    try:
        with open_bytes(source.path) as stream:
            while raw := stream.readline(source.limit + 1):
                line += 1
                if len(raw) > source.limit and not raw.endswith(b"\n"):
                    size = len(raw)
                    del raw
                    size += _skip_line(stream)
                    yield Damage(source.origin(line), _too_long(size, source.limit))
                    continue
                if line == 1:
                    raw = raw.removeprefix(_BOM)
                raw = raw.rstrip(b"\r\n")
                if raw or blank:
                    yield source.origin(line), raw
    except UNREADABLE as error:
        yield Damage(source.origin(line + 1), f"the file cannot be read on: {why(error)}")


def _skip_line(stream: BinaryIO) -> int:
    size = 0
    while rest := stream.readline(_BLOCK):
        size += len(rest)
        if rest.endswith(b"\n"):
            break
    return size


def _too_long(size: int, limit: int) -> str:
    return f"a line of {size / 2**20:.1f} MB is longer than {limit / 2**20:.1f} MB"


def lines(source: Source, *, blank: bool = False) -> Iterator[tuple[Origin, str] | Damage]:
    """:func:`raw_lines` as text."""
    for item in raw_lines(source, blank=blank):
        yield item if isinstance(item, Damage) else (item[0], item[1].decode(errors="replace"))
