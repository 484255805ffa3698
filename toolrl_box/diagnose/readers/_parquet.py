"""Rows of a parquet file, a few at a time; a damaged file is named, never fatal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolrl_box.diagnose.readers._json import Convert, converted
from toolrl_box.diagnose.readers._open import UNREADABLE, why
from toolrl_box.diagnose.readers._source import Source
from toolrl_box.diagnose.records import Damage, Record

MAGIC = b"PAR1"
_BATCH = 64
_BUFFER = 1 << 20  # pages are streamed; without it a column of a row group is read as a whole
_BROKEN = (*UNREADABLE, ValueError, NotImplementedError)


def schema(source: Source) -> pa.Schema | None:
    """The columns and their types; None when it is no parquet file that can be read."""
    if not source.head.startswith(MAGIC):
        return None
    try:
        return pq.read_schema(source.path)
    except _BROKEN:
        return None


def parquet_rows(
    source: Source,
    convert: Convert,
    columns: Sequence[str] | None = None,
) -> Iterator[Record]:
    """The records that ``convert`` makes of each row; ``columns``: those to read, if not all."""
    line = 0
    try:
        with pq.ParquetFile(source.path, pre_buffer=False, buffer_size=_BUFFER) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    line += 1
                    yield from converted(source.origin(line), lambda: row, convert)  # noqa: B023
    except _BROKEN as error:
        yield Damage(source.origin(line + 1), f"the file cannot be read on: {why(error)}")


def without_padding(value: Any) -> Any:
    """The value without the nulls by which parquet gives all objects of a column the same keys."""
    if isinstance(value, Mapping):
        return {key: without_padding(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_padding(item) for item in value]
    return value
