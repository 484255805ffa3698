"""The only writer and reader of run folders.

Job: keep everything a run says about itself such that a process killed at any moment can go on
and end with the same bytes. Input: plain values from the training loop. Output::

    RUN_DIR/
      config.yaml            the resolved configuration
      environment.json       versions, platform, threads
      sessions.jsonl         one line per process start (time, argv, pid, resumed_from)
      lock                   held while a process writes here
      journal.jsonl          phases, outcomes, alarms, checkpoints; no wall clock inside
      metrics.parquet        one row per step
      probe.parquet          one row per step, slot and token
      probe_contexts/step_NNNNNN.parquet
      rollouts/step_NNNNNN.parquet
      reflections/step_NNNNNN.parquet  what an SFT phase that began with this step was taught
      detector.json, checkpoints/, report/, evaluation.json, judge.jsonl  written by others

Step 0 is the state before training; from 1 on, ``step`` counts every update step, RL and SFT.
All but ``sessions.jsonl``, ``judge.jsonl`` and the ``seconds_*`` columns is reproducible.

The contract of resuming: :meth:`RunLog.commit` makes everything logged so far durable and returns
a cursor; whoever writes a checkpoint stores the cursor in it (so log the checkpoint's own event
*before* committing); :meth:`RunLog.rewind` takes the folder back to exactly that point.

Left out: checkpoints (staged by the checkpoint writer) and any judgement (see ``report``).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from toolrl_box.durable import (
    acquire,
    append_line,
    check_unlocked,
    fsync,
    reading,
    write_atomic,
    writing,
)
from toolrl_box.errors import RunFolderError, unknown
from toolrl_box.types import STATES

EVENTS = (
    *("phase_start", "phase_end", "alarm", "checkpoint", "rollback", "best", "finish"),
    "reflections",
)

_INT, _FLOAT, _TEXT = pa.int64(), pa.float64(), pa.string()
# Column -> type. Floats are NaN where a step has no such figure (an SFT step has no reward).
METRICS: dict[str, pa.DataType] = {
    **{"step": _INT, "rl_step": _INT, "phase": _INT, "phase_kind": _TEXT},
    **dict.fromkeys(
        (
            *("lr", "loss", "reward", "reward_spread", "zero_spread", "entropy", "grad_norm"),
            *("clip_fraction", "kl", "bank_nll", "bank_kl", "p_call"),
            *("sft_term_nll", "sft_term_weight"),
            *("completion_tokens", "messages", "valid_calls"),
            *("sampled_tokens", "sft_tokens"),
            *(f"state_{state}" for state in STATES),
            *("eval_greedy", "eval_sampled"),
            *("seconds_rollout", "seconds_forward", "seconds_backward"),
            *("seconds_probe", "seconds_logging", "seconds_step"),
        ),
        _FLOAT,
    ),
}
# Families of float columns that not every run has: kinds of defects and categories depend on the
# world, a mismatch of sampler and trainer on who samples.
METRIC_FAMILIES = ("kind_", "eval_greedy_", "eval_sampled_", "mismatch_")

RIGHT_TOKEN = "<right>"  # noqa: S105 - stands for the right token of each context in `probe`
PROBE = pa.schema(
    {"step": _INT, "slot": _TEXT, "token": _TEXT}
    | dict.fromkeys(("mean_logprob", "q05", "q50", "q95"), _FLOAT)
    | {"n": _INT}
)
ROLLOUTS = pa.schema(
    {"step": _INT, "group": _INT, "member": _INT}
    | {"task_id": _TEXT, "category": _TEXT, "source": _TEXT}
    | {"reward": _FLOAT, "reward_parts": _TEXT, "success": _FLOAT}
    | {"stop_reason": _TEXT, "error": _TEXT, "messages": _TEXT}
    | {"token_ids": pa.list_(pa.int32())}
    | {"loss_mask": pa.list_(pa.bool_()), "logprobs": pa.list_(pa.float32())}
)
REFLECTIONS = pa.schema(
    {"step": _INT, "rollout_step": _INT, "group": _INT, "member": _INT, "task_id": _TEXT}
    | {"author": _TEXT, "dialogues": _TEXT, "error": _TEXT}
    | {"prompt_tokens": _INT, "completion_tokens": _INT, "cost": _FLOAT}
)
# Columns that callers see as values and the file holds as JSON text.
JSON_COLUMNS = ("reward_parts", "messages")
EVALUATION = "evaluation.json"
STUDY = "study.json"  # in a folder of runs: every cell, also those that have no folder
STEP_FOLDERS = ("rollouts", "probe_contexts", "reflections")
# What a process killed before it wrote config.yaml leaves behind: as good as empty.
UNBORN = ("lock", ".environment.json.tmp", "environment.json", ".config.yaml.tmp")


class Cursor(TypedDict):
    """A committed point: bytes of the journal and the last step whose rows belong to it."""

    journal_bytes: int
    step: int


START: Cursor = {"journal_bytes": 0, "step": -1}
"""Before everything: rewinding to it restarts a run that died before its first checkpoint."""


class RunView:
    """Read-only view of a run folder, also while the run is going on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = _read_config(path)

    @property
    def environment(self) -> dict[str, Any]:
        path = self.path / "environment.json"
        with reading(path):
            value: dict[str, Any] = json.loads(path.read_bytes())
        return value

    def journal(self) -> list[dict[str, Any]]:
        """All complete events in order; a last line cut short by a kill is not there yet."""
        path = self.path / "journal.jsonl"
        with reading(path):
            lines = path.read_bytes().split(b"\n")[:-1]
        events = []
        for number, line in enumerate(lines, start=1):
            try:
                events.append(json.loads(line))
            except ValueError as error:
                raise RunFolderError(f"{path} is damaged: line {number} is not JSON") from error
        return events

    def metrics(self) -> pd.DataFrame:
        """One row per step, ordered; columns :data:`METRICS` and :data:`METRIC_FAMILIES`."""
        return _frame(self.path / "metrics.parquet")

    def probe(self) -> pd.DataFrame:
        """Columns :data:`PROBE`; log-probs in nats over the contexts of a slot."""
        return _frame(self.path / "probe.parquet")

    def contexts(self, step: int) -> pd.DataFrame:
        """What the probe measured in each single context at ``step``."""
        return _frame(_step_file(self.path, "probe_contexts", step))

    def rollouts(self, step: int) -> pd.DataFrame:
        """Columns :data:`ROLLOUTS`; ``messages`` a list of dicts, ``reward_parts`` a dict."""
        table = _frame(_step_file(self.path, "rollouts", step))
        for column in JSON_COLUMNS:
            table[column] = [json.loads(text) for text in table[column]]
        return table

    def evaluations(self) -> list[dict[str, Any]]:
        """What ``ood`` wrote about this run's checkpoints, by step; nothing is an empty list."""
        path = self.path / EVALUATION
        if not path.exists():
            return []
        with reading(path):
            value: list[dict[str, Any]] = json.loads(path.read_bytes())
        return value

    def reflections(self) -> list[dict[str, Any]]:
        """Rows :data:`REFLECTIONS` of the whole run in order, ``dialogues`` as values: each a
        question and an answer, with the rollout that they are about."""
        rows: list[dict[str, Any]] = []
        for _, path in _step_files(self.path / "reflections"):
            rows += _read_parquet(path).to_pylist()
        return [{**row, "dialogues": json.loads(row["dialogues"])} for row in rows]

    def rollout_steps(self) -> list[int]:
        return [step for step, _ in _step_files(self.path / "rollouts")]


