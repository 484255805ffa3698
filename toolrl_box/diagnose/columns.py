"""The steps of a run as the columns of a page, of which there are never too many.

Input: :class:`StepRow` in any order. Output: :class:`Column`, one a step. A run with more than
COLUMNS steps has several steps a column: counts are added, rewards weighted by rollouts, figures
averaged.

Left out: where a column stands on paper (``diagnose.timeline``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolrl_box.diagnose.diagnosis import StepRow
from toolrl_box.probe.states import KINDS

COLUMNS = 400
"""At most so many columns a run, and one for what has no step."""
HEALTHY = ("healthy_call", "healthy_response")


@dataclass(frozen=True, slots=True)
class Column:
    """Consecutive steps drawn as one; ``first`` and ``last`` are None where the log has no step."""

    first: int | None
    last: int | None
    rollouts: int
    messages: int
    reward: float | None
    reward_std: float | None
    length: float | None
    states: Mapping[str, int]
    kinds: Mapping[str, int]
    scalars: Mapping[str, float]

    @property
    def label(self) -> str:
        if self.first is None:
            return "no step"
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"

    def state_share(self, *names: str) -> float | None:
        """Share of the judged messages in the named states; None when there is none."""
        judged = sum(self.states.values())
        return sum(self.states.get(name, 0) for name in names) / judged if judged else None

    def kind_share(self, kind: str) -> float | None:
        judged = sum(self.kinds.values())
        return self.kinds.get(kind, 0) / judged if judged else None

    def worst_kind(self) -> str | None:
        """The most frequent kind of broken message."""
        broken = {kind: count for kind, count in self.kinds.items() if not is_sound(kind)}
        return max(broken, key=lambda kind: (broken[kind], kind)) if any(broken.values()) else None


def columns(rows: Sequence[StepRow], width: int = 1, limit: int = COLUMNS) -> tuple[Column, ...]:
    """The rows in order of step, merged to at most ``limit`` columns; those without a step last.
    ``width``: how many steps a row stands for, from its own on."""
    dated = sorted((row for row in rows if row.step is not None), key=lambda row: row.step or 0)
    size = math.ceil(len(dated) / limit) or 1
    packs = [dated[at : at + size] for at in range(0, len(dated), size)]
    undated = [row for row in rows if row.step is None]
    return tuple(_merge(pack, width) for pack in (*packs, undated) if pack)


def is_sound(kind: str) -> bool:
    return KINDS.get(kind) in HEALTHY


def _merge(rows: Sequence[StepRow], width: int) -> Column:
    states: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for row in rows:
        states.update(row.states)
        kinds.update(row.kinds)
    names = dict.fromkeys(name for row in rows for name in row.scalars)
    scalars = {name: _mean([(row.scalars.get(name), 1) for row in rows]) for name in names}
    return Column(
        first=rows[0].step,
        last=None if (last := rows[-1].step) is None else last + width - 1,
        rollouts=sum(row.rollouts for row in rows),
        messages=sum(row.messages for row in rows),
        reward=_mean([(row.reward, row.rollouts) for row in rows]),
        reward_std=_mean([(row.reward_std, row.rollouts) for row in rows]),
        length=_mean([(row.length, row.rollouts) for row in rows]),
        states=dict(states),
        kinds=dict(kinds),
        scalars={name: value for name, value in scalars.items() if value is not None},
    )


def _mean(weighted: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(v, max(n, 1)) for v, n in weighted if v is not None and math.isfinite(v)]
    return sum(v * n for v, n in known) / sum(n for _, n in known) if known else None
