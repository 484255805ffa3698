"""Scalars alone: a CSV with a header, or JSONL, of one step's figures a line.

A column ``step`` (or ``global_step``, ``_step``, …) and at least one figure whose name is known
(``_scalars``). verl's file logger writes ``{"step", "data": {…}}`` (verl 0.9.1,
``utils/tracking.py``, ``FileLogger``); Weights & Biases exports CSV columns as ``run - name``.
Cells that are no number are left out. Such a log gives a diagnosis of the scalars only.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolrl_box.diagnose.readers._json import BadRecord, converted, glance, json_lines
from toolrl_box.diagnose.readers._open import lines
from toolrl_box.diagnose.readers._scalars import is_scalars, scalars, spelled
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.records import Damage, Origin, Record

_CSV = (".csv", ".tsv")


@dataclass(frozen=True)
class ScalarLog(Plain):
    name = "scalars"
    suffixes = (*_CSV, ".jsonl")

    def fits(self, source: Source) -> bool:
        if source.suffix in _CSV:
            first = source.head.partition(b"\n")[0].decode("utf-8-sig", errors="replace")
            return is_scalars(dict.fromkeys(_header(source, first)))
        first_row, _ = glance(source.head)
        return is_scalars(_flat(first_row))

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            found = scalars(source, origin, _flat(row))
            if found is None:
                raise BadRecord("no step with figures")
            yield found

        if source.suffix in _CSV:
            return _csv(source, convert)
        return json_lines(source, convert)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    data = row.get("data")
    return {**row, **data} if isinstance(data, dict) else row


def _csv(source: Source, convert: Any) -> Iterator[Record]:
    names: Sequence[str] = ()
    for item in lines(source):
        if isinstance(item, Damage):
            yield item
        elif not names:
            names = _header(source, item[1])
        else:
            yield from converted(item[0], lambda: _cells(source, names, item[1]), convert)  # noqa: B023


def _header(source: Source, line: str) -> list[str]:
    """The columns' names, without a run's name before them."""
    try:
        return [spelled(cell.rpartition(" - ")[2].strip()) for cell in _split(source, line)]
    except BadRecord:
        return []


def _cells(source: Source, names: Sequence[str], line: str) -> dict[str, float]:
    cells = _split(source, line)
    if len(cells) != len(names):
        raise BadRecord(f"{len(cells)} cells under a header of {len(names)}")
    found = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            found[name] = float(cell)
        except ValueError:
            continue  # empty, or a text
    return found


def _split(source: Source, line: str) -> list[str]:
    """The cells of one line (a line break inside quotes does not occur in tables of figures)."""
    delimiter = "\t" if source.suffix == ".tsv" else ","
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:
        raise BadRecord(f"not CSV: {error}") from None
