"""Two diagnoses side by side.

Input: two :class:`Diagnosis`. Output: :class:`Comparison` with what differs, as text for a table.
Left out: tests of significance; two runs are two runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from toolrl_box.diagnose.diagnosis import VERSION, Diagnosis, StepRow

LAST = 5


class Difference(BaseModel):
    """One figure of both; ``–`` where a log has nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    here: str
    there: str


class Comparison(BaseModel):
    """What ``--json`` prints with ``--against``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = VERSION
    diagnosis: Diagnosis
    against: Diagnosis
    differences: tuple[Difference, ...]


def compare(diagnosis: Diagnosis, against: Diagnosis) -> Comparison:
    here, there = _figures(diagnosis), _figures(against)
    differences = tuple(
        Difference(what=what, here=here.get(what, "–"), there=there.get(what, "–"))
        for what in {**here, **there}
        if here.get(what) != there.get(what)
    )
    return Comparison(diagnosis=diagnosis, against=against, differences=differences)


def _figures(diagnosis: Diagnosis) -> dict[str, str]:
    totals = diagnosis.totals
    found = {
        "verdict": diagnosis.verdict.name,
        "rollouts": str(totals.rollouts),
        "messages": str(totals.messages),
        "steps": str(totals.steps),
        "tool format": diagnosis.tool_format.name if diagnosis.tool_format else "–",
    }
    for onset in diagnosis.onsets:
        found[f"onset of {onset.signal}"] = f"step {onset.step} ({onset.low}–{onset.high})"
    if diagnosis.last_healthy is not None:
        found["last healthy step"] = str(diagnosis.last_healthy.step)
    # Steps of supervision alone have neither.
    placed = [
        r for r in diagnosis.steps if r.step is not None and (r.messages or r.reward is not None)
    ]
    for when, rows in (("first", placed[:LAST]), ("last", placed[-LAST:])):
        found |= {f"{name}, {when} {LAST} steps": value for name, value in _means(rows).items()}
    return found


def _means(rows: Sequence[StepRow]) -> dict[str, str]:
    found = {}
    rewards = [row.reward for row in rows if row.reward is not None]
    if rewards:
        found["reward"] = f"{sum(rewards) / len(rewards):.3g}"
    lengths = [row.length for row in rows if row.length is not None]
    if lengths:
        found["length"] = f"{sum(lengths) / len(lengths):.0f}"
    messages = sum(row.messages for row in rows)
    states: Counter[str] = Counter()
    for row in rows:
        states.update(row.states)
    if messages:
        found |= {name.replace("_", " "): f"{n / messages:.1%}" for name, n in states.items()}
    return found
