"""One HTML file that explains a run to people, works offline and asks nothing of the network.

Input: a :class:`Diagnosis` and the messages behind it, of one run or of two side by side. Output:
the file, with its style, its script and its data inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.records import Judged


def write_page(
    diagnosis: Diagnosis,
    messages: Iterable[Judged],
    output: Path,
    against: tuple[Diagnosis, Iterable[Judged]] | None = None,
) -> None:
    """Write the page to ``output`` (replaced atomically).

    ``messages`` are read once, in any order; they may be fewer than the diagnosis counts, and the
    page then says so. ``against``: a second run for the right-hand column.
    """
    raise NotImplementedError
