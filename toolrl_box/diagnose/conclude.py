"""From a log that was added up to a :class:`Diagnosis`.

Input: the aggregate, the tool format, the files. Output: the diagnosis. Left out: the rules
(``toolrl_box.verdicts``), where (``where``), what to do (``actions``), what is not known
(``unjudged``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from toolrl_box.diagnose import where
from toolrl_box.diagnose.actions import Case, actions
from toolrl_box.diagnose.aggregate import Aggregate, Bin, Sum
from toolrl_box.diagnose.bugs import bugs
from toolrl_box.diagnose.diagnosis import (
    Also,
    DamagedLine,
    Diagnosis,
    InputFile,
    StepRow,
    ToolFormatSeen,
    Totals,
)
from toolrl_box.diagnose.diagnosis import Verdict as WrittenVerdict
from toolrl_box.diagnose.evidence import SOUND, length_of, reward_of, signals, spread_of
from toolrl_box.diagnose.records import Checkpoint
from toolrl_box.diagnose.unjudged import unjudged
from toolrl_box.probe.policies import Policies
from toolrl_box.probe.states import KINDS
from toolrl_box.types import STATES
from toolrl_box.verdicts import HEALTHY_SHARE, MOSTLY, Verdict, judge

SNAPSHOT = 50
"""Messages that a log without steps must have to be judged as it stands."""


def conclude(
    aggregate: Aggregate,
    *,
    name: str,
    written_by: str,
    inputs: Sequence[InputFile],
    tool_format: ToolFormatSeen | None,
    policies: Policies,
    checkpoints: Sequence[Checkpoint],
    damaged: int,
    damage: Sequence[DamagedLine],
    bad_schemas: Collection[str] = (),
) -> Diagnosis:
    bins = aggregate.bins()
    dense, curves = signals(bins, bugs(aggregate, bins))
    verdict = judge(curves)
    if not bins and verdict.name == "insufficient_data":
        verdict = _snapshot(verdict, aggregate.unplaced)
    onsets = where.onsets(curves, verdict, by_evaluation=dense)
    onset = onsets[0] if onsets else None
    placed = bins or (aggregate.unplaced,)
    split = onset.step if onset is not None else verdict.onset
    low = onset.low if onset is not None else split
    kept = where.last_healthy(bins, verdict, onset, checkpoints)
    affected = where.affected(placed, split)
    worst = where.worst_kinds(placed, split)
    case = Case(
        verdict=verdict.name,
        evidence=verdict.reason,
        last_healthy=kept,
        worst=worst[0][0] if worst and worst[0][2] > worst[0][1] else None,
        gold=aggregate.with_gold > 0,
        learning_rate=_highest(bins, "learning_rate"),
        affected=affected,
        checkpoint=str(checkpoints[-1].path) if checkpoints else None,
    )
    steps = [step for bin_ in bins for step in (bin_.first, bin_.last) if step is not None]
    return Diagnosis(
        written_by=written_by,
        name=name,
        inputs=tuple(inputs),
        tool_format=tool_format,
        policies=policies.changed(),
        totals=Totals(
            rollouts=aggregate.rollouts,
            messages=aggregate.messages,
            steps=len(bins),
            first_step=min(steps, default=None),
            last_step=max(steps, default=None),
            steps_per_row=aggregate.width,
            length_in=_length_in(aggregate, bins),
        ),
        verdict=WrittenVerdict(
            name=verdict.name,
            headline=verdict.headline,
            reason=verdict.reason,
            since=verdict.onset,
            also=tuple(
                Also(name=sign.name, evidence=sign.evidence, since=sign.since)
                for sign in verdict.also
            ),
        ),
        onsets=onsets,
        first_wrong=where.first_wrong(placed, low),
        involved=where.involved(placed, split),
        affected=affected,
        last_healthy=kept,
        actions=actions(case),
        unjudged=unjudged(
            aggregate, bins, checkpoints=len(checkpoints), damaged=damaged, bad_schemas=bad_schemas
        ),
        damaged=damaged,
        damage=tuple(damage),
        steps=tuple(row(bin_) for bin_ in (*bins, aggregate.unplaced) if _holds(bin_)),
    )


def row(bin_: Bin) -> StepRow:
    """A bin as a row of the timeline."""
    states = dict.fromkeys(STATES, 0)
    for kind, count in bin_.kinds.items():
        states[KINDS[kind]] += count
    return StepRow(
        step=bin_.first,
        rollouts=bin_.rollouts,
        messages=bin_.messages,
        reward=reward_of(bin_),
        reward_std=spread_of(bin_),
        length=length_of(bin_),
        states=dict(states) if bin_.messages else {},
        kinds=dict(sorted(bin_.kinds.items())),
        scalars={name: _mean(figures) for name, figures in sorted(bin_.scalars.items())},
    )


def _snapshot(verdict: Verdict, bin_: Bin) -> Verdict:
    """A log without steps, judged as it stands: no trend, no onset."""
    if bin_.messages < SNAPSHOT:
        return verdict
    sound = sum(bin_.kinds.get(kind, 0) for kind in SOUND) / bin_.messages
    reason = (
        f"{sound:.0%} of {bin_.messages} messages are structurally sound; without steps nothing "
        "says whether that ever was different."
    )
    if sound < MOSTLY:
        return replace(verdict, name="structural_collapse", reason=reason)
    if sound < HEALTHY_SHARE:
        return replace(verdict, name="text_pollution", reason=reason)
    return replace(verdict, reason=reason)


def _holds(bin_: Bin) -> bool:
    return bool(bin_.rollouts or bin_.scalars)


def _mean(figures: Sum) -> float:
    mean = figures.mean
    assert mean is not None, "a name is kept with its first figure"
    return mean


def _highest(bins: Sequence[Bin], scalar: str) -> float | None:
    return max((b.scalars[scalar].high for b in bins if scalar in b.scalars), default=None)


def _length_in(aggregate: Aggregate, bins: Sequence[Bin]) -> Literal["tokens", "characters"] | None:
    if any("response_length" in bin_.scalars for bin_ in bins):
        return "tokens"
    return aggregate.length_in
