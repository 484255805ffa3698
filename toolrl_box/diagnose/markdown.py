"""The diagnosis as Markdown, to be pasted into an issue tracker.

Input: :class:`Diagnosis` (and, with ``--against``, the other one). Output: text in which everything
out of the log is escaped or fenced. Left out: pictures, which a paste would lose.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolrl_box.diagnose.against import Comparison
from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.plain import inline
from toolrl_box.diagnose.terminal import onset_line
from toolrl_box.report.examples import readable
from toolrl_box.report.pages import escape_markdown, fenced

MOST = 12


def markdown(diagnosis: Diagnosis) -> str:
    verdict, totals = diagnosis.verdict, diagnosis.totals
    lines = [
        f"# {_md(diagnosis.name)}: {_md(verdict.name)}",
        "",
        f"**{_md(verdict.headline)}.** {_md(verdict.reason)}",
        "",
        *[f"- Onset: {_md(onset_line(onset))}" for onset in diagnosis.onsets],
        *[f"- Also {_md(sign.name)}: {_md(sign.evidence)}" for sign in verdict.also],
    ]
    if (kept := diagnosis.last_healthy) is not None:
        where = "no checkpoint found" if kept.checkpoint is None else _md(kept.checkpoint)
        lines.append(f"- Last healthy: step {kept.step}, {where} \\({_md(kept.why)}\\)")
    lines.append(
        f"- Read: {len(diagnosis.inputs)} files, {totals.rollouts} rollouts, "
        f"{totals.messages} messages, {totals.steps} steps; {diagnosis.damaged} damaged records"
    )
    if (seen := diagnosis.tool_format) is not None:
        lines.append(f"- Tool format: {_md(seen.name)}{' (forced)' if seen.forced else ''}")
    if (place := diagnosis.first_wrong) is not None:
        origin = _md(f"{place.file}:{place.line}")
        lines += ["", "## First wrong message", ""]
        lines += [f"{_md(place.kind)} in {origin}, message {place.message}:", ""]
        lines += [fenced(readable(place.excerpt))]
    if diagnosis.involved:
        lines += ["", "## Tokens at fault", ""]
        lines += _table(
            ("token", "slot", "before", "after"),
            [
                (i.token, i.slot, f"{i.share_before:.1%}", f"{i.share_after:.1%}")
                for i in diagnosis.involved
            ],
        )
    if diagnosis.affected:
        lines += ["", "## Affected", ""]
        lines += _table(
            ("", "rollouts", "reward before", "after", "sound before", "after"),
            [
                (
                    row.category,
                    str(row.rollouts),
                    *map(_figure, (row.reward_before, row.reward_after)),
                    *map(_figure, (row.healthy_before, row.healthy_after)),
                )
                for row in diagnosis.affected[:MOST]
            ],
        )
    lines += ["", "## What to do", ""]
    for number, action in enumerate(diagnosis.actions, 1):
        command = f" {_code(action.command)}" if action.command else ""
        lines.append(f"{number}. **{_md(action.do)}** {_md(action.why)}{command}")
    lines += ["", "## Could not be judged", ""]
    lines += [f"- {_md(item.what)}: {_md(item.why)}" for item in diagnosis.unjudged]
    lines += ["", f"Written by {_md(diagnosis.written_by)}, schema {diagnosis.version}."]
    return "\n".join(lines) + "\n"


def markdown_of_both(comparison: Comparison) -> str:
    """The differences first, then both diagnoses."""
    first, second = comparison.diagnosis, comparison.against
    rows = [(d.what, d.here, d.there) for d in comparison.differences]
    head = [f"# {_md(first.name)} against {_md(second.name)}", ""]
    table = _table(("", first.name, second.name), rows)
    return "\n".join([*head, *table, "", markdown(first), markdown(second)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(_md(name) for name in head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(_md(value) for value in row) + " |" for row in rows]


def _md(text: str) -> str:
    return escape_markdown(inline(text, 600))


def _code(text: str) -> str:
    line = inline(text, 400)
    return f"``{line}``" if "`" not in line else _md(line)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
