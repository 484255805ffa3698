"""Readers: one file per framework, each turns a log into records.

A new format is one new file and one line in ``READERS``. The first that fits a file reads it, so
the more particular stand before the more general.
"""

from __future__ import annotations

from toolrl_box.diagnose.readers._source import HEAD_BYTES, MAX_RECORD, Reader, Source
from toolrl_box.diagnose.readers.bfcl import Bfcl
from toolrl_box.diagnose.readers.chat import Chat
from toolrl_box.diagnose.readers.own import Own
from toolrl_box.diagnose.readers.prime_rl import PrimeRl
from toolrl_box.diagnose.readers.scalars import ScalarLog
from toolrl_box.diagnose.readers.tau_bench import TauBench
from toolrl_box.diagnose.readers.transcript import Transcript
from toolrl_box.diagnose.readers.trl import TrainerState, Trl
from toolrl_box.diagnose.readers.verifiers import Verifiers
from toolrl_box.diagnose.readers.verl import Verl
from toolrl_box.diagnose.readers.verl_tool import VerlTool

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Own(),
        Trl(),
        TrainerState(),
        PrimeRl(),
        Verifiers(),
        Verl(),
        VerlTool(),
        TauBench(),
        Bfcl(),
        Chat(),
        ScalarLog(),
        Transcript(),
    )
}

__all__ = ["HEAD_BYTES", "MAX_RECORD", "READERS", "Reader", "Source"]
