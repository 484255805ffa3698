"""The data set of the early-warning benchmark: what many runs logged, and when they collapsed.

Input: run folders by regime, and the seeds of the calibration split. Output: a folder that needs
nothing else::

    runs.json         version, note, and an entry per run: regime, seed, split, class, onsets,
                      resolved config and environment
    signals.parquet   a row per step and run: `run`, `step`, `phase_kind`, the signals of
                      toolrl_box.readings (NaN where a step has none), and two columns that no
                      detector sees: `eval_sampled` and `healthy`, which the onsets are made of

Splits are by seed: a seed is in one split in every regime, because runs of one seed see the same
tasks. Left out: the slot-by-token summary of the probe and the sampled messages.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from toolrl_box.durable import reading, write_atomic, writing
from toolrl_box.errors import DataError, RunFolderError
from toolrl_box.onsets import KINDS, Kind, Onsets, onsets
from toolrl_box.readings import SIGNALS, readings, records
from toolrl_box.runlog import RunLog, RunView
from toolrl_box.types import Reading

VERSION = 1
INDEX, TABLE = "runs.json", "signals.parquet"
TRUTH = ("eval_sampled", "healthy")
KEYS = ("run", "step", "phase_kind")
Split = Literal["calibration", "test"]


class Entry(BaseModel):
    """One run. ``run`` is ``<regime>/seed<seed>``; onsets are steps or None."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    run: str
    regime: str
    seed: int
    split: Split
    kind: Kind
    reward_onset: int | None
    structural_onset: int | None
    steps: int
    config: dict[str, Any]
    environment: dict[str, Any]

    @property
    def onsets(self) -> Onsets:
        return Onsets(self.kind, self.reward_onset, self.structural_onset)


class Index(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1]
    date: str
    note: str
    signals: dict[str, str]
    runs: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Logged:
    """A run of the data set: its entry, and what a detector would have seen."""

    entry: Entry
    readings: tuple[Reading, ...]


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Every run folder at or below ``paths``, each once. Raises RunFolderError for a path that
    holds none."""
    found: dict[Path, Path] = {}
    for path in paths:
        here = list(_below(path))
        if not here:
            raise RunFolderError(f"{path} is not a run folder and holds none")
        for folder in here:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def is_finished(run: RunView) -> bool:
    """A run that was stopped or failed has no class: its end is missing."""
    return any(event["event"] == "finish" for event in run.journal())


def by_regime(paths: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The finished runs by the folder they lie in, and the unfinished ones: ``study/rl/seed1`` of
    the path ``study`` belongs to ``study/rl``."""
    regimes: dict[str, list[Path]] = {}
    unfinished = []
    for folder in run_folders(paths):
        if not is_finished(RunLog.open(folder)):
            unfinished.append(folder)
            continue
        given = next(path for path in paths if folder.is_relative_to(path))
        holder = Path(os.path.abspath(folder)).parent
        top = holder if folder == given else Path(os.path.abspath(given))
        regimes.setdefault(holder.relative_to(top.parent).as_posix(), []).append(folder)
    return regimes, unfinished


def judged(run: RunView) -> Onsets:
    """Onsets and class of a finished run."""
    return _judged(_truth(run))


def write_dataset(
    regimes: Mapping[str, Sequence[Path]],
    output: Path,
    calibration_seeds: Collection[int],
    note: str,
) -> Index:
    """Write the data set into a new or empty folder.

    Raises RunFolderError for a folder in use or that is no run, DataError for a run that is not
    finished or that is there twice, and for a calibration seed that no run has.
    """
    _check_free(output)
    entries: dict[str, Entry] = {}
    rows: list[dict[str, Any]] = []
    for regime, folders in regimes.items():
        for folder in folders:
            run = RunLog.open(folder)
            if not is_finished(run):
                raise DataError(f"{folder} is not a finished run: it cannot be judged")
            truth, found = _truth(run), judged(run)
            seed = int(run.config["seed"])
            name = f"{regime}/seed{seed}"
            if name in entries:
                raise DataError(f"{folder}: there is a run of regime '{regime}' with seed {seed}")
            entries[name] = Entry(
                run=name,
                regime=regime,
                seed=seed,
                split="calibration" if seed in calibration_seeds else "test",
                kind=found.kind,
                reward_onset=found.reward,
                structural_onset=found.structural,
                steps=truth[-1]["step"],
                config=run.config,
                environment=run.environment,
            )
            values = {one.step: one.values for one in readings(run)}
            rows += [{**row, "run": name, **values.get(row["step"], {})} for row in truth]
    if missing := set(calibration_seeds) - {entry.seed for entry in entries.values()}:
        raise DataError(f"no run has the calibration seed {min(missing)}")
    now = datetime.now(UTC).date().isoformat()
    runs = tuple(entries.values())
    index = Index(version=VERSION, date=now, note=note, signals=dict(SIGNALS), runs=runs)
    _write(output, index, rows)
    return index


