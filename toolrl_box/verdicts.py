"""What became of a run, when, and by which sign? Pure rules on a few curves, the same for a run
report and for the diagnosis of a foreign log.

Input: :class:`Signals`, curves by step. Output: a :class:`Verdict`: the first rule of
:data:`RULES` that holds, and every other that does (``also``). On trailing means (5 steps of
reward, entropy and length, 3 of healthy share):

* *reward onset*: the first step at which the mean is below half of its peak so far and from
  which on it stays below 70% of that peak to the end. A peak below 0.05 is noise and cannot fall.
  Rewards outside [0, 1] are first shifted by their lowest figure below 0 and divided by their
  range.
* *structural onset*: the first step at which the mean healthy share is below 0.8. A model that
  was never that healthy is measured against itself: below 80% of its best so far.
* *evaluation*: with at least 4 points, 2-point means of the success on fixed held-out tasks. The
  sampled reward hangs on which tasks a step drew; a fall that leaves half of the best evaluation
  standing is none.

The rules in order; the first that holds names the run:

* ``suspected_bug``        a defect of the training or of its log (the caller finds those).
* ``insufficient_data``    fewer than 10 points of reward and fewer than 4 of evaluation, and
  messages that are sound or also too few. Without either, broken messages are still judged.
* ``length_explosion``     the mean length is 3 times what it was at first and responses are cut
  at the limit (a quarter of them; where nothing says so: reward fell), while messages would be
  sound if being cut did not count.
* ``structural_collapse``  messages ended broken (below the limit above) and reward fell
  (an onset), or more than half of the messages ended broken when they were not before.
* ``entropy_collapse``     entropy fell below 10% of what it was at first and stays below 20%,
  before reward fell; or without a fall of reward, when the rollouts of a group came to be alike
  (their spread below 20% of what it was) with less than 90% of the reward earned.
* ``capability_loss``      reward fell, messages did not, and of the calls at least 20 points more
  (and twice as many) than at first name a tool that is not there, break its schema or differ
  from gold.
* ``reward_collapse``      reward fell, messages did not.
* ``text_pollution``       messages ended broken, reward held (or is not known).
* ``drifting``             no collapse, but the evaluation (without one: the reward) ended below
  70% of its peak.
* ``healthy``              none of these.

Alarms play no part: a detector must not be judged by a verdict that it helped to reach. Left out:
causes (the figures and the examples show them) and comparisons between runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from toolrl_box.curves import NOTHING, Curve

Name = Literal[
    "healthy",
    "drifting",
    "text_pollution",
    "structural_collapse",
    "capability_loss",
    "reward_collapse",
    "entropy_collapse",
    "length_explosion",
    "suspected_bug",
    "insufficient_data",
]

REWARD_WINDOW = 5
HEALTH_WINDOW = 3
MIN_POINTS = 10
EVALUATION_WINDOW = 2
MIN_EVALUATIONS = 4
MIN_PEAK = 0.05
FALLEN = 0.5
NOT_RECOVERED = 0.7
HEALTHY_SHARE = 0.8
MOSTLY = 0.5
REFERENCE = 5
ENTROPY_LEFT = 0.1
ENTROPY_BACK = 0.2
SPREAD_LEFT = 0.2
EARNED = 0.9
LONGER = 3.0
CUT = 0.25
WRONG_MORE = 0.2
WRONG_TIMES = 2.0

HEADLINES: dict[Name, str] = {
    "healthy": "Healthy: the model kept what it learned",
    "drifting": "Drifting: no collapse, but the run ends worse than it was",
    "text_pollution": "Polluted: broken tags and calls in the messages, reward not yet lost",
    "structural_collapse": "Collapsed: the model's messages fell apart",
    "capability_loss": "Collapsed: well-formed calls, but of the wrong tools or arguments",
    "reward_collapse": "Collapsed: messages look fine, but tasks are no longer solved",
    "entropy_collapse": "Collapsed: the policy no longer explores",
    "length_explosion": "Collapsed: responses grow until they are cut",
    "suspected_bug": "Suspected bug: look at the training code or the log first",
    "insufficient_data": "Too short to judge",
}


@dataclass(frozen=True, slots=True)
class Sign:
    """A rule that holds, the sentence that says by which figures, and the step it began at."""

    name: Name
    evidence: str
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Signals:
    """What the rules look at. ``reward`` mean reward by step; ``healthy`` share of structurally
    sound messages; ``evaluation`` success on fixed tasks; ``entropy`` nats a token; ``length`` of
    a response, any unit; ``cut`` share of messages that the token limit ended; ``spread`` standard
    deviation of the reward within groups; ``wrong`` share of the well-formed calls that name an
    unlisted tool, break its schema or differ from gold. Empty where the log has nothing.
    ``bugs``: what the caller found that explains the rest, gravest first."""

    reward: Curve
    healthy: Curve
    evaluation: Curve = NOTHING
    entropy: Curve = NOTHING
    length: Curve = NOTHING
    cut: Curve = NOTHING
    spread: Curve = NOTHING
    wrong: Curve = NOTHING
    bugs: tuple[Sign, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """``onset`` is the earliest onset that the verdict rests on; None when nothing collapsed.

    ``structural_onset`` is also set for a run that recovered. ``peak``, ``peak_step`` and
    ``final`` are 5-step means of the curve that was judged; None when it was too short. ``also``:
    the further rules that hold, in their order.
    """

    name: Name
    reason: str
    onset: int | None = None
    reward_onset: int | None = None
    structural_onset: int | None = None
    peak: float | None = None
    peak_step: int | None = None
    final: float | None = None
    also: tuple[Sign, ...] = ()

    @property
    def headline(self) -> str:
        return HEADLINES[self.name]


@dataclass(frozen=True, slots=True)
class _Facts:
    """The curves, and what several rules need of them. ``fall`` and ``break_`` are onsets,
    ``share`` the healthy share at the end, ``lost`` whether the run ended below 70% of its best,
    ``earned`` the final reward in [0, 1]."""

    signals: Signals
    points: int
    evaluations: int
    fall: int | None
    break_: int | None
    share: float | None
    broken: bool
    lost: bool
    earned: float | None


def judge(signals: Signals) -> Verdict:
    """Apply the rules above."""
    facts = _facts(signals)
    signs = [*signals.bugs, *(sign for rule in RULES if (sign := rule(facts)) is not None)]
    means = signals.reward.trailing_mean(REWARD_WINDOW)
    if facts.points < MIN_POINTS:
        means = NOTHING
        if facts.evaluations >= MIN_EVALUATIONS:
            means = signals.evaluation.trailing_mean(EVALUATION_WINDOW)
    verdict = Verdict(
        "healthy", _figures(facts), reward_onset=facts.fall, structural_onset=facts.break_
    )
    if means.values:
        peak = max(means.values)
        verdict = replace(
            verdict,
            peak=peak,
            peak_step=means.steps[means.values.index(peak)],
            final=means.values[-1],
        )
    if signs:
        first, *rest = signs
        reason = first.evidence if first.name in _SPEAKS_FOR_ITSELF else verdict.reason
        verdict = replace(
            verdict, name=first.name, reason=reason, onset=first.since, also=tuple(rest)
        )
    return verdict


def judged_by(reward: Curve, evaluation: Curve) -> tuple[bool, Curve]:
    """The curve to judge by, and whether it is the evaluation: that on a fixed held-out set when
    it is dense (at least every other rewarded step), else the sampled reward, which is noisier."""
    dense = 2 * len(evaluation.steps) >= len(reward.steps) and len(evaluation.steps) >= MIN_POINTS
    return dense, evaluation if dense else reward


def reward_onset(reward: Curve) -> int | None:
    """First step of the fall that lasts, or None."""
    means = _normalised(reward).trailing_mean(REWARD_WINDOW)
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


def entropy_onset(entropy: Curve) -> int | None:
    """First step of a loss of entropy that lasts, or None."""
    if len(entropy.values) < MIN_POINTS:
        return None
    means = entropy.trailing_mean(REWARD_WINDOW)
    first = median(entropy.values[:REFERENCE])
    for index, (step, value) in enumerate(zip(means.steps, means.values, strict=True)):
        if value < ENTROPY_LEFT * first and max(means.values[index:]) < ENTROPY_BACK * first:
            return step
    return None


def length_onset(length: Curve) -> int | None:
    """First step from which on responses are three times as long as at first, or None."""
    if len(length.values) < MIN_POINTS:
        return None
    means = length.trailing_mean(REWARD_WINDOW)
    first = median(length.values[:REFERENCE])
    for index, (step, value) in enumerate(zip(means.steps, means.values, strict=True)):
        if 0 < LONGER * first <= value and min(means.values[index:]) >= LONGER * first:
            return step
    return None


# --- the rules, in the order of precedence ---------------------------------------------------


def _insufficient(facts: _Facts) -> Sign | None:
    if facts.points >= MIN_POINTS or facts.evaluations >= MIN_EVALUATIONS:
        return None
    if facts.broken and len(facts.signals.healthy.values) >= MIN_POINTS:
        return None
    least = f"{facts.points} points of reward or evaluation; the rules need {MIN_POINTS}."
    return Sign("insufficient_data", least)


def _length(facts: _Facts) -> Sign | None:
    signals = facts.signals
    since = length_onset(signals.length)
    if since is None:
        return None
    cut = _end(signals.cut, HEALTH_WINDOW)
    if not ((facts.fall is not None or facts.lost) if cut is None else cut >= CUT):
        return None
    if facts.broken and _broken(signals.healthy.plus(signals.cut))[1]:
        return None
    first = median(signals.length.values[:REFERENCE])
    evidence = f"Responses grew from {first:.0f} to {_last(signals.length, REWARD_WINDOW):.0f}"
    evidence += "." if cut is None else f"; {cut:.0%} of the last ones were cut at the limit."
    return Sign("length_explosion", evidence, since)


def _structure(facts: _Facts) -> Sign | None:
    if not facts.broken or facts.share is None:
        return None
    if facts.fall is None and facts.share >= MOSTLY:
        return None
    since = min(x for x in (facts.fall, facts.break_) if x is not None)
    return Sign("structural_collapse", _figures(facts), since)


def _entropy(facts: _Facts) -> Sign | None:
    signals = facts.signals
    since = entropy_onset(signals.entropy)
    if since is None or facts.broken:
        return None
    explains_fall = facts.fall is not None and since <= facts.fall
    alike = _end(signals.spread, REWARD_WINDOW)
    at_first = median(signals.spread.values[:REFERENCE]) if signals.spread.values else 0.0
    stuck = (
        alike is not None
        and at_first > 0
        and alike < SPREAD_LEFT * at_first
        and facts.earned is not None
        and facts.earned < EARNED
    )
    if not (explains_fall or (facts.fall is None and stuck)):
        return None
    first = median(signals.entropy.values[:REFERENCE])
    last = _last(signals.entropy, REWARD_WINDOW)
    evidence = f"Entropy fell from {first:.3g} to {last:.3g} nats a token"
    evidence += ", before the reward did." if explains_fall else "; rollouts of a group are alike."
    return Sign("entropy_collapse", evidence, since)


def _capability(facts: _Facts) -> Sign | None:
    wrong = facts.signals.wrong
    if facts.fall is None or facts.broken or len(wrong.values) < MIN_POINTS:
        return None
    first, last = median(wrong.values[:REFERENCE]), _last(wrong, REWARD_WINDOW)
    if last < first + WRONG_MORE or last < WRONG_TIMES * first:
        return None
    evidence = f"{first:.0%} of the well-formed calls were wrong at first, {last:.0%} at the end."
    return Sign("capability_loss", evidence, facts.fall)


def _reward(facts: _Facts) -> Sign | None:
    if facts.broken:
        return None
    if facts.fall is not None:
        return Sign("reward_collapse", _figures(facts), facts.fall)
    if facts.points < MIN_POINTS and facts.lost and (_kept(facts.signals.evaluation) or 0) < FALLEN:
        return Sign("reward_collapse", _figures(facts))
    return None


def _pollution(facts: _Facts) -> Sign | None:
    if not facts.broken or facts.share is None or facts.share < MOSTLY or facts.fall is not None:
        return None
    evidence = f"{1 - facts.share:.0%} of the last messages are broken; reward has not fallen."
    return Sign("text_pollution", evidence)


def _drift(facts: _Facts) -> Sign | None:
    if not facts.lost or facts.fall is not None or _reward(facts) is not None:
        return None
    return Sign("drifting", _figures(facts))


RULES: tuple[Callable[[_Facts], Sign | None], ...] = (
    _insufficient,
    _length,
    _structure,
    _entropy,
    _capability,
    _reward,
    _pollution,
    _drift,
)
# The others rest on reward and structure alone, which the verdict's reason tells in any case.
_SPEAKS_FOR_ITSELF = (
    *("suspected_bug", "insufficient_data", "length_explosion", "entropy_collapse"),
    *("capability_loss", "text_pollution"),
)


# --- what they share -------------------------------------------------------------------------


def _facts(signals: Signals) -> _Facts:
    points = len(signals.reward.values)
    kept = _kept(signals.evaluation)
    fall, lost, earned = None, False, None
    if points >= MIN_POINTS:
        means = _normalised(signals.reward).trailing_mean(REWARD_WINDOW)
        peak, earned = max(means.values), means.values[-1]
        fall = reward_onset(signals.reward)
        lost = peak >= MIN_PEAK and earned < NOT_RECOVERED * peak
    if kept is not None:
        fall = fall if kept < FALLEN else None
        lost = kept < NOT_RECOVERED
    share, broken = _broken(signals.healthy)
    return _Facts(
        signals,
        points,
        0 if kept is None else len(signals.evaluation.values),
        fall,
        structural_onset(signals.healthy),
        share,
        broken,
        lost,
        earned,
    )


def _figures(facts: _Facts) -> str:
    """The sentence on reward and structure."""
    share = facts.share
    sound = "" if share is None else f"{share:.0%} of the last messages were structurally sound."
    if facts.points >= MIN_POINTS:
        means = facts.signals.reward.trailing_mean(REWARD_WINDOW).values
        text = f"Mean reward peaked at {max(means):.2f} and ended at {means[-1]:.2f}"
        return text + (f"; {sound}" if sound else ".")
    if facts.evaluations >= MIN_EVALUATIONS:
        means = facts.signals.evaluation.trailing_mean(EVALUATION_WINDOW).values
        return (
            f"Judged by the evaluation alone: it peaked at {max(means):.2f} and ended at "
            f"{means[-1]:.2f}."
        )
    return f"No reward to judge by; {sound}"


def _kept(evaluation: Curve) -> float | None:
    """Which share of its best the evaluation ended with; None when there is too little of it."""
    means = evaluation.trailing_mean(EVALUATION_WINDOW).values
    if len(evaluation.values) < MIN_EVALUATIONS or max(means) < MIN_PEAK:
        return None
    return means[-1] / max(means)


def _broken(healthy: Curve) -> tuple[float | None, bool]:
    """The healthy share at the end, and whether that is below the limit."""
    means = healthy.trailing_mean(HEALTH_WINDOW).values
    if not means:
        return None, False
    return means[-1], means[-1] < _limit(max(means))


def _limit(best: float) -> float:
    """The share below which messages count as broken, given the best share so far."""
    return HEALTHY_SHARE if best >= HEALTHY_SHARE else HEALTHY_SHARE * best


def _normalised(reward: Curve) -> Curve:
    """Within [0, 1] as it is; other scales are brought there."""
    if not reward.values:
        return reward
    low = min(0.0, *reward.values)
    unit = max(1.0, max(reward.values) - low)
    return Curve(reward.steps, tuple((value - low) / unit for value in reward.values))


def _end(curve: Curve, window: int) -> float | None:
    return _last(curve, window) if curve.values else None


def _last(curve: Curve, window: int) -> float:
    values = curve.values[-window:]
    return sum(values) / len(values)
