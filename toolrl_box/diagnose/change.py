"""Where the mean of a curve changed, within which steps, and whether two methods agree.

Input: a curve and the direction that is bad. Output: a :class:`Change`, or None when nothing
changed. The estimate is the split into two means with the least squares among those that go in the
bad direction: for one change it is what ruptures' ``Dynp(model="l2")`` finds (a test compares the
two), in two cumulative sums. It is checked by the CUSUM of :mod:`toolrl_box.detectors` against the
first sixth of the curve: the change is the step after its last zero (Page 1954).

The interval holds 95% of the estimates on curves that were made again from the two means and
resampled blocks of the residuals (Hušková and Kirch 2008), and the CUSUM's; blocks, because a
step's figure hangs together with its neighbours'. Of a slow decline, which has no single step, the
estimate is the middle and the CUSUM's is the beginning: the two then disagree. Measured coverage stands in docs/diagnose.md.

Left out: more than one change per curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from toolrl_box.curves import Curve
from toolrl_box.detectors.cusum import Cusum

Direction = Literal["down", "up"]

MIN_POINTS = 10
RESAMPLES = 400
CONFIDENCE = 0.95
WORTH = 3.0
"""Deviations of the residuals' mean that a change must be worth to count as one."""
CUSUM_LIMIT = 8.0
SLACK = 2
"""Points by which the CUSUM may miss the interval and still agree."""
METHOD = "least squares, one change of the mean"
CHECK = "CUSUM"


@dataclass(frozen=True, slots=True)
class Change:
    """``step`` is the first after the change, ``low`` to ``high`` its interval; ``check`` what
    the CUSUM says, None when it does not end in alarm; ``agree`` None then, too."""

    step: int
    low: int
    high: int
    before: float
    after: float
    check: int | None
    agree: bool | None


def change_point(curve: Curve, direction: Direction, seed: int = 0) -> Change | None:
    """The change of the mean in ``direction``; None for fewer than 10 points, or when no split is
    worth three standard errors. ``seed`` is that of the resampling."""
    if len(curve.values) < MIN_POINTS:
        return None
    sign = 1.0 if direction == "up" else -1.0
    x = sign * np.asarray(curve.values)
    place = int(splits(x[None, :])[0])
    before, after = x[:place], x[place:]
    if place == 0 or not _worth(before, after):
        return None
    fitted = np.concatenate([np.full(place, before.mean()), np.full(len(x) - place, after.mean())])
    estimates = splits(_again(fitted, x - fitted, np.random.default_rng(seed)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail], method="inverted_cdf")
    low, high = min(int(low), place), max(int(high), place)
    check = _cusum(x)
    agree = None if check is None else low - SLACK <= check <= high + SLACK
    if check is not None:
        low, high = min(low, check), max(high, check)
    return Change(
        curve.steps[place],
        curve.steps[max(low, 1)],
        curve.steps[high],
        sign * float(before.mean()),
        sign * float(after.mean()),
        None if check is None else curve.steps[check],
        agree,
    )


def splits(curves: np.ndarray) -> np.ndarray:
    """Of each row of ``curves`` [R, N], the index of the first point after the best upward
    change; 0 where no split goes up."""
    rows, count = curves.shape
    n = np.arange(1, count)
    sums = np.cumsum(curves, axis=1)
    left = sums[:, :-1] / n
    right = (sums[:, -1:] - sums[:, :-1]) / (count - n)
    # What a split saves in squares, up to a constant: n1 n2 / n (difference of the means)^2.
    gain = np.where(right > left, n * (count - n) / count * (right - left) ** 2, 0.0)
    best = gain.argmax(axis=1)
    place: np.ndarray = np.where(gain[np.arange(rows), best] > 0, best + 1, 0)
    return place


def _worth(before: np.ndarray, after: np.ndarray) -> bool:
    rest = np.concatenate([before - before.mean(), after - after.mean()])
    error = rest.std() * np.sqrt(1 / len(before) + 1 / len(after))
    return bool(after.mean() - before.mean() > WORTH * error)


def _again(fitted: np.ndarray, residuals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``RESAMPLES`` curves of the two means and blocks of residuals [R, N], circular."""
    count = len(fitted)
    block = max(1, round(count ** (1 / 3)))
    starts = rng.integers(0, count, size=(RESAMPLES, -(-count // block)))
    index = (starts[:, :, None] + np.arange(block)) % count
    again: np.ndarray = fitted + residuals[index.reshape(RESAMPLES, -1)[:, :count]]
    return again


def _cusum(x: np.ndarray) -> int | None:
    """Index of the point after the last zero, when the statistic ends above the limit: the rise
    that lasted. The reference is the first sixth of the curve."""
    reference = max(5, len(x) // 6)
    level = abs(fmean(x[:reference]))
    detector = Cusum(reference, floor=max(0.02 * level, 1e-9))
    zero, statistic = reference, 0.0
    for index, value in enumerate(x):
        statistic = detector.update(float(value)) or 0.0
        if statistic == 0.0:
            zero = index + 1
    return zero if statistic > CUSUM_LIMIT else None
