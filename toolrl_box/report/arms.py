"""Which runs are compared, and which of them belong together.

Input: paths of run folders, or of folders that hold some (a study). Output: :class:`Run` records,
each with its state and, unless it finished, its cause; and :class:`Arm` records: runs of the same
settings apart from the seed, or runs that agree in the settings one asks for.

A run that failed or has no folder yet is an entry like any other: nothing is dropped here. Left
out: any figure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from toolrl_box.durable import check_unlocked, reading
from toolrl_box.errors import RunFolderError, unknown
from toolrl_box.report.summary import summarise
from toolrl_box.runlog import STUDY, RunLog, RunView

State = Literal["finished", "running", "unfinished", "failed", "waiting", "unreadable"]
SHORT = {"scheme": "scheme.name", "model": "model.name", "env": "env.name"}
# Settings that change nothing about what is learned.
IRRELEVANT = ("seed", "threads", "eval.every", "eval.ood", "eval.ood_tasks")
IRRELEVANT_SECTIONS = ("checkpoint.", "probe.")
NO_VALUE = "–"


@dataclass(frozen=True, slots=True)
class Run:
    """One run. ``settings`` are its resolved settings by dotted key; the data are None when they
    could not be read. ``study_arm`` is the folder of its study and the arm's name there."""

    name: str
    state: State
    cause: str | None
    settings: Mapping[str, Any] | None = None
    metrics: pd.DataFrame | None = None
    verdict: str | None = None
    evaluations: tuple[Mapping[str, Any], ...] = ()
    study_arm: tuple[str, str] | None = None

    @property
    def scheme(self) -> str:
        return str((self.settings or {}).get("scheme.name", NO_VALUE))

    @property
    def seed(self) -> Any:
        return (self.settings or {}).get("seed")


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs that are taken together. ``mixed``: settings in which they differ all the same."""

    name: str
    runs: tuple[Run, ...]
    mixed: Mapping[str, tuple[str, ...]]

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state == "finished")

    @property
    def scheme(self) -> str | None:
        """The one scheme of all its runs, or None."""
        schemes = {run.scheme for run in self.runs if run.settings is not None}
        return schemes.pop() if len(schemes) == 1 else None


# --- finding runs -----------------------------------------------------------------------------


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run in or below ``paths``, each once. Raises RunFolderError for a path without any."""
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise RunFolderError(f"run folder {path} does not exist")
        here = list(_below(path))
        if not here:
            raise RunFolderError(f"{path} is not a run folder and holds none")
        for folder, entry, study in here:
            found.setdefault(folder.resolve(), _read(folder, _name(folder, path), entry, study))
    names = [run.name for run in found.values()]
    for folder, run in found.items():
        if names.count(run.name) > 1:  # the same arm and seed of two studies
            found[folder] = replace(run, name=str(folder))
    return list(found.values())


def _below(path: Path) -> Iterator[tuple[Path, Mapping[str, Any] | None, Path | None]]:
    """Run folders with what their study says about them, and the study's folder."""
    entries: dict[Path, tuple[Mapping[str, Any], Path]] = {}
    for folder, names, files in os.walk(path):
        here = Path(folder)
        names.sort()
        if STUDY in files:
            with reading(here / STUDY):
                listed = json.loads((here / STUDY).read_bytes())
                entries |= {here / str(e["run_dir"]): (e, here) for e in listed}
        if "config.yaml" in files:
            names.clear()
            yield here, *entries.pop(here, (None, None))
    for run_dir, (entry, study) in entries.items():
        yield run_dir, entry, study


def _name(folder: Path, given: Path) -> str:
    parts = folder.relative_to(given).parts
    return "/".join(parts) if parts else folder.resolve().name


def _read(folder: Path, name: str, entry: Mapping[str, Any] | None, study: Path | None) -> Run:
    arm = None if entry is None else (str(study), str(entry["arm"]))
    told = None if entry is None or entry["cause"] is None else str(entry["cause"])
    if not folder.is_dir():
        failed = entry is not None and entry["state"] == "failed"
        cause = told or "it was never started"
        return Run(name, "failed" if failed else "waiting", cause, study_arm=arm)
    try:
        view = RunLog.open(folder)
        settings = flat(view.config)
    except RunFolderError as error:
        return Run(name, "unreadable", str(error), study_arm=arm)
    try:
        summary, metrics = summarise(view), view.metrics()
    except RunFolderError as error:
        if not (folder / "metrics.parquet").exists():
            return Run(name, "unfinished", told or "it logged nothing", settings, study_arm=arm)
        return Run(name, "unreadable", str(error), settings, study_arm=arm)
    return Run(
        name,
        *_state(view, summary, told),
        settings,
        metrics,
        str(summary["verdict"]),
        tuple(summary["ood"]),
        arm,
    )


