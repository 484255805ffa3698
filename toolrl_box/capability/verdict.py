"""Is a collapsed checkpoint's capability intact and obscured, or lost? Rules fixed beforehand.

Input: for the same tasks, one score in [0, 1] each (``_T``): of the reference (the base), of the
checkpoint as it is, and of the checkpoint under each structural counterfactual. A task's score is
the mean of its greedy episode and its episode at temperature 1. Output: a :class:`Verdict`.

The recovered share of a counterfactual is

    (its success - the checkpoint's success) / (the reference's success - the checkpoint's success)

and the verdict rests on the best counterfactual. Intervals are 95% bootstraps over tasks, paired:
a drawn task brings its scores under every condition, and the best is chosen anew in each replicate.

* ``not collapsed``        success is at least half of the reference's (the reports' own limit), or
  the fall is one that these tasks cannot tell from chance (its interval holds 0).
* ``intact and obscured``  the share is at least 0.8 and its interval lies above 0.5.
* ``lost``                 the share is at most 0.2 and its interval lies below 0.5.
* ``partly``               everything between, also what too few tasks leave open.

The best of several is biased upwards, the more so the fewer the tasks; the share of each alone
stands beside it. Left out: intervals over runs (whoever compares checkpoints has those).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolrl_box.stats import Array, Interval, bootstrap
from toolrl_box.verdicts import FALLEN

Name = Literal["not collapsed", "intact and obscured", "partly", "lost"]

INTACT = 0.8
"""A recovered share from which capability may count as intact."""
LOST = 0.2
"""A recovered share up to which capability may count as lost."""
HALF = 0.5
"""What the interval must clear for either."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A recovered share and its interval. It may be negative, and exceed 1."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """``fall`` is reference minus checkpoint. ``best`` names the best counterfactual, ``recovered``
    is its share and ``each`` holds that of every one alone; None and empty when not collapsed."""

    name: Name
    reference: float
    checkpoint: float
    fall: Interval
    best: str | None = None
    recovered: Recovered | None = None
    each: Mapping[str, Recovered] | None = None


def judge(
    reference_T: Array, checkpoint_T: Array, others: Mapping[str, Array], rng: np.random.Generator
) -> Verdict:
    """Apply the rules above. Raises ValueError for fewer than two tasks or no counterfactual."""
    if not others:
        raise ValueError("no counterfactual to judge by")
    scores_T_C = np.column_stack([reference_T, checkpoint_T, *others.values()])
    means_C = scores_T_C.mean(0)
    reference, checkpoint = float(means_C[0]), float(means_C[1])
    low, high = bootstrap(scores_T_C, _fall, rng)
    fall = Interval(float(low), float(high))
    if checkpoint >= FALLEN * reference or fall.low <= 0:
        return Verdict("not collapsed", reference, checkpoint, fall)
    each = {
        name: _recovered(scores_T_C[:, [0, 1, 2 + place]], rng) for place, name in enumerate(others)
    }
    recovered = _recovered(scores_T_C, rng)
    best = max(each, key=lambda name: each[name].share)
    return Verdict(_name(recovered), reference, checkpoint, fall, best, recovered, each)


def _name(recovered: Recovered) -> Name:
    if recovered.share >= INTACT and recovered.low > HALF:
        return "intact and obscured"
    if recovered.share <= LOST and recovered.high < HALF:
        return "lost"
    return "partly"


def _recovered(scores_T_C: Array, rng: np.random.Generator) -> Recovered:
    low, high = bootstrap(scores_T_C, _share, rng)
    return Recovered(float(_share(scores_T_C[None])[0]), float(low), float(high))


def _fall(scores_B_T_C: Array) -> Array:
    means_B_C = scores_B_T_C.mean(1)
    fall: Array = means_B_C[:, 0] - means_B_C[:, 1]
    return fall


def _share(scores_B_T_C: Array) -> Array:
    """Of the best of the columns after the first two. The fall counts as one task at least: a
    replicate without a fall (rare, as the fall is beyond chance) has no share."""
    means_B_C = scores_B_T_C.mean(1)
    fall_B = np.maximum(_fall(scores_B_T_C), 1 / scores_B_T_C.shape[1])
    share: Array = (means_B_C[:, 2:].max(1) - means_B_C[:, 1]) / fall_B
    return share
