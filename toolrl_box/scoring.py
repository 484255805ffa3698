"""``toolrl score-detector``: one set of rules for every early-warning detector.

Input: a way to make a fresh detector per run, and the data set of :mod:`toolrl_box.warning_data`.
Output: a :class:`Score`. The rules:

* A detector that is :class:`~toolrl_box.detectors.Scored` gets its threshold here: fitted on the
  healthy runs of the calibration split at the budget (:mod:`toolrl_box.budget`). Any other keeps
  its own thresholds, so its false alarms must be read beside its detections. Everything else is
  measured on the test split.
* *alarm*: the first step with a score above the threshold, or with an alarm of the asked level.
* *detected*: a collapsing run with an alarm at any step. *early*: before its first onset.
* *lead*: onset less alarm in steps, to each onset that the run has, over detected runs (negative
  when late): median and quartiles. *lead share*: lead to the first onset, divided by that onset.
* *false alarms*: healthy runs with an alarm. Ambiguous runs are counted apart, in nothing else.
* *AUROC* of "first onset within 10 steps" over the steps of healthy runs and of collapsing runs
  before their first onset; a step without a score ranks lowest. None without scores.

Proportions have exact (Clopper-Pearson) 95% intervals. Left out: bootstrap intervals of leads.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from toolrl_box.budget import Threshold, threshold
from toolrl_box.detectors import Detector, Scored
from toolrl_box.errors import ConfigError, DataError, lookup
from toolrl_box.stats import Interval, proportion_interval
from toolrl_box.types import Alarm, Reading
from toolrl_box.warning_data import Logged

HORIZON = 10
Make = Callable[[], Detector]
Level = Literal["warn", "act"]


@dataclass(frozen=True, slots=True)
class Share:
    """``hits`` of ``total``; nothing is known of nothing."""

    hits: int
    total: int
    interval: Interval | None

    @classmethod
    def of(cls, flags: Sequence[bool]) -> Share:
        hits = sum(flags)
        return cls(hits, len(flags), proportion_interval(hits, len(flags)) if flags else None)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles over ``runs``."""

    runs: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        if not values:
            return None
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(len(values), middle, low, high)


