"""Readers: one file per framework, each turns a log into records.

A new format is one new file and one line in ``READERS``. The first that fits a file reads it, so
the more particular stand before the more general.
"""

from __future__ import annotations

from toolrl_box.diagnose.readers._source import HEAD_BYTES, MAX_RECORD, Reader, Source
from toolrl_box.diagnose.readers.chat import Chat
from toolrl_box.diagnose.readers.trl import TrainerState, Trl

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Trl(),
        TrainerState(),
        Chat(),
    )
}

__all__ = ["HEAD_BYTES", "MAX_RECORD", "READERS", "Reader", "Source"]