def describe(index: Index) -> Iterator[str]:
    """How many runs of each class every regime and split holds, for a terminal."""
    yield f"{'regime':<40}{'split':<14}" + "".join(f"{kind:>12}" for kind in KINDS)
    for regime, split in sorted({(entry.regime, entry.split) for entry in index.runs}):
        kinds = [e.kind for e in index.runs if (e.regime, e.split) == (regime, split)]
        counts = "".join(f"{kinds.count(kind):>12}" for kind in KINDS)
        yield f"{regime:<40}{split:<14}{counts}"


def load_dataset(folder: Path) -> list[Logged]:
    """The runs in the order of the index. Raises DataError, in one line, for a folder that is not
    a sound data set of this version."""
    index = _index(folder)
    with reading(folder / TABLE):
        table = pq.read_table(folder / TABLE).to_pandas()
    if missing := {*KEYS, *TRUTH, *index.signals} - set(table.columns):
        raise DataError(f"{folder / TABLE} has no column '{min(missing)}'")
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in records(table):
        rows.setdefault(row["run"], []).append(row)
    names = [entry.run for entry in index.runs]
    if set(names) != set(rows) or len(set(names)) != len(names):
        odd = min({name for name in names if names.count(name) > 1} | set(names) ^ set(rows))
        raise DataError(f"{folder}: run '{odd}' is not once in {INDEX} and in {TABLE}")
    splits: dict[int, Split] = {}
    for entry in index.runs:
        if splits.setdefault(entry.seed, entry.split) != entry.split:
            raise DataError(f"{folder}: seed {entry.seed} is in both splits")
    return [_logged(entry, rows[entry.run], index.signals, folder) for entry in index.runs]


def _logged(
    entry: Entry, rows: Sequence[Mapping[str, Any]], signals: Iterable[str], folder: Path
) -> Logged:
    steps = [row["step"] for row in rows]
    if steps != sorted(set(steps)) or steps[-1] != entry.steps:
        raise DataError(f"{folder}: the steps of run '{entry.run}' are not in order and complete")
    if _judged(rows) != entry.onsets:
        raise DataError(f"{folder}: the onsets of run '{entry.run}' are not those of its figures")
    seen = [
        Reading(row["step"], {name: row[name] for name in signals if math.isfinite(row[name])})
        for row in rows
        if row["step"] > 0 and math.isfinite(row["bank_nll"])
    ]
    return Logged(entry, tuple(seen))


def _truth(run: RunView) -> list[dict[str, Any]]:
    """Rows with step, kind of phase and what the onsets are made of."""
    return [
        {
            "step": row["step"],
            "phase_kind": row["phase_kind"],
            "eval_sampled": row["eval_sampled"],
            "healthy": row["state_healthy_call"] + row["state_healthy_response"],
        }
        for row in records(run.metrics())
    ]


def _judged(rows: Iterable[Mapping[str, Any]]) -> Onsets:
    rows = list(rows)
    # Only RL steps sample messages: the others have no healthy share.
    return onsets(_points(rows, "eval_sampled"), _points(rows, "healthy"))


def _points(rows: Iterable[Mapping[str, Any]], column: str) -> list[tuple[int, float]]:
    return [(row["step"], row[column]) for row in rows if math.isfinite(row[column])]


def _write(output: Path, index: Index, rows: Sequence[Mapping[str, Any]]) -> None:
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(rows, columns=[*KEYS, *SIGNALS, *TRUTH])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink, compression="zstd")
        write_atomic(output / TABLE, sink.getvalue().to_pybytes())
        text = json.dumps(index.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        write_atomic(output / INDEX, text.encode())


def _check_free(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(f"{output} is not empty and is never overwritten: choose another")


def _index(folder: Path) -> Index:
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} is not an early-warning data set: it has no {INDEX}")
    with reading(path):
        given = json.loads(path.read_bytes())
    version = given.get("version") if isinstance(given, dict) else None
    if version != VERSION:
        raise DataError(f"{path} has version {version}; this toolrl reads version {VERSION}")
    try:
        return Index.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg'].lower()}") from None


def _below(path: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(path):
        names.sort()
        if "config.yaml" in files:
            names.clear()
            yield Path(folder)