def _state(view: RunView, summary: Mapping[str, Any], told: str | None) -> tuple[State, str | None]:
    if summary["finished"]:
        return "finished", None
    where = f"step {summary['steps']}, {summary['rl_steps']} of them RL"
    try:
        check_unlocked(view.path)
    except RunFolderError:
        return "running", f"at {where}"
    if told is not None:
        return "failed", f"{told} (at {where})"
    return "unfinished", f"stopped at {where}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; what is no section stays a value. A section written as its
    name alone (``scheme: rl``) is read as such."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= flat(value, f"{dotted}.")
        else:
            result[SHORT.get(dotted, dotted)] = value
    return result


# --- grouping ---------------------------------------------------------------------------------


def group(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Arm]:
    """The arms, in the order in which they appear. Without ``by``: the same settings apart from
    the seed. Raises ConfigError for a key that no run has."""
    keys = [SHORT.get(key, key) for key in by]
    known = {key for run in runs for key in run.settings or {}}
    for key in keys:
        if key not in known:
            raise unknown("setting", key, known)
    relevant = [key for key in sorted(known) if _matters(key)]
    # A setting that some runs of a scheme lack is younger than they are: it tells no arms apart.
    shared: dict[str, set[str]] = {}
    for run in runs:
        if run.settings is not None:
            shared.setdefault(run.scheme, set(known)).intersection_update(run.settings)
    members: dict[tuple[str, ...], list[Run]] = {}
    of_study: dict[tuple[str, str], tuple[str, ...]] = {}
    for run in runs:
        if run.settings is not None:
            identity = tuple(
                shown(run.settings.get(key)) if keys or key in shared[run.scheme] else NO_VALUE
                for key in keys or relevant
            )
            members.setdefault(identity, []).append(run)
            if run.study_arm is not None:
                of_study.setdefault(run.study_arm, identity)
    names = _names(members, keys or relevant, asked=bool(keys))
    for run in runs:
        if run.settings is None:  # it stands with the runs of its arm in the study
            arm = run.study_arm or ("", "unreadable")
            identity = of_study.get(arm, ("study", *arm))
            members.setdefault(identity, []).append(run)
            names.setdefault(identity, arm[1])
    return [
        Arm(names[identity], tuple(group), _mixed(group, relevant))
        for identity, group in members.items()
    ]


def _names(
    members: Mapping[tuple[str, ...], Sequence[Run]], keys: Sequence[str], *, asked: bool
) -> dict[tuple[str, ...], str]:
    """Short and distinct: the scheme, then what tells arms of one scheme apart (asked for: the
    values of all the keys)."""
    lasts = [key.split(".")[-1] for key in keys]
    names = {}
    for identity, runs in members.items():
        rivals = [other for other, those in members.items() if those[0].scheme == runs[0].scheme]
        parts = [] if asked else [runs[0].scheme]
        for place, key in enumerate(keys):
            if key == "scheme.name" and not asked:
                continue
            if asked or len({other[place] for other in rivals}) > 1:
                bare = asked and (key in SHORT.values() or key == "format")
                title = lasts[place] if lasts.count(lasts[place]) == 1 or asked else key
                parts.append(identity[place] if bare else f"{title} {identity[place]}")
        names[identity] = ", ".join(parts)
    return names


def _mixed(runs: Sequence[Run], relevant: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Settings that differ within an arm, with their values."""
    settings = [run.settings for run in runs if run.settings is not None]
    values = {key: dict.fromkeys(shown(s.get(key)) for s in settings) for key in relevant}
    return {key: tuple(those) for key, those in values.items() if len(those) > 1}


def _matters(key: str) -> bool:
    return key not in IRRELEVANT and not key.startswith(IRRELEVANT_SECTIONS)


def shown(value: Any) -> str:
    """A setting's value in a label or a table."""
    if value is None:
        return NO_VALUE
    return f"{value:g}" if isinstance(value, float) else str(value)
