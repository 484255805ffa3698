"""``toolrl calibrate``: thresholds for your model from your own runs, and what they can promise.

Input: run folders, a budget of false alarms, and candidates: a detector file whose thresholds may
be missing. Output: a detector file with thresholds, their exact bounds, and the fingerprint of the
base they belong to. Thresholds come from the healthy runs alone; collapsing runs only tell what
the fitted detectors would have done (in-sample), ambiguous ones are counted.

Left out: choosing among candidates. That needs runs that no threshold has seen
(:mod:`toolrl_box.scoring`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from toolrl_box import __version__
from toolrl_box.budget import check_budget, threshold
from toolrl_box.detector_file import (
    Base,
    ComposedSpec,
    DetectorFile,
    Fit,
    FormSpec,
    Provenance,
    fitted,
    scorer,
)
from toolrl_box.durable import write_atomic, writing
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.onsets import KINDS, Kind, Onsets
from toolrl_box.readings import readings, records
from toolrl_box.runlog import RunLog, RunView
from toolrl_box.types import Reading
from toolrl_box.warning_data import is_finished, judged, run_folders


@dataclass(frozen=True, slots=True)
class Pilot:
    """One finished run."""

    name: str
    seed: int
    onsets: Onsets
    readings: Sequence[Reading]
    base: Base


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one candidate. ``fit`` is None and ``why`` says why when nothing did;
    ``early``, ``lead``: collapsing runs that alarm before their first onset, and the median of
    steps between, in-sample."""

    name: str
    why: str = ""
    value: float = math.nan
    fit: Fit | None = None
    early: int = 0
    lead: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    file: DetectorFile
    outcomes: tuple[Outcome, ...]
    runs: dict[Kind, tuple[str, ...]]
    unfinished: tuple[str, ...]


def calibrate(paths: Sequence[Path], budget: float, candidates: DetectorFile) -> Calibration:
    """Fit every candidate at the same budget.

    Raises ConfigError when the healthy runs are too few for the budget or no candidate can be
    fitted, DataError when the runs are not of one model and bank.
    """
    views = [RunLog.open(folder) for folder in run_folders(paths)]
    unfinished = tuple(str(run.path) for run in views if not is_finished(run))
    pilots = [_pilot(run) for run in views if str(run.path) not in unfinished]
    runs = {kind: tuple(p.name for p in pilots if p.onsets.kind == kind) for kind in KINDS}
    check_budget(budget, len(runs["healthy"]))
    for pilot in pilots[1:]:
        if (difference := pilots[0].base.difference(pilot.base)) is not None:
            raise DataError(
                f"{pilot.name} and {pilots[0].name} do not belong together: {difference}"
            )
    outcomes, specs = [], []
    for spec in candidates.detectors:
        outcome, made = _fit(spec, pilots, budget)
        outcomes.append(outcome)
        if made is not None:
            specs.append(made)
    if not specs:
        raise ConfigError(f"no candidate can be fitted; the first: {outcomes[0].why}")
    fits = {one.name: one.fit for one in outcomes if one.fit is not None}
    provenance = Provenance(
        date=datetime.now(UTC).date().isoformat(),
        toolrl_box=__version__,
        false_alarms=budget,
        runs={str(kind): names for kind, names in runs.items()},
        seeds=tuple(sorted({pilot.seed for pilot in pilots})),
        fits=fits,
    )
    file = DetectorFile(
        detectors=tuple(specs),
        base=pilots[0].base,
        provenance=provenance,
        limits=_limits(fits, [p for p in pilots if p.onsets.kind == "healthy"]),
    )
    return Calibration(file, tuple(outcomes), runs, unfinished)


def describe(outcome: Outcome, collapsing: int) -> str:
    """A line for a terminal."""
    if outcome.fit is None:
        return f"{outcome.name:<28}not fitted: {outcome.why}"
    fit, lead = outcome.fit, "" if outcome.lead is None else f", median lead {outcome.lead:g}"
    return (
        f"{outcome.name:<28}above {outcome.value:<9.4g} healthy {fit.above}/{fit.runs}, "
        f"at most {fit.expected:.3f} (95% bound {fit.upper:.3f}); in-sample early "
        f"{outcome.early}/{collapsing}{lead}"
    )


def check_output(path: Path) -> None:
    """Raises ConfigError, before minutes of reading, for a file that exists."""
    if path.exists():
        raise ConfigError(f"{path} exists and is never overwritten: choose another --output")


def save(text: str, path: Path) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())


def _pilot(run: RunView) -> Pilot:
    start = [row for row in records(run.probe()) if row["step"] == 0]
    if not start:
        raise DataError(f"{run.path} has no probe of step 0")
    seed = int(run.config["seed"])
    return Pilot(str(run.path), seed, judged(run), readings(run), Base.of(start))


def _fit(
    spec: ComposedSpec | FormSpec, pilots: Sequence[Pilot], budget: float
) -> tuple[Outcome, ComposedSpec | None]:
    if isinstance(spec, FormSpec):
        return Outcome(spec.name, "a form keeps its own thresholds and is not fitted"), None
    healthy = [pilot for pilot in pilots if pilot.onsets.kind == "healthy"]
    maxima = [max(_scores(spec, pilot).values(), default=-math.inf) for pilot in healthy]
    found = threshold(maxima, budget)
    if found.value == -math.inf:
        return Outcome(
            spec.name,
            "no healthy run gives it a score (no such signal, or its other conditions fail)",
        ), None
    if found.value == math.inf:
        return Outcome(spec.name, "an alternative alarms alone in too many healthy runs"), None
    leads = []
    for pilot in pilots:
        first = pilot.onsets.first
        if pilot.onsets.kind == "collapsing" and first is not None:
            alarms = [s for s, score in _scores(spec, pilot).items() if score > found.value]
            leads += [first - alarms[0]] if alarms and alarms[0] < first else []
    fit = Fit(above=found.above, runs=found.runs, expected=found.expected, upper=found.upper)
    lead = median(leads) if leads else None
    outcome = Outcome(spec.name, "", found.value, fit, len(leads), lead)
    return outcome, fitted(spec, found.value)


def _scores(spec: ComposedSpec, pilot: Pilot) -> dict[int, float]:
    """Step -> score, where there is one."""
    detector = scorer(spec)
    scores = {reading.step: detector.score(reading) for reading in pilot.readings}
    return {step: score for step, score in scores.items() if score is not None}


def _limits(fits: dict[str, Fit], healthy: Sequence[Pilot]) -> tuple[str, ...]:
    each = next(iter(fits.values()))
    lengths = [pilot.readings[-1].step for pilot in healthy if pilot.readings]
    together = min(1.0, len(fits) * each.expected)
    return (
        f"Fitted on {len(healthy)} healthy runs of {min(lengths)} to {max(lengths)} steps: of "
        "fresh healthy runs like these, at most "
        f"{each.expected:.1%} alarm on average over calibrations, and with 95% confidence at most "
        f"{each.upper:.1%}; per detector.",
        f"The {len(fits)} detector(s) together: at most {together:.1%} on average (their sum).",
        "It holds for runs that could have been among those: one model, one bank, the same kinds "
        "of settings. Whether collapses are seen in time was not tested on fresh runs.",
    )
