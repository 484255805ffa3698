"""Defects of the training code or of the log that explain what looks like a collapse.

Input: an aggregate. Output: signs of ``suspected_bug``, gravest first. Each test is a small
function with its evidence sentence; a threshold is chosen so that rounding and a single odd row do
not trip it.

Left out: bugs that no log shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolrl_box.diagnose.aggregate import Aggregate, Bin
from toolrl_box.verdicts import MIN_POINTS, Sign

FIGURES_OF_TRAINING = ("loss", "grad_norm", "reward", "kl", "entropy")
MIN_ROLLOUTS = 50
POSSIBLE_LOGPROB = 1e-3
"""Above 0 by so much a log-prob is no rounding of a 16-bit float's 0."""
RETOKENISED = 0.005
OBSERVED = 0.01
FRAMED = 0.2
ALWAYS_CUT = 0.98


def bugs(aggregate: Aggregate, bins: Sequence[Bin]) -> tuple[Sign, ...]:
    found = (test(aggregate, bins) for test in TESTS)
    return tuple(Sign("suspected_bug", *sign) for sign in found if sign is not None)


Suspicion = tuple[str, int | None] | None


def _not_a_number(aggregate: Aggregate, bins: Sequence[Bin]) -> Suspicion:
    """Figures that stay broken to the end, or for a tenth of the steps."""
    last = bins[-1].last if bins else None
    for name in FIGURES_OF_TRAINING:
        seen = aggregate.broken.get(name)
        if seen is None or last is None:
            continue
        good = sum(bin_.scalars[name].n for bin_ in bins if name in bin_.scalars)
        if seen.last >= last or seen.count > 0.1 * (good + seen.count):
            return (
                f"{name} is NaN or infinite {seen.count} times, from step {seen.first} to "
                f"{seen.last}: what was learned after it cannot be trusted.",
                seen.first,
            )
    return None


def _constant_reward(aggregate: Aggregate, bins: Sequence[Bin]) -> Suspicion:
    single = aggregate.reward
    values = [v for b in bins if "reward" in b.scalars for v in (b.scalars["reward"].mean,)]
    if single.n >= MIN_ROLLOUTS:
        same, what, value = single.low == single.high, f"all {single.n} rollouts", single.low
    elif single.n == 0 and len(values) >= 2 * MIN_POINTS and values[0] is not None:
        same, what, value = len(set(values)) == 1, f"all {len(values)} steps", values[0]
    else:
        return None
    if not same:
        return None
    hint = "or every task is too hard" if value <= 0 else "or every task is too easy"
    return f"The reward is {value:g} in {what}: the reward function is broken, {hint}.", None


def _impossible_logprobs(aggregate: Aggregate, _: Sequence[Bin]) -> Suspicion:
    fact = aggregate.facts.get("max_logprob")
    if fact is None or fact.high <= POSSIBLE_LOGPROB:
        return None
    return f"A sampled token has log-prob {fact.high:.3g}; nothing above 0 is possible.", None


def _observations(aggregate: Aggregate, _: Sequence[Bin]) -> Suspicion:
    fact = aggregate.facts.get("observation_in_loss")
    if fact is None or fact.mean is None or fact.mean <= OBSERVED:
        return None
    return f"{fact.mean:.0%} of the tokens that tools wrote carry loss; right is none.", None


def _retokenised(aggregate: Aggregate, _: Sequence[Bin]) -> Suspicion:
    fact = aggregate.facts.get("retokenised")
    if fact is None or fact.mean is None or fact.mean <= RETOKENISED:
        return None
    return (
        f"{fact.mean:.1%} of the sampled tokens change when they are decoded and encoded again: "
        "log-probs and loss are of other tokens than were sampled.",
        None,
    )


def _never_stops(aggregate: Aggregate, bins: Sequence[Bin]) -> Suspicion:
    fact = aggregate.facts.get("ended_with_eos")
    if fact is not None and fact.n >= MIN_ROLLOUTS and fact.total == 0:
        return f"None of {fact.n} rollouts ended with the stop token (EOS).", None
    cut = [bin_.scalars["truncated"].mean for bin_ in bins if "truncated" in bin_.scalars]
    if len(cut) >= MIN_POINTS and min(x for x in cut if x is not None) >= ALWAYS_CUT:
        return "Responses were cut at the limit at every step: the stop token never comes.", None
    return None


def _template(aggregate: Aggregate, bins: Sequence[Bin]) -> Suspicion:
    """Frames of the chat template inside messages from the very first step on."""
    messages = framed = 0
    for index, bin_ in enumerate(bins or (aggregate.unplaced,)):
        if messages >= MIN_ROLLOUTS and index >= len(bins) / 10:
            break
        messages += bin_.messages
        framed += bin_.kinds.get("role_debris", 0)
    if messages < MIN_ROLLOUTS or framed < FRAMED * messages:
        return None
    return (
        f"{framed / messages:.0%} of the first messages hold tags of a chat frame: the chat "
        "template or the stop token of sampling is not the model's.",
        None,
    )


TESTS: tuple[Callable[[Aggregate, Sequence[Bin]], Suspicion], ...] = (
    _not_a_number,
    _impossible_logprobs,
    _observations,
    _retokenised,
    _template,
    _never_stops,
    _constant_reward,
)
