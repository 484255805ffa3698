"""Did the run collapse, when, and how? Pure rules on two curves, the same for every run.

Input: the sampled reward (or the evaluation) and the share of healthy messages, by step.
Output: a :class:`Verdict`. The rules, on trailing means (5 steps of reward, 3 of healthy share):

* *reward onset*: the first step at which the mean is below half of its peak so far and from
  which on it stays below 70% of that peak to the end. A peak below 0.05 is noise and cannot fall.
* *structural onset*: the first step at which the mean healthy share is below 0.8. A model that
  was never that healthy is measured against itself: below 80% of its best so far.
* *evaluation*: with at least 4 points, 2-point means of the success on fixed held-out tasks. The
  sampled reward hangs on which tasks a step drew; a fall that leaves half of the best evaluation
  standing is none.
* ``insufficient_data``    fewer than 10 points of reward and fewer than 4 of evaluation.
* ``structural_collapse``  messages ended broken (below the limit above) and reward fell
  (an onset), or more than half of the messages ended broken when they were not before.
* ``reward_collapse``      reward fell, messages did not.
* ``drifting``             no collapse, but messages ended broken, or the evaluation (without
  one: the reward) ended below 70% of its peak.
* ``healthy``              none of these.

Alarms play no part: a detector must not be judged by a verdict that it helped to reach. Left out:
causes (the figures and the examples show them) and comparisons between runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Name = Literal["healthy", "drifting", "structural_collapse", "reward_collapse", "insufficient_data"]

REWARD_WINDOW = 5
HEALTH_WINDOW = 3
MIN_POINTS = 10
EVALUATION_WINDOW = 2
MIN_EVALUATIONS = 4
MIN_PEAK = 0.05
FALLEN = 0.5
NOT_RECOVERED = 0.7
HEALTHY_SHARE = 0.8

HEADLINES: dict[Name, str] = {
    "healthy": "Healthy: the model kept what it learned",
    "drifting": "Drifting: no collapse, but the run ends worse than it was",
    "structural_collapse": "Collapsed: the model's messages fell apart",
    "reward_collapse": "Collapsed: messages look fine, but tasks are no longer solved",
    "insufficient_data": "Too short to judge",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at increasing steps, without gaps (steps that have no value are left out)."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, steps: Sequence[int], values: Sequence[float]) -> Curve:
        """Drops the steps whose value is NaN."""
        kept = [(int(s), float(v)) for s, v in zip(steps, values, strict=True) if not math.isnan(v)]
        return cls(tuple(s for s, _ in kept), tuple(v for _, v in kept))

    def trailing_mean(self, window: int) -> Curve:
        """Mean of the last ``window`` values, from the first full window on."""
        means = [
            sum(self.values[end - window : end]) / window
            for end in range(window, len(self.values) + 1)
        ]
        return Curve(self.steps[window - 1 :], tuple(means))


@dataclass(frozen=True, slots=True)
class Verdict:
    """``onset`` is the earliest onset that the verdict rests on; None when nothing collapsed.

    ``structural_onset`` is also set for a run that recovered. ``peak``, ``peak_step`` and
    ``final`` are 5-step means of the curve that was judged; None when it was too short.
    """

    name: Name
    reason: str
    onset: int | None = None
    reward_onset: int | None = None
    structural_onset: int | None = None
    peak: float | None = None
    peak_step: int | None = None
    final: float | None = None

    @property
    def headline(self) -> str:
        return HEADLINES[self.name]


NOTHING = Curve((), ())


def judge(reward: Curve, healthy: Curve, evaluation: Curve = NOTHING) -> Verdict:
    """Apply the rules above. ``reward`` and ``evaluation`` in [0, 1] by step, ``healthy`` shares
    by step."""
    kept = _kept(evaluation)
    if len(reward.values) < MIN_POINTS and kept is not None:
        return _by_evaluation(kept, evaluation)
    if len(reward.values) < MIN_POINTS:
        return Verdict(
            "insufficient_data",
            f"{len(reward.values)} points of reward or evaluation; the rules need {MIN_POINTS}.",
        )
    means = reward.trailing_mean(REWARD_WINDOW)
    peak, final = max(means.values), means.values[-1]
    fall, break_ = reward_onset(reward), structural_onset(healthy)
    lost = peak >= MIN_PEAK and final < NOT_RECOVERED * peak
    if kept is not None:
        fall = fall if kept < FALLEN else None
        lost = kept < NOT_RECOVERED
    shares = healthy.trailing_mean(HEALTH_WINDOW)
    share = shares.values[-1] if shares.values else None
    broken = share is not None and share < _limit(max(shares.values))
    mostly_broken = broken and share is not None and share < 0.5

    name: Name
    onset = None
    if fall is not None and not broken:
        name, onset = "reward_collapse", fall
    elif mostly_broken or (broken and fall is not None):
        name, onset = "structural_collapse", min(x for x in (fall, break_) if x is not None)
    elif broken or lost:
        name = "drifting"
    else:
        name = "healthy"
    reason = f"Mean reward peaked at {peak:.2f} and ended at {final:.2f}"
    reason += (
        "." if share is None else f"; {share:.0%} of the last messages were structurally sound."
    )
    return Verdict(
        name,
        reason,
        onset=onset,
        reward_onset=fall,
        structural_onset=break_,
        peak=peak,
        peak_step=means.steps[means.values.index(peak)],
        final=final,
    )


def _kept(evaluation: Curve) -> float | None:
    """Which share of its best the evaluation ended with; None when there is too little of it."""
    means = evaluation.trailing_mean(EVALUATION_WINDOW).values
    if len(evaluation.values) < MIN_EVALUATIONS or max(means) < MIN_PEAK:
        return None
    return means[-1] / max(means)


def _by_evaluation(kept: float, evaluation: Curve) -> Verdict:
    """A run that sampled no rewards, such as SFT alone."""
    means = evaluation.trailing_mean(EVALUATION_WINDOW)
    name: Name = "healthy"
    if kept < NOT_RECOVERED:
        name = "drifting" if kept >= FALLEN else "reward_collapse"
    peak, final = max(means.values), means.values[-1]
    return Verdict(
        name,
        f"Judged by the evaluation alone: it peaked at {peak:.2f} and ended at {final:.2f}.",
        peak=peak,
        peak_step=means.steps[means.values.index(peak)],
        final=final,
    )


def reward_onset(reward: Curve) -> int | None:
    """First step of the fall that lasts, or None."""
    means = reward.trailing_mean(REWARD_WINDOW)
    peak = -math.inf
    for index, (step, value) in enumerate(zip(means.steps, means.values, strict=True)):
        peak = max(peak, value)
        fallen = peak >= MIN_PEAK and value < FALLEN * peak
        if fallen and all(later < NOT_RECOVERED * peak for later in means.values[index:]):
            return step
    return None


def structural_onset(healthy: Curve) -> int | None:
    """First step at which the messages are broken, whether or not they recover, or None."""
    means = healthy.trailing_mean(HEALTH_WINDOW)
    best = 0.0
    for step, value in zip(means.steps, means.values, strict=True):
        best = max(best, value)
        if value < _limit(best):
            return step
    return None


def _limit(best: float) -> float:
    """The share below which messages count as broken, given the best share so far."""
    return HEALTHY_SHARE if best >= HEALTHY_SHARE else HEALTHY_SHARE * best
