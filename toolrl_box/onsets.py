"""When a run began to collapse, and which kind of run it is: fixed before any detector was scored.

Input: evaluations on the fixed held-out tasks by step, and the share of healthy messages of RL
steps. Output: :class:`Onsets`. The rules:

* *reward onset*: m(t) is the mean of the evaluations of the last 5 steps, taken at evaluated
  steps. The onset is the first t with m(t) below half of the highest m so far, if every later m
  stays below 70% of that height.
* *structural onset*: the reference is the median healthy share (``state_healthy_call`` plus
  ``state_healthy_response``) of the first 5 RL steps. The onset is the first RL step at which the
  mean of the last 3 RL steps is below 80% of it, if the mean from that step to the end is, too.
  The prototype's limit was 80% in absolute terms (lab.md); the noisy base begins at about 74%.
* *class*: ``collapsing`` has a reward onset; ``healthy`` has no onset of either kind and ends with
  m at 70% of its height or more; everything else is ``ambiguous`` and is reported as that.

Left out: why a run collapsed (``report``), and verdicts for reports, which have rules of their own
(:mod:`toolrl_box.verdicts`) because they must also judge runs with few evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal, get_args

Kind = Literal["collapsing", "healthy", "ambiguous"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Points = Sequence[tuple[int, float]]
"""(step, value), steps increasing, no gaps filled."""

EVALUATED_STEPS = 5
FALLEN = 0.5
NOT_RECOVERED = 0.7
REFERENCE_STEPS = 5
HEALTH_STEPS = 3
HEALTH = 0.8


@dataclass(frozen=True, slots=True)
class Onsets:
    """Steps, or None for what did not happen."""

    kind: Kind
    reward: int | None
    structural: int | None

    @property
    def first(self) -> int | None:
        """The earlier of the two."""
        return min((o for o in (self.reward, self.structural) if o is not None), default=None)


def onsets(evaluations: Points, healthy: Points) -> Onsets:
    """``evaluations``: success in [0, 1] at every evaluated step, 0 included. ``healthy``: shares
    of messages at RL steps."""
    reward, structural = reward_onset(evaluations), structural_onset(healthy)
    means = [mean for _, mean in evaluation_means(evaluations)]
    kind: Kind = "ambiguous"
    if reward is not None:
        kind = "collapsing"
    elif structural is None and means and means[-1] >= NOT_RECOVERED * max(means):
        kind = "healthy"
    return Onsets(kind, reward, structural)


def evaluation_means(evaluations: Points) -> list[tuple[int, float]]:
    """At each evaluated step the mean of the evaluations of the last 5 steps, its own included."""
    return [
        (step, fmean(v for s, v in evaluations[: place + 1] if s > step - EVALUATED_STEPS))
        for place, (step, _) in enumerate(evaluations)
    ]


def reward_onset(evaluations: Points) -> int | None:
    means = evaluation_means(evaluations)
    height = 0.0
    for place, (step, mean) in enumerate(means):
        height = max(height, mean)
        lasts = all(later < NOT_RECOVERED * height for _, later in means[place:])
        if mean < FALLEN * height and lasts:
            return step
    return None


def structural_onset(healthy: Points) -> int | None:
    """None also for a run with fewer RL steps than the reference needs."""
    if len(healthy) < REFERENCE_STEPS:
        return None
    shares = [share for _, share in healthy]
    limit = HEALTH * median(shares[:REFERENCE_STEPS])
    for end in range(HEALTH_STEPS, len(shares) + 1):
        if fmean(shares[end - HEALTH_STEPS : end]) < limit and fmean(shares[end - 1 :]) < limit:
            return healthy[end - 1][0]
    return None
