"""A study: every arm of an experiment file under every seed, each cell a run folder.

Input: a YAML file (``seeds``, ``base`` config, ``arms`` with what each changes). Output: the run
folders ``OUTPUT/<arm>/seed<k>``. Cells run as processes of their own, ``jobs`` at a time; a
finished cell is skipped, an interrupted one resumed, a failed one reported and not dropped.

Left out: statistics over the cells (``analysis/``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from toolrl_box.config import parse, read_yaml
from toolrl_box.durable import write_atomic, writing
from toolrl_box.errors import ConfigError
from toolrl_box.runlog import RunLog

CellState = Literal["finished", "started", "absent"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study."""

    arm: str
    seed: int
    config: Mapping[str, Any]
    run_dir: Path

    @property
    def log_file(self) -> Path:
        """What the run's process printed."""
        return self.run_dir.with_suffix(".log")

    @property
    def state(self) -> CellState:
        if not (self.run_dir / "journal.jsonl").is_file():
            return "absent"
        events = RunLog.open(self.run_dir).journal()
        return "finished" if events and events[-1]["event"] == "finish" else "started"


def cells(experiment: Path, output: Path, seeds: Sequence[int] | None = None) -> list[Cell]:
    """The grid, seeds outermost so that an early stop leaves comparable arms.

    Raises ConfigError for an unknown key or a cell whose config is refused.
    """
    study = read_yaml(experiment)
    for key in study:
        if key not in ("seeds", "base", "arms"):
            raise ConfigError(f"{experiment}: unknown key '{key}'; one of: arms, base, seeds")
    if not study.get("arms"):
        raise ConfigError(f"{experiment}: 'arms' names no arm")
    return [
        Cell(arm, seed, config, output / arm / f"seed{seed}")
        for seed in (seeds or study.get("seeds", [0]))
        for arm, config in _arms(study, seed, experiment)
    ]


def parse_seeds(text: str) -> list[int]:
    """``"3"`` or ``"0-7"``. Raises ConfigError."""
    first, _, last = text.partition("-")
    try:
        seeds = list(range(int(first), int(last or first) + 1))
    except ValueError:
        seeds = []
    if not seeds:
        raise ConfigError(f"--seeds takes a number or a range such as 0-7, got '{text}'")
    return seeds


def _arms(
    study: Mapping[str, Any], seed: int, experiment: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    for arm, changes in study["arms"].items():
        config = merged(merged(study.get("base") or {}, changes or {}), {"seed": seed})
        try:
            parse(config)
        except ConfigError as error:
            raise ConfigError(f"{experiment}, arm '{arm}': {error}") from error
        yield arm, config


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, section by section."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def run_cells(
    todo: Sequence[Cell], jobs: int, told: Callable[[Cell, str], None]
) -> list[tuple[Cell, int]]:
    """Run what is not finished; the failed cells with their exit codes. ``told`` hears of each."""

    def run(cell: Cell) -> tuple[Cell, int]:
        told(cell, "runs")
        code = _run(cell)
        told(cell, "finished" if code == 0 else f"failed with exit code {code}")
        return cell, code

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        ended = list(pool.map(run, [cell for cell in todo if cell.state != "finished"]))
    return [(cell, code) for cell, code in ended if code != 0]


def _run(cell: Cell) -> int:
    command = [sys.executable, "-m", "toolrl_box.cli", "run", "--no-report"]
    folder = cell.run_dir.parent
    config_file = cell.run_dir.with_suffix(".yaml")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(config_file, yaml.safe_dump(dict(cell.config), sort_keys=False).encode())
    if cell.state == "started":
        command += ["--resume", str(cell.run_dir)]
    else:
        command += ["--config", str(config_file), "--output-dir", str(cell.run_dir)]
    # One thread a cell: with two, two jobs on two cores are slower than one after the other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with writing(cell.log_file), open(cell.log_file, "ab") as log:
        return subprocess.run(  # noqa: S603 - our own interpreter and module
            command, stdout=log, stderr=log, env=environment, check=False
        ).returncode
