"""The diagnosis on a terminal.

Input: :class:`Diagnosis`. Output: rich renderables. Everything out of the log goes through
:func:`~toolrl_box.diagnose.plain.inline` and stands in ``Text`` objects, in which neither markup
nor escape sequences are read. Left out: the timeline (``--output`` draws it).
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolrl_box.diagnose.against import Comparison
from toolrl_box.diagnose.diagnosis import Diagnosis, Onset, StepRow
from toolrl_box.diagnose.plain import inline, steps
from toolrl_box.types import STATES

STYLES = {
    "healthy": "bold green",
    "drifting": "bold yellow",
    "text_pollution": "bold yellow",
    "insufficient_data": "bold",
}
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
MOST = 8


def show(diagnosis: Diagnosis, console: Console) -> None:
    console.print(summary(diagnosis), soft_wrap=False, highlight=False)


def show_differences(comparison: Comparison, console: Console) -> None:
    table = _table("", comparison.diagnosis.name, comparison.against.name)
    for row in comparison.differences:
        table.add_row(*_texts(row.what, row.here, row.there))
    console.print(Group(_title("Differences"), table), highlight=False)


def summary(diagnosis: Diagnosis) -> RenderableType:
    verdict = diagnosis.verdict
    head = Text(verdict.name, STYLES.get(verdict.name, "bold red"))
    head.append(f"  {verdict.headline}", "bold")
    parts: list[RenderableType] = [head, Text(verdict.reason), *_facts(diagnosis)]
    parts += _timeline(diagnosis.steps)
    if diagnosis.first_wrong is not None:
        place = diagnosis.first_wrong
        where = f"{inline(place.file)}:{place.line}, message {place.message}"
        parts += [_title("First wrong message"), Text(f"  {place.kind}  {where}", "dim")]
        parts.append(Padding(Text(inline(place.excerpt, 400)), (0, 2)))
    if rising := [i for i in diagnosis.involved if i.share_after > i.share_before][:MOST]:
        table = _table("token", "slot", "before", "after")
        for row in rising:
            rise = (f"{row.share_before:.1%}", f"{row.share_after:.1%}")
            table.add_row(*_texts(row.token, row.slot, *rise))
        parts += [_title("Tokens at fault, share of messages"), table]
    if diagnosis.affected:
        table = _table("", "rollouts", "reward before", "after", "sound before", "after")
        for group in diagnosis.affected[:MOST]:
            figures = (group.reward_before, group.reward_after)
            shares = map(_share, (group.healthy_before, group.healthy_after))
            table.add_row(
                *_texts(group.category, str(group.rollouts), *map(_figure, figures), *shares)
            )
        parts += [_title("Affected"), table]
    parts.append(_title("What to do"))
    for number, action in enumerate(diagnosis.actions, 1):
        parts.append(Padding(Text(f"{number}. {inline(action.do, 400)}", "bold"), (0, 2)))
        parts.append(Padding(Text(inline(action.why, 600)), (0, 5)))
        if action.command:
            parts.append(Padding(Text(f"$ {inline(action.command, 400)}", "cyan"), (0, 5)))
    parts.append(_title("Could not be judged"))
    parts += [
        Padding(Text(f"- {inline(item.what)}: {inline(item.why)}"), (0, 2))
        for item in diagnosis.unjudged
    ]
    return Group(*parts)


def onset_line(onset: Onset) -> str:
    where = steps(onset.low, onset.high)
    check = ""
    if onset.checked_by is not None:
        check = f"; {onset.checked_by} {'agrees' if onset.agree else 'differs'}"
    change = f"{_figure(onset.before)} before, {_figure(onset.after)} after"
    return f"{onset.signal.replace('_', ' ')} at step {onset.step} ({where}; {change}{check})"


def _facts(diagnosis: Diagnosis) -> list[RenderableType]:
    totals, seen = diagnosis.totals, diagnosis.tool_format
    table = Table.grid(padding=(0, 2))
    for onset in diagnosis.onsets:
        table.add_row(*_texts("onset", onset_line(onset)))
    if diagnosis.last_healthy is not None:
        kept = diagnosis.last_healthy
        checkpoint = f", {inline(kept.checkpoint)}" if kept.checkpoint else ""
        table.add_row(*_texts("last healthy", f"step {kept.step}{checkpoint} ({kept.why})"))
    for sign in diagnosis.verdict.also:
        table.add_row(*_texts("also", f"{sign.name}: {inline(sign.evidence, 300)}"))
    if seen is not None:
        how = "forced" if seen.forced else f"{sum(seen.evidence.values())} messages show it"
        stripped = ", special tokens dropped by the log" if seen.stripped else ""
        table.add_row(*_texts("tool format", f"{inline(seen.name)} ({how}{stripped})"))
    span = "" if totals.first_step is None else f", {totals.first_step} to {totals.last_step}"
    read = f"{len(diagnosis.inputs)} files, {totals.rollouts} rollouts, {totals.messages} messages"
    table.add_row(*_texts("read", f"{read}, {totals.steps} steps{span}"))
    if diagnosis.damaged:
        first = diagnosis.damage[0] if diagnosis.damage else None
        example = f", as {inline(first.file)}:{first.line}: {inline(first.reason)}" if first else ""
        table.add_row(*_texts("damaged", f"{diagnosis.damaged} records{example}"))
    return [Text(), table]


def _timeline(rows: Sequence[StepRow]) -> list[RenderableType]:
    placed = [row for row in rows if row.step is not None]
    lines: list[RenderableType] = []
    for name, values in (
        ("sound", [_healthy(row) for row in placed]),
        ("reward", [row.reward for row in placed]),
    ):
        bars = sparkline(values)
        if bars:
            lines.append(Text(f"{name:<8}{bars}", "dim"))
    return [Text(), *lines] if lines else []


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """Means of equal parts as bars from the lowest to the highest; a blank where there is none."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    width = min(width, len(values))
    bars = []
    for place in range(width):
        part = values[place * len(values) // width : (place + 1) * len(values) // width]
        here = [value for value in part if value is not None]
        level = (sum(here) / len(here) - low) / (high - low or 1.0) if here else None
        bars.append(" " if level is None else BARS[min(len(BARS) - 1, int(level * len(BARS)))])
    return "".join(bars)


def _healthy(row: StepRow) -> float | None:
    return sum(row.states[state] for state in STATES[:2]) / row.messages if row.messages else None


def _title(text: str) -> Text:
    return Text(f"\n{text}", "bold underline")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for index, column in enumerate(columns):
        # As Text: a name out of a log is no markup.
        table.add_column(
            Text(inline(column)), justify="left" if index == 0 else "right", overflow="fold"
        )
    return table


def _texts(*cells: str) -> list[Text]:
    return [Text(inline(cell, 400)) for cell in cells]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
