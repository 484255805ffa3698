"""Statistics of a few runs: pure functions on arrays; resampling takes an explicit ``rng``.

Input: scores with their axes in the name: ``scores_R_K`` runs x tasks (here a task is a category
of the evaluation, the same in every arm), ``curves_R_T`` runs x points in time. Output: floats,
arrays and :class:`Interval`. Definitions follow Agarwal et al., "Deep RL at the edge of the
statistical precipice" (arXiv 2108.13264), and agree with their package rliable (tests/data).

Two resamplings, because they answer different questions: :func:`resample_runs` draws whole runs
and is right when all scores of a row come from one model; :func:`resample_strata` draws every
column apart, which is the paper's stratified bootstrap and assumes that columns are independent
(with one model a row its intervals are too narrow when categories go up and down together).

Left out: one run alone has no interval (ValueError, never an invented one); p-values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

REPS = 2000
LEVEL = 0.95
BATCH = 250  # replicates at a time: bounds memory, not the result

Array = np.ndarray
Resample = Callable[[Array, int, np.random.Generator], Array]
Statistic = Callable[[Array], Array]
"""``scores_B_R_K`` -> figures of each replicate, B first."""


class Interval(NamedTuple):
    """Two-sided, 95% unless asked otherwise."""

    low: float
    high: float


def resample_runs(scores: Array, reps: int, rng: np.random.Generator) -> Array:
    """``scores`` (R, …) -> (reps, R, …): runs drawn with replacement, each with all its scores."""
    runs = len(scores)
    drawn: Array = scores[rng.integers(runs, size=(reps, runs))]
    return drawn


def resample_strata(scores_R_K: Array, reps: int, rng: np.random.Generator) -> Array:
    """``scores_R_K`` -> (reps, R, K): runs drawn with replacement in each column apart."""
    runs, tasks = scores_R_K.shape
    rows = rng.integers(runs, size=(reps, runs, tasks))
    drawn: Array = scores_R_K[rows, np.arange(tasks)]
    return drawn


def iqm(scores: Array) -> Array:
    """Interquartile mean over the last two axes: the mean without the lowest and the highest
    quarter of the scores, rounded down. (…, R, K) -> (…)."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    mean: Array = flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)
    return mean


def profile(scores: Array, thresholds: Array) -> Array:
    """Performance profile: share of scores (runs and tasks together) above each threshold.
    (…, R, K) and (H,) -> (…, H)."""
    flat = scores.reshape(*scores.shape[:-2], -1, 1)
    share: Array = (flat > thresholds).mean(axis=-2)
    return share


def improvement(x: Array, y: Array) -> Array:
    """Probability that a run of ``x`` beats a run of ``y`` on a task, ties half, averaged over
    tasks. (…, R, K) and (…, S, K) -> (…)."""
    difference = x[..., :, None, :] - y[..., None, :, :]
    wins: Array = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-3, -2, -1))
    return wins


def bootstrap(
    scores: Array,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    resample: Resample = resample_runs,
    reps: int = REPS,
    level: float = LEVEL,
) -> tuple[Array, Array]:
    """Percentile interval of ``statistic`` over resampled runs (first axis): low and high, each
    of the statistic's shape. Raises ValueError for fewer than two runs."""
    _check_runs(scores)
    draws = [statistic(resample(scores, size, rng)) for size in _batches(reps)]
    return _percentiles(np.concatenate(draws), level)


def iqm_interval(
    scores_R_K: Array,
    rng: np.random.Generator,
    *,
    resample: Resample = resample_runs,
    reps: int = REPS,
    level: float = LEVEL,
) -> Interval:
    """Bootstrap interval of :func:`iqm`. Raises ValueError for fewer than two runs."""
    low, high = bootstrap(scores_R_K, iqm, rng, resample=resample, reps=reps, level=level)
    return Interval(float(low), float(high))


def mean_interval(
    values_R: Array, rng: np.random.Generator, *, reps: int = REPS, level: float = LEVEL
) -> Interval:
    """Bootstrap interval of the mean over runs. Raises ValueError for fewer than two runs."""
    low, high = bootstrap(values_R, lambda drawn: drawn.mean(axis=1), rng, reps=reps, level=level)
    return Interval(float(low), float(high))


def improvement_interval(
    x_R_K: Array,
    y_S_K: Array,
    rng: np.random.Generator,
    *,
    resample: Resample = resample_runs,
    reps: int = REPS,
    level: float = LEVEL,
) -> Interval:
    """Interval of :func:`improvement`, both sides resampled independently.

    Raises ValueError for fewer than two runs on a side.
    """
    _check_runs(x_R_K)
    _check_runs(y_S_K)
    draws = [
        improvement(resample(x_R_K, size, rng), resample(y_S_K, size, rng))
        for size in _batches(reps)
    ]
    low, high = _percentiles(np.concatenate(draws), level)
    return Interval(float(low), float(high))


def curve_band(
    curves_R_T: Array, rng: np.random.Generator, *, reps: int = REPS, level: float = LEVEL
) -> tuple[Array, Array]:
    """Pointwise bootstrap band of the mean curve: low (T,) and high (T,). It covers each point at
    ``level``, not the whole curve at once. Raises ValueError for fewer than two runs."""
    return bootstrap(curves_R_T, lambda drawn: drawn.mean(axis=1), rng, reps=reps, level=level)


def proportion_interval(hits: int, total: int, *, level: float = LEVEL) -> Interval:
    """Exact (Clopper-Pearson) interval of a proportion; right for any number of trials, one
    included. Raises ValueError unless 0 <= hits <= total and total >= 1."""
    exact = binomtest(hits, total).proportion_ci(level, method="exact")
    return Interval(float(exact.low), float(exact.high))


def _check_runs(scores: Array) -> None:
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} run(s): an interval over runs needs at least 2")


def _batches(reps: int) -> list[int]:
    full, rest = divmod(reps, BATCH)
    return [BATCH] * full + [rest] * (rest > 0)


def _percentiles(draws: Array, level: float) -> tuple[Array, Array]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high
