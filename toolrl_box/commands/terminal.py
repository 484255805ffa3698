"""What the commands share: the console, how a line is printed, where runs go."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

RUNS = Path("runs")
USER_ERROR = 2  # exit code of a mistake that the user can mend
console = Console()


def say(text: str) -> None:
    """A line of plain text, in which nothing is read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
