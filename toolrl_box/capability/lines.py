"""An examination as lines of text, for the terminal.

Input: an :class:`~toolrl_box.capability.examine.Examination`. Output: a table of success, the
accuracies under the gold context, each counterfactual's recovered share, and the verdict.
Left out: scores by task and by category (they are in the JSON).
"""

from __future__ import annotations

from collections.abc import Iterator

from toolrl_box.capability.examine import FREE, Condition, Examination, Played
from toolrl_box.capability.gold import Accuracy
from toolrl_box.capability.verdict import Recovered, Verdict

_WORDS = {
    "reference": "the reference's control tokens",
    "grammar": "structural grammar",
    "forced": "forced call prefix",
}


def lines(found: Examination) -> Iterator[str]:
    yield f"{found.checkpoint}: {len(found.task_ids)} tasks a suite"
    beside = "" if found.reference is None else f"reference ({found.reference})"
    yield f"  {'':<44}{'greedy  T=1':<18}{beside}".rstrip()
    for condition in found.conditions:
        own, other = _figures(condition.checkpoint), _figures(condition.reference)
        yield f"  {_title(condition):<44}{own:<18}{other}".rstrip()
    if found.accuracy is not None:
        yield "  under the gold context: calls with every token of it most likely"
        for role, accuracy in found.accuracy.items():
            yield f"    {role:<42}{_accuracy(accuracy)}"
    if found.verdict is not None:
        yield from _verdict(found.verdict)


def _title(condition: Condition) -> str:
    where = f"{condition.suite} ({condition.place.format})"
    return where if condition.name == FREE else f"{where}: {_WORDS[condition.name]}"


def _figures(played: Played | None) -> str:
    return "" if played is None else f"{played.greedy.success:.3f}   {played.sampled.success:.3f}"


def _accuracy(accuracy: Accuracy) -> str:
    parts = {"name": accuracy.name, "arguments": accuracy.arguments, "both": accuracy.call}
    told = [f"{part} {share:.3f}" for part, share in parts.items() if share is not None]
    return f"{'  '.join(told)}  of {accuracy.calls}"


def _verdict(verdict: Verdict) -> Iterator[str]:
    for name, recovered in (verdict.each or {}).items():
        yield f"  {'recovered by ' + _WORDS.get(name, name):<44}{_share(recovered)}"
    low, high = verdict.fall
    fall = f"{verdict.reference:.3f} to {verdict.checkpoint:.3f}, a fall of [{low:.3f}, {high:.3f}]"
    yield f"success (greedy and T=1 together): {fall}"
    if verdict.recovered is None:
        yield f"verdict: {verdict.name}"
    else:
        yield f"verdict: {verdict.name}; the best recovers {_share(verdict.recovered)} of the fall"


def _share(recovered: Recovered) -> str:
    return f"{recovered.share:.2f} [{recovered.low:.2f}, {recovered.high:.2f}]"
