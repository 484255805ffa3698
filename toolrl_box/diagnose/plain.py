"""Text that came out of a log, made harmless for the place where it is shown.

Input: any text. Output: text without control characters; within a line, without line breaks; in a
CSV, without anything that a spreadsheet takes for a formula. HTML is escaped by its template,
Markdown by ``report.pages.escape_markdown``.
"""

from __future__ import annotations

from toolrl_box.report.examples import readable

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def inline(text: str, most: int = 160) -> str:
    """One line of at most ``most`` characters, line breaks visible."""
    line = readable(text[: most + 1]).replace("\n", "⏎").replace("\t", " ")
    return line if len(line) <= most else line[: most - 1] + "…"


def cell(value: str) -> str:
    """A CSV cell that no spreadsheet executes (OWASP, CSV injection)."""
    return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value


def steps(low: int, high: int) -> str:
    return f"step {low}" if low == high else f"steps {low} to {high}"
