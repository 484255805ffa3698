"""Since when a curve has been changing, within which steps, and whether two methods agree.

Input: a curve and the direction that is bad. Output: a :class:`Change`, or None when nothing
changed. The model is a level, a straight passage, and another level; the passage may take one
point (a jump) or many (a slow decline, of which the *beginning* is wanted). Least squares over all
beginnings and a set of lengths; a passage longer than one point must be worth its parameter by the
Bayesian information criterion (Schwarz 1978). With jumps alone this is what ruptures'
``Dynp(model="l2")`` finds for one change, and a test compares the two.

It is checked by the CUSUM of :mod:`toolrl_box.detectors` against the first sixth of the curve: the
change is the step after its last zero (Page 1954). The interval holds 95% of the estimates on
curves that were made again from the model and resampled blocks of the residuals (Hušková and Kirch
2008), and the CUSUM's; blocks, because a step's figure hangs together with its neighbours'.
Measured coverage stands in docs/diagnose.md.

Left out: more than one change per curve. Curves of more than 240 points are averaged to so many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Literal

import numpy as np

from toolrl_box.curves import Curve
from toolrl_box.detectors.cusum import Cusum

Direction = Literal["down", "up"]

MIN_POINTS = 10
MAX_POINTS = 240
RESAMPLES = 400
CONFIDENCE = 0.95
WORTH = 3.0
"""Standard errors that a change must be worth to count as one."""
LENGTHS = (1, 2, 3, 4, 6, 8, 10, 13, 17, 22, 29, 38, 50, 65, 85, 110, 144)
JUMP = (1,)
CUSUM_LIMIT = 8.0
SLACK = 2
"""Points by which the CUSUM may miss the interval and still agree."""
METHOD = "least squares: level, passage, level"
CHECK = "CUSUM"


@dataclass(frozen=True, slots=True)
class Change:
    """``step`` is the first that is different, ``low`` to ``high`` its interval; ``before`` and
    ``after`` the two levels; ``check`` what the CUSUM says, None when it does not end in alarm;
    ``agree`` None then, too."""

    step: int
    low: int
    high: int
    before: float
    after: float
    check: int | None
    agree: bool | None


def change_point(curve: Curve, direction: Direction, seed: int = 0) -> Change | None:
    """The change in ``direction``; None for fewer than 10 points, or when it is not worth three
    standard errors. ``seed`` is that of the resampling."""
    if len(curve.values) < MIN_POINTS:
        return None
    sign = 1.0 if direction == "up" else -1.0
    steps, x = _thinned(curve)
    x = sign * x
    shapes = _shapes(len(x), LENGTHS)
    best = int(shapes.best(x[None, :])[0])
    if best < 0:
        return None
    place, fitted = int(shapes.starts[best]), shapes.fit(x, best)
    first, last = float(fitted[0]), float(fitted[-1])
    if not _worth(x - fitted, last - first, place):
        return None
    again = shapes.best(_again(fitted, x - fitted, np.random.default_rng(seed)))
    estimates = np.where(again < 0, place, shapes.starts[again])
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(estimates, [tail, 1 - tail], method="inverted_cdf")
    low, high = min(int(ends[0]), place), max(int(ends[1]), place)
    check = _cusum(x)
    agree = None if check is None else low - SLACK <= check <= high + SLACK
    if check is not None:
        low, high = min(low, check), max(high, check)
    if len(x) < len(curve.values):  # a mean may hold figures from before and after
        low, high = max(low - 1, 0), min(high + 1, len(x) - 1)
    return Change(
        steps[place],
        steps[low],
        steps[high],
        sign * first,
        sign * last,
        None if check is None else steps[check],
        agree,
    )


def jumps(curves: np.ndarray) -> np.ndarray:
    """Of each row of ``curves`` [R, N], the index of the first point after the best upward jump;
    -1 where no jump goes up."""
    shapes = _shapes(curves.shape[1], JUMP)
    best = shapes.best(curves)
    place: np.ndarray = np.where(best < 0, -1, shapes.starts[best])
    return place


@dataclass(frozen=True)
class _Shapes:
    """The passages from 0 to 1 that a curve of N points may make. ``shapes`` [S, N], centred and
    of length 1; ``starts`` [S] the first point above 0; ``jumps`` how many of them, the first ones,
    are jumps."""

    shapes: np.ndarray
    starts: np.ndarray
    jumps: int

    def best(self, curves: np.ndarray) -> np.ndarray:
        """Index of the shape for each row of ``curves`` [R, N]; -1 where nothing goes up."""
        count = curves.shape[1]
        centred = curves - curves.mean(axis=1, keepdims=True)
        total = (centred**2).sum(axis=1)
        gains = np.maximum(centred @ self.shapes.T, 0.0) ** 2  # [R, S], saved squares
        jump = gains[:, : self.jumps].argmax(axis=1)
        rows = np.arange(len(curves))
        saved = gains[rows, jump]
        best: np.ndarray = np.where(saved > 0, jump, -1)
        if gains.shape[1] > self.jumps:
            ramp = self.jumps + gains[:, self.jumps :].argmax(axis=1)
            # Rounding may leave a perfect fit with less than nothing.
            left = np.maximum(total - saved, 1e-12 * total + 1e-300)
            less = np.maximum(total - gains[rows, ramp], 1e-12 * total + 1e-300)
            worth = count * np.log(left / less) > np.log(count)
            best = np.where(worth & (gains[rows, ramp] > 0), ramp, best)
        return best

    def fit(self, x: np.ndarray, index: int) -> np.ndarray:
        """The model of that shape nearest to ``x`` [N]."""
        fitted: np.ndarray = x.mean() + (x @ self.shapes[index]) * self.shapes[index]
        return fitted


@lru_cache(maxsize=8)
def _shapes(count: int, lengths: tuple[int, ...]) -> _Shapes:
    points = np.arange(count)
    raw, starts, jumped = [], [], 0
    for length in lengths:
        # A passage must end within the curve: what is still falling has no second level.
        for start in range(1, count - length + 1):
            raw.append(np.clip((points - start + 1) / length, 0.0, 1.0))
            starts.append(start)
            jumped += length == 1
    table = np.asarray(raw)
    shapes = table - table.mean(axis=1, keepdims=True)
    shapes /= np.sqrt((shapes**2).sum(axis=1, keepdims=True))
    return _Shapes(shapes, np.asarray(starts), jumped)


def _thinned(curve: Curve) -> tuple[tuple[int, ...], np.ndarray]:
    """The curve in at most :data:`MAX_POINTS` means of equal parts, by their first steps."""
    values = np.asarray(curve.values)
    per = -(-len(values) // MAX_POINTS)
    if per == 1:
        return curve.steps, values
    starts = np.arange(0, len(values), per)
    counts = np.diff([*starts, len(values)])
    return curve.steps[::per], np.add.reduceat(values, starts) / counts


def _worth(rest: np.ndarray, change: float, place: int) -> bool:
    error = rest.std() * np.sqrt(1 / place + 1 / (len(rest) - place))
    return bool(change > WORTH * error)


def _again(fitted: np.ndarray, residuals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``RESAMPLES`` curves of the model and blocks of residuals [R, N], circular."""
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
