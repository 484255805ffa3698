"""Follows a growing log: one line whenever the verdict or another rule changes.

Input: paths and a clock. Output: lines, and the last diagnosis. Unchanged files are not opened
again; see :class:`toolrl_box.diagnose.session.Session`. Left out: sending the lines anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.plain import inline
from toolrl_box.diagnose.session import Session, name_of
from toolrl_box.errors import DataError


def looks(
    session: Session, paths: Sequence[Path], told: Callable[[str], None]
) -> Iterator[Diagnosis | None]:
    """One look at each step of the iteration; None while there is no log yet.

    Raises ConfigError for an unknown format.
    """
    before: frozenset[tuple[str, str]] | None = None
    waiting = False
    while True:
        try:
            session.read(paths)
        except DataError as error:
            # A run that has just begun has written nothing yet.
            if not waiting and before is None:
                told(f"waiting: {inline(str(error))}")
            waiting = True
            yield None
            continue
        diagnosis = session.diagnosis(name_of(paths))
        now = signs(diagnosis)
        if now != before:
            for line in changes(before, now, diagnosis):
                told(line)
            before = now
        yield diagnosis


def signs(diagnosis: Diagnosis) -> frozenset[tuple[str, str]]:
    """The verdict and the further rules that hold."""
    verdict = diagnosis.verdict
    return frozenset({("verdict", verdict.name), *(("alarm", sign.name) for sign in verdict.also)})


def changes(
    before: frozenset[tuple[str, str]] | None,
    now: frozenset[tuple[str, str]],
    diagnosis: Diagnosis,
) -> Iterator[str]:
    """A line for each that is new or gone, the verdict first."""
    last = diagnosis.totals.last_step
    step = "no step yet" if last is None else f"step {last}"
    verdict = diagnosis.verdict
    if before is None or ("verdict", verdict.name) not in before:
        onset = f" (onset: step {diagnosis.onsets[0].step})" if diagnosis.onsets else ""
        yield f"{step}: {verdict.name}{onset}: {inline(verdict.reason, 300)}"
    for sign in verdict.also:
        if before is None or ("alarm", sign.name) not in before:
            yield f"{step}: alarm {sign.name}: {inline(sign.evidence, 300)}"
    for kind, name in sorted((before or frozenset()) - now):
        if kind == "alarm" and ("verdict", name) not in now:
            yield f"{step}: no longer {name}"
