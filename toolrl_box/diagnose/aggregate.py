"""Adds a log up, one record at a time, in memory that does not grow with it.

Input: scalars, and rollouts with the finding of every assistant message. Output:
:class:`Aggregate`: a :class:`Bin` per step (per few steps, once there are more than
:data:`MAX_BINS`), totals and facts.

What could grow without end is bounded: steps are merged in twos, categories, models, scalar names
and tokens beyond a number count as one, open groups are closed, examples are a seeded reservoir.

Left out: any judgement (``diagnose.evidence``, ``toolrl_box.verdicts``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from toolrl_box.diagnose.blame import Blame, blame
from toolrl_box.diagnose.records import Judged, LoggedRollout, Scalars
from toolrl_box.probe.states import WELL_FORMED
from toolrl_box.types import Finding

MAX_BINS = 2000
MAX_CATEGORIES = 48
MAX_SCALARS = 128
MAX_TOKENS = 64
MAX_OPEN_GROUPS = 4096
EXAMPLES = 2
"""Kept of each state in each bin."""
EXCERPT = 600
"""Characters kept of a message."""
OTHERS = "(others)"
HEALTHY_KINDS = ("call", "response")


@dataclass(slots=True)
class Sum:
    """Figures that were added up."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, x: float) -> None:
        self.n += 1
        self.total += x
        self.squares += x * x
        if x < self.low:
            self.low = x
        if x > self.high:
            self.high = x

    def merge(self, other: Sum) -> None:
        self.n += other.n
        self.total += other.total
        self.squares += other.squares
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    @property
    def middle(self) -> float | None:
        """Half-way between the lowest and the highest; None without figures."""
        return (self.low + self.high) / 2 if self.n else None

    @property
    def deviation(self) -> float | None:
        """Of the population; None without figures."""
        if not self.n:
            return None
        return math.sqrt(max(0.0, self.squares / self.n - (self.total / self.n) ** 2))


@dataclass(slots=True)
class Slice:
    """The part of a bin that belongs to one category or model."""

    rollouts: int = 0
    messages: int = 0
    sound: int = 0
    reward: Sum = field(default_factory=Sum)

    def merge(self, other: Slice) -> None:
        self.rollouts += other.rollouts
        self.messages += other.messages
        self.sound += other.sound
        self.reward.merge(other.reward)


@dataclass(slots=True)
class Bin:
    """What is known of a step, or of the steps ``first`` to ``last``. ``wrong`` counts well-formed
    calls that a check against the tools or gold refused, among ``calls``; ``firsts`` is the
    earliest message of each defective kind."""

    first: int | None
    last: int | None
    rollouts: int = 0
    messages: int = 0
    calls: int = 0
    wrong: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    reward: Sum = field(default_factory=Sum)
    length: Sum = field(default_factory=Sum)
    spread: Sum = field(default_factory=Sum)
    scalars: dict[str, Sum] = field(default_factory=dict)
    blamed: dict[Blame, int] = field(default_factory=dict)
    slices: dict[tuple[str, str], Slice] = field(default_factory=dict)
    firsts: dict[str, Judged] = field(default_factory=dict)
    examples: dict[str, tuple[int, list[Judged]]] = field(default_factory=dict)

    def merge(self, later: Bin, rng: Random) -> None:
        """Take in the bin that follows."""
        self.last = later.last
        self.rollouts += later.rollouts
        self.messages += later.messages
        self.calls += later.calls
        self.wrong += later.wrong
        self.reward.merge(later.reward)
        self.length.merge(later.length)
        self.spread.merge(later.spread)
        for kind, count in later.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count
        for token, count in later.blamed.items():
            self.blamed[token] = self.blamed.get(token, 0) + count
        for scalar, figures in later.scalars.items():
            self.scalars.setdefault(scalar, Sum()).merge(figures)
        for key, part in later.slices.items():
            self.slices.setdefault(key, Slice()).merge(part)
        for kind, message in later.firsts.items():
            self.firsts.setdefault(kind, message)
        for state, (seen, kept) in later.examples.items():
            before, mine = self.examples.get(state, (0, []))
            pool = [*mine, *kept]
            weights = [before / max(1, len(mine))] * len(mine) + [seen / len(kept)] * len(kept)
            while len(pool) > EXAMPLES:
                (out,) = rng.choices(range(len(pool)), [1 / w for w in weights])
                del pool[out], weights[out]
            self.examples[state] = (before + seen, pool)