class RunLog:
    """The writer. Use as a context manager, or :meth:`close` it to free the folder."""

    def __init__(self, path: Path, lock: FileIO, *, fresh: bool) -> None:
        """Use :meth:`create` or :meth:`resume`."""
        self.path = path
        self._lock = lock
        self._ready = fresh
        self._unsynced: list[Path] = []
        self._metrics = _empty(METRICS)
        self._probe = PROBE.empty_table()
        self._new_metrics: list[dict[str, Any]] = []
        self._new_probe: list[Mapping[str, Any]] = []
        self._last_step = START["step"]
        # Unbuffered: an event is with the operating system when `event` returns.
        self._journal = FileIO(path / "journal.jsonl", "ab")

    @classmethod
    def create(
        cls, path: Path | str, config: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> RunLog:
        """Start a run in a new or empty folder.

        Raises RunFolderError, having written nothing, when something is there already.
        """
        path = Path(path)
        cls.check_free(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        lock = acquire(path)
        with writing(path):
            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            write_atomic(path / "environment.json", json.dumps(environment, indent=2).encode())
            # Last: from here on the folder is a run folder, which can be resumed.
            write_atomic(path / "config.yaml", text.encode())
            log = cls(path, lock, fresh=True)
        log._session(resumed_from=None)
        log.commit()
        return log

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise RunFolderError unless :meth:`create` may use the folder; changes nothing."""
        with writing(path):
            names = [entry.name for entry in path.iterdir()] if path.exists() else []
        if taken := sorted(set(names) - set(UNBORN)):
            check_unlocked(path)
            raise RunFolderError(
                f"{path} is not empty (it holds {taken[0]}) and is never overwritten: "
                f"continue it with --resume {path}, or choose another --output-dir"
            )

    @staticmethod
    def open(path: Path | str) -> RunView:
        """Look into a run folder without writing to it."""
        return RunView(Path(path))

    @classmethod
    def resume(cls, path: Path | str) -> RunLog:
        """Take hold of a run that stopped. :meth:`rewind` must follow before anything is logged.

        Raises RunFolderError when it is not a run folder or another process is writing to it.
        """
        path = Path(path)
        _read_config(path)
        lock = acquire(path)
        with writing(path):
            return cls(path, lock, fresh=False)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the folder. What was not committed is dropped by the next rewind."""
        self._journal.close()
        self._lock.close()

    @property
    def last_step(self) -> int:
        """The last step whose figures were logged."""
        return self._last_step

    def event(self, name: str, **fields: Any) -> None:
        """Append one line to the journal: ``phase_start`` (index, kind, step, detail),
        ``phase_end`` (index, outcome), ``alarm`` (the Alarm's fields), ``checkpoint`` (step,
        reason), ``rollback`` (step, to), ``best`` (step, score), ``reflections`` (step, counts,
        tokens, cost) or ``finish``."""
        assert self._ready, "rewind() to a cursor before logging"
        if name not in EVENTS:
            raise unknown("journal event", name, EVENTS)
        append_line(self._journal, {"event": name, **fields}, self.path / "journal.jsonl")

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Add the figures of one step; steps only go up."""
        assert self._ready, "rewind() to a cursor before logging"
        for column in row:
            if column not in METRICS and not column.startswith(METRIC_FAMILIES):
                raise unknown("metric", column, METRICS)
        assert row["step"] > self._last_step, f"step {row['step']} after {self._last_step}"
        self._last_step = row["step"]
        self._new_metrics.append(
            {"rl_step": 0, "phase": -1, "phase_kind": ""}
            | {name: math.nan for name, kind in METRICS.items() if kind == _FLOAT}
            | dict(row)
        )

    def probe(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add one step's statistics, one row per slot and token (columns :data:`PROBE`)."""
        assert self._ready, "rewind() to a cursor before logging"
        self._new_probe.extend(rows)

    def contexts(self, step: int, columns: Mapping[str, Any]) -> None:
        """Keep the probe's figure for every single context: columns of equal length."""
        self._step_table("probe_contexts", step, pa.table(dict(columns)))

    def rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep one step's rollouts (columns :data:`ROLLOUTS`, messages and parts as values)."""
        encoded = [
            {**row, **{name: json.dumps(row[name]) for name in JSON_COLUMNS}} for row in rows
        ]
        self._step_table("rollouts", step, pa.Table.from_pylist(encoded, schema=ROLLOUTS))

    def reflections(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep what the SFT phase that begins with ``step`` is taught about rollouts (columns
        :data:`REFLECTIONS`, dialogues as values)."""
        encoded = [{**row, "dialogues": json.dumps(row["dialogues"])} for row in rows]
        self._step_table("reflections", step, pa.Table.from_pylist(encoded, schema=REFLECTIONS))

    def commit(self) -> Cursor:
        """Make everything durable; returns the cursor for :meth:`rewind`."""
        assert self._ready, "rewind() to a cursor before logging"
        self._merge()
        with writing(self.path):
            for path in self._unsynced:
                fsync(path)
            write_atomic(self.path / "metrics.parquet", _parquet(self._metrics))
            write_atomic(self.path / "probe.parquet", _parquet(self._probe))
            os.fsync(self._journal.fileno())
            for folder in {path.parent for path in self._unsynced} | {self.path}:
                fsync(folder)
        self._unsynced.clear()
        return {"journal_bytes": os.fstat(self._journal.fileno()).st_size, "step": self._last_step}

    def rewind(self, cursor: Cursor) -> None:
        """Drop everything that was logged after ``cursor``. Doing it twice is doing it once.

        Raises RunFolderError when the folder holds less than the cursor promises.
        """
        journal, step = self.path / "journal.jsonl", cursor["step"]
        size = os.fstat(self._journal.fileno()).st_size
        if size < cursor["journal_bytes"]:
            raise RunFolderError(
                f"{journal} has {size} bytes, the checkpoint expects {cursor['journal_bytes']}"
            )
        self._new_metrics, self._new_probe, self._unsynced = [], [], []
        self._metrics, self._probe = _empty(METRICS), PROBE.empty_table()
        if cursor != START:
            self._metrics = _until(_read_parquet(self.path / "metrics.parquet"), step)
            self._probe = _until(_read_parquet(self.path / "probe.parquet"), step)
        steps = self._metrics.column("step").to_pylist()
        self._last_step = steps[-1] if steps else START["step"]
        if self._last_step != step:
            raise RunFolderError(
                f"{self.path / 'metrics.parquet'} ends at step {self._last_step}, "
                f"the checkpoint expects step {step}"
            )
        with writing(self.path):
            os.ftruncate(self._journal.fileno(), cursor["journal_bytes"])
            for folder in (self.path, *(self.path / name for name in STEP_FOLDERS)):
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink()
                for later, path in _step_files(folder):
                    if later > step:
                        path.unlink()
        self._ready = True
        self._session(resumed_from=step)
        self.commit()

    def _step_table(self, folder: str, step: int, table: pa.Table) -> None:
        assert self._ready, "rewind() to a cursor before logging"
        path = _step_file(self.path, folder, step)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            # Durable only at the commit: one fsync per step would cost more than the writing.
            write_atomic(path, _parquet(table), durable=False)
        self._unsynced.append(path)

    def _merge(self) -> None:
        """Move new rows into the tables. The columns depend on the rows alone, never on what a
        killed process had once seen, so that resumed files equal uninterrupted ones."""
        if self._new_metrics:
            extra = sorted({name for row in self._new_metrics for name in row} - METRICS.keys())
            schema = pa.schema({**METRICS, **dict.fromkeys(extra, _FLOAT)})
            rows = [{**dict.fromkeys(extra, math.nan), **row} for row in self._new_metrics]
            new = pa.Table.from_pylist(rows, schema=schema)
            self._metrics = _tidy(pa.concat_tables([self._metrics, new], promote_options="default"))
        if self._new_probe:
            new = pa.Table.from_pylist(list(self._new_probe), schema=PROBE)
            self._probe = pa.concat_tables([self._probe, new]).combine_chunks()
        self._new_metrics, self._new_probe = [], []

    def _session(self, resumed_from: int | None) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"time": now, "argv": sys.argv, "pid": os.getpid(), "resumed_from": resumed_from}
        path = self.path / "sessions.jsonl"
        with writing(path), FileIO(path, "ab") as file:
            append_line(file, line, path)


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration, whose presence makes a folder a run folder."""
    if not path.is_dir():
        raise RunFolderError(f"run folder {path} does not exist")
    file = path / "config.yaml"
    if not file.exists():
        raise RunFolderError(f"{path} is not a run folder: it has no config.yaml")
    with reading(file):
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise RunFolderError(f"{file} is damaged: it holds no settings")
    return value


def _step_file(path: Path, folder: str, step: int) -> Path:
    return path / folder / f"step_{step:06d}.parquet"


def _step_files(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem[5:]), path) for path in folder.glob("step_[0-9]*.parquet"))


def _read_parquet(path: Path) -> pa.Table:
    with reading(path):
        return pq.read_table(pa.BufferReader(path.read_bytes()))


def _frame(path: Path) -> pd.DataFrame:
    frame: pd.DataFrame = _read_parquet(path).to_pandas()
    return frame


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _empty(columns: Mapping[str, pa.DataType]) -> pa.Table:
    return pa.schema(columns).empty_table()


def _until(table: pa.Table, step: int) -> pa.Table:
    kept = table.filter(pc.less_equal(table.column("step"), step)).combine_chunks()
    return kept if "slot" in table.column_names else _tidy(kept)


def _tidy(table: pa.Table) -> pa.Table:
    """Canonical columns: the fixed ones, then by name those that hold any figure."""
    columns = {name: table.column(name).combine_chunks() for name in METRICS}
    for name in sorted(set(table.column_names) - METRICS.keys()):
        column = pc.fill_null(table.column(name).combine_chunks(), math.nan)
        if not pc.all(pc.is_nan(column)).as_py():
            columns[name] = column
    return pa.table(columns)
