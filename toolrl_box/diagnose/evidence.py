"""From an aggregate to the curves that the rules judge.

Input: :class:`Aggregate`. Output: :class:`Signals`, by the first step of each bin. Where a log has
a figure both ways, its own mean over the whole batch (a scalar) is taken before the mean of those
rollouts that were logged; and the shares of states that a run folder of this package counted while
it still knew the tools, before what the texts alone show.

Left out: bugs (``diagnose.bugs``) and the rules (``toolrl_box.verdicts``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolrl_box.curves import NOTHING, Curve
from toolrl_box.diagnose.aggregate import Bin
from toolrl_box.probe.states import WELL_FORMED
from toolrl_box.verdicts import Sign, Signals, judged_by

SOUND = ("call", "response", *WELL_FORMED)


def signals(bins: Sequence[Bin], bugs: tuple[Sign, ...] = ()) -> tuple[bool, Signals]:
    """The curves, and whether the reward to judge by is the evaluation."""
    evaluation = curve(bins, lambda b: scalar(b, "success"))
    dense, reward = judged_by(curve(bins, reward_of), evaluation)
    # A supervised step's entropy is that of gold tokens.
    rewarded = [b for b in bins if reward_of(b) is not None]
    return dense, Signals(
        reward,
        curve(bins, healthy_share),
        evaluation,
        entropy=curve(rewarded, lambda b: scalar(b, "entropy")),
        length=curve(bins, length_of),
        cut=curve(bins, cut_share),
        spread=curve(bins, spread_of),
        wrong=curve(bins, wrong_share),
        bugs=bugs,
    )


def curve(bins: Sequence[Bin], value: Callable[[Bin], float | None]) -> Curve:
    points = [(b.first, v) for b in bins if b.first is not None and (v := value(b)) is not None]
    if not points:
        return NOTHING
    return Curve(tuple(step for step, _ in points), tuple(v for _, v in points))


def scalar(bin_: Bin, name: str) -> float | None:
    found = bin_.scalars.get(name)
    return None if found is None else found.mean


def reward_of(bin_: Bin) -> float | None:
    logged = scalar(bin_, "reward")
    return bin_.reward.mean if logged is None else logged


def spread_of(bin_: Bin) -> float | None:
    logged = scalar(bin_, "reward_std")
    return bin_.spread.mean if logged is None else logged


def length_of(bin_: Bin) -> float | None:
    logged = scalar(bin_, "response_length")
    return bin_.length.mean if logged is None else logged


def healthy_share(bin_: Bin) -> float | None:
    """Share of structurally sound messages. A well-formed call that names an unlisted tool or
    breaks its schema is a mistake, not broken structure, and how often those occur hangs on which
    tasks a step drew."""
    calls = scalar(bin_, "state_healthy_call")
    if calls is not None:
        mistaken = sum(scalar(bin_, f"kind_{kind}") or 0.0 for kind in WELL_FORMED)
        return calls + (scalar(bin_, "state_healthy_response") or 0.0) + mistaken
    if not bin_.messages:
        return None
    return sum(bin_.kinds.get(kind, 0) for kind in SOUND) / bin_.messages


def cut_share(bin_: Bin) -> float | None:
    """Share of messages that the token limit broke off."""
    if scalar(bin_, "state_healthy_call") is not None:
        return scalar(bin_, "kind_truncated") or 0.0
    logged = scalar(bin_, "truncated")
    if logged is not None:
        return logged
    return bin_.kinds.get("truncated", 0) / bin_.messages if bin_.messages else None


def wrong_share(bin_: Bin) -> float | None:
    calls = scalar(bin_, "state_healthy_call")
    if calls is not None:
        mistaken = sum(scalar(bin_, f"kind_{kind}") or 0.0 for kind in WELL_FORMED)
        return mistaken / (mistaken + calls) if mistaken + calls else None
    return bin_.wrong / bin_.calls if bin_.calls else None