@dataclass(frozen=True, slots=True)
class Judged:
    """One test run: the step of its alarm, if any, and its score at every reading."""

    run: Logged
    alarm: int | None
    scores: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Score:
    """``threshold`` is None for a detector that keeps its own; ``regimes``: healthy runs with an
    alarm, and collapsing runs with an early one."""

    detector: str
    threshold: Threshold | None
    detected: Share
    early: Share
    false_alarms: Share
    ambiguous: Share
    lead: Mapping[str, Spread | None]
    lead_share: Spread | None
    auroc: float | None
    regimes: Mapping[str, Mapping[str, Share]]
    runs: tuple[Judged, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite threshold (nothing scored, or everything) is None."""
        plain = asdict(replace(self, runs=()))
        if self.threshold is not None:
            value = self.threshold.value if math.isfinite(self.threshold.value) else None
            plain["threshold"] = {**self.threshold._asdict(), "value": value}
        plain["runs"] = {one.run.entry.run: one.alarm for one in self.runs}
        return plain


def score_detector(
    make: Make, data: Sequence[Logged], budget: float, level: Level = "warn"
) -> Score:
    """``level``: the least level of an alarm that counts, for a detector without scores.

    Raises ConfigError when the detector breaks its protocol or the calibration split is too small
    for the budget, DataError when the test split has no collapsing or no healthy run.
    """
    test = scored_runs(data)
    name, fit = make().name, None
    if isinstance(make(), Scored):
        healthy = [r for r in data if r.entry.split == "calibration" and r.entry.kind == "healthy"]
        maxima = [max(scores(make, run).values(), default=-math.inf) for run in healthy]
        fit = threshold(maxima, budget)
        judged = [_by_score(run, scores(make, run), fit.value) for run in test]
    else:
        judged = [_by_alarm(make, run, level) for run in test]
    return score_alarms(name, judged, fit)


def scored_runs(data: Sequence[Logged]) -> list[Logged]:
    """The test split. Raises DataError when it has no collapsing or no healthy run."""
    test = [run for run in data if run.entry.split == "test"]
    for kind in ("collapsing", "healthy"):
        if not any(run.entry.kind == kind for run in test):
            raise DataError(f"the test split holds no {kind} run: nothing can be scored")
    return test


def score_alarms(name: str, judged: Sequence[Judged], fit: Threshold | None = None) -> Score:
    """The score of test runs whose first alarms are known, whoever raised them. ``fit``: the
    threshold that their scores were held against, None for alarms without scores."""
    collapsing = [one for one in judged if one.run.entry.kind == "collapsing"]
    leads = [_leads(one.run, one.alarm) for one in collapsing if one.alarm is not None]
    regimes = dict.fromkeys(one.run.entry.regime for one in judged)
    return Score(
        detector=name,
        threshold=fit,
        detected=Share.of([one.alarm is not None for one in collapsing]),
        early=Share.of([_early(one) for one in collapsing]),
        false_alarms=Share.of(_alarmed(judged, "healthy")),
        ambiguous=Share.of(_alarmed(judged, "ambiguous")),
        lead={
            onset: Spread.of([found[onset] for found in leads if onset in found])
            for onset in ("first", "structural", "reward")
        },
        lead_share=Spread.of([found["share"] for found in leads]),
        auroc=None if fit is None else auroc(judged),
        regimes={
            regime: {
                "false_alarms": Share.of(_alarmed(judged, "healthy", regime)),
                "early": Share.of([_early(o) for o in collapsing if o.run.entry.regime == regime]),
            }
            for regime in regimes
        },
        runs=tuple(judged),
    )


def lines(score: Score) -> Iterator[str]:
    """The score for a terminal."""
    yield f"detector        {score.detector}"
    if score.threshold is None:
        yield "threshold       its own: false alarms are not at the budget"
    else:
        fit = score.threshold
        yield (
            f"threshold       {fit.value:.4g}, above it {fit.above} of {fit.runs} healthy "
            f"calibration runs (expected {fit.expected:.3f}, 95% bound {fit.upper:.3f})"
        )
    yield f"detected        {_share(score.detected)} collapsing runs"
    yield f"early           {_share(score.early)} collapsing runs, before the first onset"
    yield f"false alarms    {_share(score.false_alarms)} healthy runs"
    yield f"ambiguous       {_share(score.ambiguous)} with an alarm, in no other figure"
    for onset, lead in score.lead.items():
        yield f"lead {onset:<11}{_spread(lead)} steps to the onset"
    yield f"lead share      {_spread(score.lead_share)} of the first onset's step"
    yield "AUROC           " + ("none" if score.auroc is None else f"{score.auroc:.3f}")
    for regime, shares in score.regimes.items():
        told = ", ".join(f"{n.replace('_', ' ')} {s.hits}/{s.total}" for n, s in shares.items())
        yield f"  {regime:<24}{told}"


def _share(share: Share) -> str:
    if share.interval is None:
        return "0 of 0"
    low, high = share.interval
    return f"{share.hits} of {share.total} [{low:.2f}, {high:.2f}]"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "none"
    return f"{spread.median:.3g} [{spread.low:.3g}, {spread.high:.3g}] over {spread.runs} runs"


def scores(make: Make, run: Logged) -> dict[int, float]:
    """Step -> score of a fresh detector; minus infinity where it gives none."""
    detector = make()
    assert isinstance(detector, Scored)
    found = {}
    for reading in run.readings:
        score = _ask(detector.score, detector, run, reading)
        if score is not None and not (isinstance(score, (int, float)) and score == score):
            raise ConfigError(
                f"detector '{detector.name}' gave the score {score!r} at step {reading.step} of "
                f"{run.entry.run}; it must be a number or None"
            )
        found[reading.step] = -math.inf if score is None else float(score)
    return found


def auroc(judged: Sequence[Judged]) -> float | None:
    """See the module; None when one of the two classes of steps is empty."""
    values, labels = [], []
    for one in judged:
        onset = one.run.entry.onsets.first
        if one.run.entry.kind == "ambiguous":
            continue
        for step, score in one.scores.items():
            if one.run.entry.kind == "healthy" or onset is None or step < onset:
                values.append(score)
                labels.append(
                    one.run.entry.kind == "collapsing"
                    and onset is not None
                    and onset - step <= HORIZON
                )
    positive = sum(labels)
    negative = len(labels) - positive
    if not positive or not negative:
        return None
    ranks = rankdata(values)[np.array(labels)].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def import_detector(spec: str) -> Make:
    """``MODULE:CLASS`` as something that makes detectors. Raises ConfigError with one line."""
    module_name, separator, name = spec.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"'{spec}' must be MODULE:CLASS, like toolrl_box.detectors.damage:Damage")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's module lies where the command is called
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(f"cannot import {module_name}: {_told(error)}") from error
    classes = {n: kind for n, kind in vars(module).items() if isinstance(kind, type)}
    kind = lookup(f"class in {module_name}", name, classes)
    try:
        detector = kind()
    except Exception as error:
        raise ConfigError(f"{spec}() fails: {_told(error)}") from error
    if not isinstance(detector, Detector):
        raise ConfigError(f"{spec} is no detector: it needs name, update, state and restore")
    return kind


def _ask(ask: Callable[[Reading], Any], detector: Detector, run: Logged, reading: Reading) -> Any:
    try:
        return ask(reading)
    except Exception as error:  # the detector is the user's own code
        raise ConfigError(
            f"detector '{detector.name}' failed at step {reading.step} of {run.entry.run}: "
            f"{_told(error)}"
        ) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _by_score(run: Logged, found: Mapping[int, float], limit: float) -> Judged:
    return Judged(run, next((step for step, s in found.items() if s > limit), None), found)


def _by_alarm(make: Make, run: Logged, level: Level) -> Judged:
    detector, first = make(), None
    for reading in run.readings:
        alarm = _ask(detector.update, detector, run, reading)
        if alarm is not None and not isinstance(alarm, Alarm):
            raise ConfigError(
                f"detector '{detector.name}' gave {alarm!r}; it must be Alarm or None"
            )
        if first is None and alarm is not None and (level == "warn" or alarm.level == "act"):
            first = reading.step
    return Judged(run, first, {})


def _leads(run: Logged, alarm: int) -> dict[str, float]:
    """Steps to each onset that the run has, and ``share``."""
    onsets = run.entry.onsets
    known = {"first": onsets.first, "structural": onsets.structural, "reward": onsets.reward}
    found = {name: float(step - alarm) for name, step in known.items() if step is not None}
    assert onsets.first is not None, "a collapsing run has an onset, and never at step 0"
    return found | {"share": found["first"] / onsets.first}


def _early(one: Judged) -> bool:
    onset = one.run.entry.onsets.first
    return one.alarm is not None and onset is not None and one.alarm < onset


def _alarmed(judged: Sequence[Judged], kind: str, regime: str | None = None) -> list[bool]:
    return [
        one.alarm is not None
        for one in judged
        if one.run.entry.kind == kind and regime in (None, one.run.entry.regime)
    ]