@dataclass(slots=True)
class Broken:
    """Figures of one name that were no finite numbers."""

    count: int
    first: int
    last: int


@dataclass
class Aggregate:
    """``facts``: see :data:`toolrl_box.diagnose.records.FACTS`; ``length_in`` says whether lengths
    are tokens or, where a log has no tokens, characters."""

    seed: int = 0
    max_bins: int = MAX_BINS
    width: int = 1
    rollouts: int = 0
    messages: int = 0
    scalars: int = 0
    unplaced: Bin = field(default_factory=lambda: Bin(None, None))
    reward: Sum = field(default_factory=Sum)
    facts: dict[str, Sum] = field(default_factory=dict)
    positive: dict[str, int] = field(default_factory=dict)
    broken: dict[str, Broken] = field(default_factory=dict)
    length_in: Literal["tokens", "characters"] | None = None
    left_out: set[str] = field(default_factory=set)
    with_tools: int = 0
    with_gold: int = 0
    with_groups: int = 0

    def __post_init__(self) -> None:
        self._bins: dict[int, Bin] = {}
        self._groups: dict[tuple[int | None, str], Sum] = {}
        self._names: dict[str, set[str]] = {"category": set(), "model": set(), "scalar": set()}
        self._tokens: set[str] = set()
        self._random = Random(self.seed)

    # --- adding -----------------------------------------------------------------------------

    def add_scalars(self, record: Scalars) -> None:
        self.scalars += 1
        into = self._bin(record.step)
        for name, value in record.values.items():
            name = self._bounded("scalar", name, MAX_SCALARS)
            if name == OTHERS:
                continue
            if math.isfinite(value):
                into.scalars.setdefault(name, Sum()).add(value)
            elif name in self.broken:
                seen = self.broken[name]
                seen.count += 1
                seen.first, seen.last = min(seen.first, record.step), max(seen.last, record.step)
            else:
                self.broken[name] = Broken(1, record.step, record.step)

    def add_rollout(
        self,
        rollout: LoggedRollout,
        findings: Sequence[tuple[str, Finding]],
        wrong: Sequence[bool] = (),
    ) -> None:
        """``findings``: text and finding of each message that the model wrote, in order; ``wrong``:
        which of them are well-formed calls that differ from gold."""
        self.rollouts += 1
        into = self.unplaced if rollout.step is None else self._bin(rollout.step)
        into.rollouts += 1
        sound = 0
        for index, (text, finding) in enumerate(findings):
            kind = finding.kind
            into.kinds[kind] = into.kinds.get(kind, 0) + 1
            if kind == "call" or kind in WELL_FORMED:
                into.calls += 1
                into.wrong += kind != "call" or (bool(wrong) and wrong[index])
                sound += 1
            elif kind == "response":
                sound += 1
            if kind not in HEALTHY_KINDS:
                self._blame(into, text, finding)
                if kind not in into.firsts:
                    into.firsts[kind] = shown(rollout, index, text, finding)
            seen, kept = into.examples.get(finding.state, (0, []))
            if len(kept) < EXAMPLES:
                kept.append(shown(rollout, index, text, finding))
            elif (place := int(self._random.random() * (seen + 1))) < EXAMPLES:
                kept[place] = shown(rollout, index, text, finding)
            into.examples[finding.state] = (seen + 1, kept)
        self.messages += len(findings)
        into.messages += len(findings)
        self._figures(into, rollout, findings)
        reward = rollout.reward
        if not findings:  # an expert's dialogue: nothing in it is the model's
            reward = None
        if reward is not None and not math.isfinite(reward):
            self._broken_reward(rollout)
            reward = None
        if reward is not None:
            self.reward.add(reward)
            into.reward.add(reward)
            if rollout.group is not None:
                self._grouped(rollout.step, rollout.group, reward)
        for by, name in (("category", rollout.category), ("model", rollout.model)):
            if name is not None:
                key = (by, self._bounded(by, name, MAX_CATEGORIES))
                part = into.slices.get(key)
                if part is None:
                    part = into.slices[key] = Slice()
                part.rollouts += 1
                part.messages += len(findings)
                part.sound += sound
                if reward is not None:
                    part.reward.add(reward)

    # --- reading ----------------------------------------------------------------------------

    def bins(self) -> tuple[Bin, ...]:
        """In the order of the steps. Groups that are still open count as they are."""
        self._close(len(self._groups))
        return tuple(self._bins[index] for index in sorted(self._bins))

    def examples(self) -> Iterator[Judged]:
        """A few messages of each state from each bin, and the first of each defect."""
        for bin_ in (*self.bins(), self.unplaced):
            kept = [message for _, pool in bin_.examples.values() for message in pool]
            yield from kept
            yield from (first for first in bin_.firsts.values() if first not in kept)

    # --- within -----------------------------------------------------------------------------

    def _bin(self, step: int) -> Bin:
        found = self._bins.get(step // self.width)
        if found is None:
            found = self._bins[step // self.width] = Bin(step, step)
            if len(self._bins) > self.max_bins:
                self._coarsen()
                return self._bin(step)
        elif found.last is None or step > found.last:
            found.last = step
        elif found.first is None or step < found.first:
            found.first = step
        return found

    def _coarsen(self) -> None:
        while len(self._bins) > self.max_bins:
            self.width *= 2
            merged: dict[int, Bin] = {}
            for index in sorted(self._bins):
                if index // 2 in merged:
                    merged[index // 2].merge(self._bins[index], self._random)
                else:
                    merged[index // 2] = self._bins[index]
            self._bins = merged

    def _bounded(self, what: str, name: str, most: int) -> str:
        known = self._names[what]
        if name in known:
            return name
        if len(known) < most:
            known.add(name)
            return name
        self.left_out.add(what)
        return OTHERS

    def _blame(self, into: Bin, text: str, finding: Finding) -> None:
        found = blame(text, finding)
        if found.token not in self._tokens:
            if len(self._tokens) >= MAX_TOKENS:
                found = Blame(OTHERS, found.slot)
            else:
                self._tokens.add(found.token)
        into.blamed[found] = into.blamed.get(found, 0) + 1

    def _figures(
        self, into: Bin, rollout: LoggedRollout, findings: Sequence[tuple[str, Finding]]
    ) -> None:
        self.with_tools += bool(rollout.tools)
        self.with_gold += rollout.gold is not None
        self.with_groups += rollout.group is not None
        for name, value in rollout.facts.items():
            self.facts.setdefault(name, Sum()).add(value)
            self.positive[name] = self.positive.get(name, 0) + (value > 0)
        tokens = rollout.facts.get("response_tokens")
        if self.length_in is None:
            self.length_in = "characters" if tokens is None else "tokens"
        if self.length_in == "characters":
            into.length.add(float(sum(len(text) for text, _ in findings)))
        elif tokens is not None:
            into.length.add(tokens)

    def _broken_reward(self, rollout: LoggedRollout) -> None:
        step = 0 if rollout.step is None else rollout.step
        seen = self.broken.setdefault("reward", Broken(0, step, step))
        seen.count += 1
        seen.first, seen.last = min(seen.first, step), max(seen.last, step)

    def _grouped(self, step: int | None, group: str, reward: float) -> None:
        key = (step, group)
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Sum()
            self._close(len(self._groups) - MAX_OPEN_GROUPS)
        found.add(reward)

    def _close(self, count: int) -> None:
        """Count the ``count`` oldest open groups in their bins."""
        for key in list(self._groups)[: max(0, count)]:
            group = self._groups.pop(key)
            if group.n > 1 and group.deviation is not None:
                step = key[0]
                into = self.unplaced if step is None else self._bin(step)
                into.spread.add(group.deviation)


def shown(rollout: LoggedRollout, index: int, text: str, finding: Finding) -> Judged:
    """The message as pages show it, cut around its span."""
    start, end = finding.start, min(finding.end, finding.start + EXCERPT // 2)
    left = max(0, min(start - EXCERPT // 4, len(text) - EXCERPT))
    cut = text[left : left + EXCERPT]
    return Judged(
        rollout.origin,
        rollout.id,
        rollout.step,
        index,
        cut,
        finding.state,
        finding.kind,
        min(start - left, len(cut)),
        min(end - left, len(cut)),
        rollout.reward,
        rollout.category,
        rollout.model,
    )


def merged(bins: Iterable[Bin]) -> Bin:
    """All of them as one; the bins themselves are left alone but for their examples."""
    whole, rng = Bin(None, None), Random(0)
    for bin_ in bins:
        if whole.first is None:
            whole.first = bin_.first
        whole.merge(bin_, rng)
    return whole
