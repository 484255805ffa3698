"""A study: every arm and every point of a grid under every seed, each cell a run folder.

Input: a YAML file::

    seeds: [0, 1, 2]                  # or --seeds 0-7
    base: {steps: 60}                 # settings of every cell
    arms:                             # what each arm changes; may be left out when there is a grid
      plain: {scheme: rl}
      mixed: {scheme: {name: interleaved, every: 4}}
    grid:                             # any settings by dotted key; every combination of the values
      grpo.lr: [1.2e-3, 2.0e-4]

Output: the run folders ``OUTPUT/<arm>/seed<k>`` (an arm of a grid is called ``mixed,lr=0.0002``),
beside each its settings and what it printed, and ``OUTPUT/study.json``: every cell with its state,
a failed one with its cause. Finished cells are skipped, interrupted ones resumed, failed ones tried
again; none is dropped.

Left out: how a run is computed (``launchers``) and statistics over the cells (``toolrl compare``).
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from toolrl_box.config import RunConfig, parse, put, read_yaml
from toolrl_box.durable import write_atomic, writing
from toolrl_box.envs import build_world
from toolrl_box.errors import ConfigError, RunFolderError, lookup, unknown
from toolrl_box.formats import ALL_FORMATS, NATIVE
from toolrl_box.launchers import Asked, Launch
from toolrl_box.runlog import STUDY, RunLog
from toolrl_box.schemes import build_scheme

CellState = Literal["finished", "started", "absent"]
KEYS = ("seeds", "base", "arms", "grid")
STOPPED = -15  # by us: SIGTERM


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
    def config_file(self) -> Path:
        return self.run_dir.with_suffix(".yaml")

    @property
    def state(self) -> CellState:
        if not (self.run_dir / "journal.jsonl").is_file():
            return "absent"
        events = RunLog.open(self.run_dir).journal()
        return "finished" if events and events[-1]["event"] == "finish" else "started"

    @property
    def cause(self) -> str:
        """Why it failed: the last error that its process printed, else its last line."""
        if not self.log_file.is_file():
            return "it printed nothing"
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it printed nothing"])[-1]


# --- the grid ---------------------------------------------------------------------------------


def cells(experiment: Path, output: Path, seeds: Sequence[int] | None = None) -> list[Cell]:
    """The grid, seeds outermost so that an early stop leaves comparable arms.

    Raises ConfigError for an unknown key or name, or a cell whose config is refused.
    """
    study = read_yaml(experiment)
    for key in study:
        if key not in KEYS:
            raise ConfigError(f"{experiment}: {unknown('key', str(key), KEYS)}")
    if not study.get("arms") and not study.get("grid"):
        raise ConfigError(f"{experiment}: 'arms' names no arm, and there is no 'grid'")
    chosen = seeds if seeds is not None else study.get("seeds", [0])
    if not isinstance(chosen, Sequence) or not chosen or not all(type(s) is int for s in chosen):
        raise ConfigError(f"{experiment}: seeds = {chosen!r}; it takes a list of numbers")
    grid: list[Cell] = []
    for seed in chosen:
        for arm, config in _arms(study, experiment):
            values = {**config, "seed": seed}
            _check(values, f"{experiment}, arm '{arm}'")
            grid.append(Cell(arm, seed, values, output / arm / f"seed{seed}"))
    folders = [cell.run_dir for cell in grid]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"{experiment}: two cells would share the folder {folder}")
    return grid


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, section by section."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _arms(study: Mapping[str, Any], experiment: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    grid = study.get("grid") or {}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{experiment}: grid.{key} takes a list of values, got {values!r}")
    lasts = [key.split(".")[-1] for key in grid]
    names = [last if lasts.count(last) == 1 else key for key, last in zip(grid, lasts, strict=True)]
    for arm, changes in (study.get("arms") or {"": {}}).items():
        for point in itertools.product(*grid.values()):
            # A copy: `put` writes into the sections.
            config = copy.deepcopy(merged(study.get("base") or {}, changes or {}))
            for key, value in zip(grid, point, strict=True):
                put(config, key, value)
            parts = [f"{name}={_label(v)}" for name, v in zip(names, point, strict=True)]
            yield ",".join([str(arm)] * bool(arm) + parts), config


def _label(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, Mapping):
        value = "-".join(f"{v}" if k == "name" else f"{k}={v}" for k, v in value.items())
    return re.sub(r"[^\w.=+-]+", "-", str(value)).strip("-.") or "none"


def _check(values: Mapping[str, Any], where: str) -> None:
    """Refuse a cell before anything runs; the run itself would, hours later."""
    try:
        config: RunConfig = parse(values)
        build_scheme(config.scheme.name, config.scheme.knobs)
        build_world(config.env.name, config.env.knobs)
        lookup("format", config.format, dict.fromkeys((*ALL_FORMATS, NATIVE)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


# --- running it -------------------------------------------------------------------------------


def check_output(grid: Sequence[Cell], output: Path, *, resume: bool) -> None:
    """Raise RunFolderError when the output belongs to other cells, or holds some of these and
    ``resume`` was not asked for."""
    begun = [cell for cell in grid if cell.config_file.is_file()]
    if begun and not resume:
        raise RunFolderError(
            f"{output} holds {len(begun)} of these {len(grid)} runs already: go on with --resume, "
            "or choose another --output-dir"
        )
    for cell in begun:
        if read_yaml(cell.config_file) != cell.config:
            raise RunFolderError(
                f"{cell.config_file} holds other settings than the experiment has now for this "
                "run: choose another --output-dir"
            )


def run_cells(
    grid: Sequence[Cell],
    output: Path,
    jobs: int,
    launch: Launch,
    told: Callable[[Cell, str], None],
    asked: Asked = lambda: False,
) -> list[tuple[Cell, int]]:
    """Run what is not finished, ``jobs`` at a time; the failed cells with their exit codes.

    ``told`` hears of each cell. Once ``asked`` says so no cell is begun, and those that run are
    told to save. ``output``/study.json is up to date after every cell.
    """
    manifest = _Manifest(grid, output)

    def run(cell: Cell) -> tuple[Cell, int]:
        if asked():
            return cell, STOPPED
        told(cell, "runs")
        manifest.note(cell, "running", None)
        code = launch(_command(cell), cell.log_file, asked)
        if code == 0:
            manifest.note(cell, "finished", None)
            told(cell, "finished")
        elif asked():
            manifest.note(cell, "stopped", "the study was stopped; it can be resumed")
            told(cell, "stopped")
        else:
            manifest.note(cell, "failed", f"exit code {code}: {cell.cause}")
            told(cell, f"failed with exit code {code}")
        return cell, code

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            ended = list(pool.map(run, [cell for cell in grid if cell.state != "finished"]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [(cell, code) for cell, code in ended if code != 0]


def _command(cell: Cell) -> list[str]:
    command = [sys.executable, "-m", "toolrl_box.cli", "run", "--no-report"]
    with writing(cell.config_file):
        cell.run_dir.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(cell.config), sort_keys=False)
        write_atomic(cell.config_file, text.encode())
    if cell.state == "started":
        return [*command, "--resume", str(cell.run_dir)]
    return [*command, "--config", str(cell.config_file), "--output-dir", str(cell.run_dir)]


class _Manifest:
    """``study.json``: what became of every cell, for whoever reads the folder later."""

    def __init__(self, grid: Sequence[Cell], output: Path) -> None:
        self._path = output / STUDY
        self._lock = threading.Lock()
        self._entries = {
            cell.run_dir: {
                "run_dir": str(cell.run_dir.relative_to(output)),
                "arm": cell.arm,
                "seed": cell.seed,
                "state": "finished" if cell.state == "finished" else "waiting",
                "cause": None,
            }
            for cell in grid
        }
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        self._write()

    def note(self, cell: Cell, state: str, cause: str | None) -> None:
        with self._lock:
            self._entries[cell.run_dir] |= {"state": state, "cause": cause}
            self._write()

    def _write(self) -> None:
        with writing(self._path):
            text = json.dumps(list(self._entries.values()), indent=1)
            write_atomic(self._path, text.encode() + b"\n")
