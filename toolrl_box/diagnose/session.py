"""A diagnosis while a log is read, in one pass or as it grows.

Input: paths. Output: a :class:`Diagnosis` and examples, at any time. :meth:`Session.read` reads
what is new since it was last called: files that did not change are not opened; a file that grew is
read from the start, but only the records beyond those already counted are judged and added. When a
file shrank, everything is read afresh.

Left out: readers (``diagnose.sources``) and states (``diagnose.judge``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from toolrl_box import __version__
from toolrl_box.diagnose.aggregate import Aggregate
from toolrl_box.diagnose.conclude import conclude
from toolrl_box.diagnose.diagnosis import DamagedLine, Diagnosis, InputFile
from toolrl_box.diagnose.judge import Judge, JudgedRollout
from toolrl_box.diagnose.records import Checkpoint, Damage, Judged, LoggedRollout, Record, Scalars
from toolrl_box.diagnose.sources import Logs, detect
from toolrl_box.probe.policies import DEFAULT, Policies

MAX_FILES = 500
"""Files that a diagnosis names; further ones count together."""
MAX_DAMAGE = 50
"""Damaged records that a diagnosis names; all are counted."""


@dataclass(slots=True)
class _File:
    format: str
    rollouts: int = 0
    scalars: int = 0
    damaged: int = 0
    records: int = 0
    mark: tuple[int, int] = (0, 0)  # size and time of the last look


class Session:
    """One log under one tool format."""

    def __init__(
        self,
        tool_format: str | None = None,
        *,
        log_format: str | None = None,
        policies: Policies = DEFAULT,
        seed: int = 0,
    ) -> None:
        """Raises ConfigError for a tool format that is none."""
        self._tool_format, self._log_format, self._seed = tool_format, log_format, seed
        self._policies = policies
        self._begin()

    def _begin(self) -> None:
        self.aggregate = Aggregate(seed=self._seed)
        self._judge = Judge(self._tool_format, self._policies)
        self._files: dict[Path, _File] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._refused: tuple[Damage, ...] = ()
        self._damage: list[DamagedLine] = []
        self._damaged = 0
        self._records = 0

    def read(self, paths: Sequence[Path]) -> int:
        """Read what is new at ``paths``; returns the number of new records.

        Raises DataError when nothing there is a log, ConfigError for an unknown log format.
        """
        logs = detect(paths, self._log_format)
        if any(self._shrank(source.path) for _, source in logs.files):
            self._begin()
        before = self._records
        self._checkpoints = {str(c.path): c for c in logs.checkpoints}
        self._refused = logs.damage
        self.add(self._new(logs))
        return self._records - before

    def add(self, records: Iterable[Record]) -> None:
        """Judge and add up records of any origin."""
        for record in self._judge.stream(records):
            self._records += 1
            match record:
                case JudgedRollout():
                    self.aggregate.add_rollout(record.rollout, record.findings, record.wrong)
                case Scalars():
                    self.aggregate.add_scalars(record)
                case Checkpoint():
                    self._checkpoints[str(record.path)] = record
                case Damage():
                    self._damaged += 1
                    if len(self._damage) < MAX_DAMAGE:
                        self._damage.append(_line(record))
                case LoggedRollout():
                    raise AssertionError("the judge lets no rollout pass")

    def diagnosis(self, name: str) -> Diagnosis:
        damage = [*map(_line, self._refused), *self._damage]
        return conclude(
            self.aggregate,
            name=name,
            written_by=f"toolrl-box {__version__}",
            inputs=_inputs(self._files),
            tool_format=self._judge.seen,
            policies=self._policies,
            checkpoints=sorted(self._checkpoints.values(), key=lambda c: (c.step, str(c.path))),
            damaged=self._damaged + len(self._refused),
            damage=damage[:MAX_DAMAGE],
            bad_schemas=self._judge.bad_schemas,
        )

    def examples(self) -> Iterator[Judged]:
        return self.aggregate.examples()

    def _shrank(self, path: Path) -> bool:
        known = self._files.get(path)
        return known is not None and _mark(path)[0] < known.mark[0]

    def _new(self, logs: Logs) -> Iterator[Record]:
        for reader, source in logs.files:
            mark = _mark(source.path)
            file = self._files.setdefault(source.path, _File(sys.intern(reader.name)))
            if file.mark == mark:
                continue
            file.mark = mark
            for record in islice(reader.read(source), file.records, None):
                file.records += 1
                file.rollouts += isinstance(record, LoggedRollout)
                file.scalars += isinstance(record, Scalars)
                file.damaged += isinstance(record, Damage)
                yield record


def diagnose(
    paths: Sequence[Path],
    *,
    log_format: str | None = None,
    tool_format: str | None = None,
    seed: int = 0,
) -> tuple[Diagnosis, tuple[Judged, ...]]:
    """The diagnosis of the logs at ``paths``, and examples; raises as :meth:`Session.read`."""
    session = Session(tool_format, log_format=log_format, seed=seed)
    session.read(paths)
    return session.diagnosis(name_of(paths)), tuple(session.examples())


def name_of(paths: Sequence[Path], parts: int = 1) -> str:
    """What a diagnosis of these paths is called: the last part of the first (or so many parts),
    and how many more."""
    first = "/".join(paths[0].resolve().parts[-parts:])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"


def _mark(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # gone since it was listed: the reader will say so
        return (0, 0)
    return (found.st_size, found.st_mtime_ns)


def _line(damage: Damage) -> DamagedLine:
    return DamagedLine(file=str(damage.origin.file), line=damage.origin.line, reason=damage.reason)


def _inputs(files: dict[Path, _File]) -> tuple[InputFile, ...]:
    rows = [
        InputFile(
            path=str(path),
            format=file.format,
            rollouts=file.rollouts,
            scalars=file.scalars,
            damaged=file.damaged,
        )
        for path, file in files.items()
    ]
    if len(rows) <= MAX_FILES:
        return tuple(rows)
    rest = rows[MAX_FILES:]
    together = InputFile(
        path=f"({len(rest)} more files)",
        format="",
        rollouts=sum(row.rollouts for row in rest),
        scalars=sum(row.scalars for row in rest),
        damaged=sum(row.damaged for row in rest),
    )
    return (*rows[:MAX_FILES], together)
