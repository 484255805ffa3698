"""When it began, with what message, and who is affected.

Input: the bins, the curves and the verdict on them. Output: the parts of a :class:`Diagnosis` that
say where to look. Left out: what to do about it (``diagnose.actions``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from toolrl_box.curves import Curve
from toolrl_box.diagnose import change
from toolrl_box.diagnose.aggregate import HEALTHY_KINDS, Bin, Slice, merged
from toolrl_box.diagnose.blame import Blame
from toolrl_box.diagnose.diagnosis import Affected, Involved, LastHealthy, Onset, Place
from toolrl_box.diagnose.evidence import SOUND
from toolrl_box.diagnose.records import Checkpoint, Judged
from toolrl_box.verdicts import Name, Signals, Verdict

MAX_INVOLVED = 12
MAX_AFFECTED = 40
K = TypeVar("K", str, Blame)


def onsets(signals: Signals, verdict: Verdict, *, by_evaluation: bool) -> tuple[Onset, ...]:
    """One for each curve on which a rule that holds rests: the verdict's own first, of those the
    earliest, because that is where the trouble began."""
    reward = "success" if by_evaluation else "reward"
    curves: dict[str, tuple[Curve, change.Direction]] = {
        "healthy": (signals.healthy, "down"),
        reward: (signals.reward, "down"),
        "entropy": (signals.entropy, "down"),
        "length": (signals.length, "up"),
        "wrong_calls": (signals.wrong, "up"),
    }
    if not by_evaluation:
        curves["success"] = (signals.evaluation, "down")
    rests: dict[Name, tuple[str, ...]] = {
        "structural_collapse": ("healthy", reward),
        "text_pollution": ("healthy",),
        "reward_collapse": (reward, "success"),
        "capability_loss": ("wrong_calls", reward),
        "entropy_collapse": ("entropy",),
        "length_explosion": ("length",),
        "drifting": (reward, "success"),
    }
    names = [verdict.name, *(sign.name for sign in verdict.also)]
    wanted = dict.fromkeys(signal for name in names for signal in rests.get(name, ()))
    found = []
    for signal in wanted:
        seen = change.change_point(*curves[signal])
        if seen is not None:
            found.append(
                Onset(
                    signal=signal,
                    step=seen.step,
                    low=seen.low,
                    high=seen.high,
                    method=change.METHOD,
                    checked_by=change.CHECK if seen.check is not None else None,
                    agree=seen.agree,
                    before=seen.before,
                    after=seen.after,
                )
            )
    own = rests.get(verdict.name, ())
    return tuple(sorted(found, key=lambda onset: (onset.signal not in own, onset.step)))


def halves(bins: Sequence[Bin], step: int | None) -> tuple[Bin, Bin]:
    """Everything before ``step`` and everything from it on; split in the middle without one."""
    if step is None:
        middle = len(bins) // 2
        return merged(bins[:middle]), merged(bins[middle:])
    before = [b for b in bins if b.first is not None and b.first < step]
    return merged(before), merged(bins[len(before) :])


def first_wrong(bins: Sequence[Bin], low: int | None) -> Place | None:
    """The first message from the step ``low`` on of the defect that rose most since then.

    A base may have broken messages from the beginning; what matters is what became more.
    """
    before, after = halves(bins, low)
    rise = {
        kind: _share(after.kinds, kind, after.messages)
        - _share(before.kinds, kind, before.messages)
        for kind in after.kinds
        if kind not in HEALTHY_KINDS
    }
    if not rise or max(rise.values()) <= 0:
        return None
    worst = max(rise, key=lambda kind: (rise[kind], kind))
    return place(after.firsts[worst])


def place(message: Judged) -> Place:
    return Place(
        file=str(message.origin.file),
        line=message.origin.line,
        rollout=message.rollout,
        step=message.step,
        message=message.index,
        kind=message.kind,
        excerpt=message.text,
    )


def involved(bins: Sequence[Bin], step: int | None) -> tuple[Involved, ...]:
    """Tokens by how much more often they are at fault, most first."""
    before, after = halves(bins, step)
    found = [
        Involved(
            token=blame.token,
            slot=blame.slot,
            share_before=_share(before.blamed, blame, before.messages),
            share_after=_share(after.blamed, blame, after.messages),
        )
        for blame in {**before.blamed, **after.blamed}
    ]
    found.sort(key=lambda i: (i.share_before - i.share_after, i.token, i.slot))
    return tuple(found[:MAX_INVOLVED])


def affected(bins: Sequence[Bin], step: int | None) -> tuple[Affected, ...]:
    """Categories and models, those that lost most first."""
    before, after = halves(bins, step)
    empty = Slice()
    found = []
    for key in {**before.slices, **after.slices}:
        old, new = before.slices.get(key, empty), after.slices.get(key, empty)
        found.append(
            Affected(
                category=key[1],
                by="model" if key[0] == "model" else "category",
                rollouts=old.rollouts + new.rollouts,
                reward_before=old.reward.mean,
                reward_after=new.reward.mean,
                healthy_before=old.sound / old.messages if old.messages else None,
                healthy_after=new.sound / new.messages if new.messages else None,
            )
        )
    found.sort(key=lambda a: (a.by, _loss(a), a.category))
    return tuple(found[:MAX_AFFECTED])


def last_healthy(
    bins: Sequence[Bin], verdict: Verdict, onset: Onset | None, checkpoints: Sequence[Checkpoint]
) -> LastHealthy | None:
    """The last step before everything that the onset may be, and the newest checkpoint by then."""
    steps = [b.last for b in bins if b.last is not None]
    if not steps or verdict.name in ("insufficient_data", "suspected_bug"):
        return None
    if verdict.name == "healthy":
        step, why = steps[-1], "nothing broke up to the last step"
    elif onset is not None or verdict.onset is not None:
        first = onset.low if onset is not None else verdict.onset
        assert first is not None
        sound = [step for step in steps if step < first]
        if not sound:
            return None
        what = f"{onset.signal} may have changed" if onset is not None else "the rule held"
        step, why = sound[-1], f"the last step before {what} (step {first})"
    elif verdict.peak_step is not None:
        step, why = verdict.peak_step, "where the mean of the judged curve was highest"
    else:
        return None
    kept = [checkpoint for checkpoint in checkpoints if checkpoint.step <= step]
    best = max(kept, key=lambda checkpoint: checkpoint.step, default=None)
    return LastHealthy(step=step, checkpoint=None if best is None else str(best.path), why=why)


def worst_kinds(bins: Sequence[Bin], step: int | None) -> list[tuple[str, float, float]]:
    """(kind, share before, share after) of the defects, those that rose most first."""
    before, after = halves(bins, step)
    kinds = Counter({**before.kinds, **after.kinds})
    rows = [
        (
            kind,
            _share(before.kinds, kind, before.messages),
            _share(after.kinds, kind, after.messages),
        )
        for kind in kinds
        if kind not in SOUND
    ]
    return sorted(rows, key=lambda row: (row[1] - row[2], row[0]))


def _share(counts: dict[K, int], key: K, messages: int) -> float:
    return counts.get(key, 0) / messages if messages else 0.0


def _loss(row: Affected) -> float:
    """Change of the reward, or of the healthy share; most negative first."""
    if row.reward_before is not None and row.reward_after is not None:
        return row.reward_after - row.reward_before
    if row.healthy_before is not None and row.healthy_after is not None:
        return row.healthy_after - row.healthy_before
    return 0.0
