"""States, kinds and figures per step as CSV.

Input: the rows of a diagnosis. Output: text. Column names out of the log are made harmless for
spreadsheets, so the first cells of a figure's column may begin with an apostrophe.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from toolrl_box.diagnose.diagnosis import StepRow
from toolrl_box.diagnose.plain import cell
from toolrl_box.types import STATES

FIXED = ("step", "rollouts", "messages", "reward", "reward_std", "length")


def states_csv(rows: Sequence[StepRow]) -> str:
    kinds = sorted({kind for row in rows for kind in row.kinds})
    scalars = sorted({name for row in rows for name in row.scalars})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = (*FIXED, *(f"state_{s}" for s in STATES), *(f"kind_{k}" for k in kinds), *scalars)
    writer.writerow([cell(name) for name in head])
    for row in rows:
        figures = (row.reward, row.reward_std, row.length)
        writer.writerow(
            [
                "" if row.step is None else row.step,
                *(row.rollouts, row.messages),
                *("" if figure is None else repr(figure) for figure in figures),
                *(row.states.get(state, 0) for state in STATES),
                *(row.kinds.get(kind, 0) for kind in kinds),
                *(repr(row.scalars[name]) if name in row.scalars else "" for name in scalars),
            ]
        )
    return text.getvalue()
