"""Real messages from before, at and after the onset, with the offending span cut out.

Input: a run's rollouts and the onset step (or None). Output: :class:`Scene` records of plain
text for the templates to escape. What is shown is what was common, not what was striking: of each
step, the most frequent kinds of message, each with its count; from the onset on, defects come
first. Left out: any mark-up.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolrl_box.runlog import RunView
from toolrl_box.types import STATES

KINDS_PER_SCENE = 3
MARGIN = 260  # characters kept on each side of the span
HEALTHY = STATES[:2]


@dataclass(frozen=True, slots=True)
class Example:
    """One assistant message: ``before + span + after`` with ``span`` offending (empty at a
    point where something is missing). ``marked`` tells whether there is anything to point at."""

    state: str
    kind: str
    count: int
    total: int
    task_id: str
    prompt: str
    before: str
    span: str
    after: str

    @property
    def marked(self) -> bool:
        return self.state not in HEALTHY


@dataclass(frozen=True, slots=True)
class Scene:
    """Typical messages of one step. ``label``: before, at, after; or first, middle, last."""

    label: str
    step: int
    examples: tuple[Example, ...]


def scenes(run: RunView, onset: int | None) -> tuple[Scene, ...]:
    """Up to three scenes; fewer when the run logged fewer steps."""
    chosen = pick_steps(run.rollout_steps(), onset)
    return tuple(
        Scene(label, step, _examples(run, step, defects_first=label in ("at", "after")))
        for label, step in chosen
    )


def pick_steps(steps: list[int], onset: int | None) -> list[tuple[str, int]]:
    """Which steps to show, each at most once."""
    if not steps:
        return []
    if onset is None:
        wanted = [("first", steps[0]), ("middle", steps[len(steps) // 2]), ("last", steps[-1])]
    else:
        # An onset is seen through a trailing mean: the steps just before it are no longer sound.
        sound = [step for step in steps if step <= onset - 5] or steps[:1]
        since = [step for step in steps if step >= onset] or steps[-1:]
        wanted = [("before", sound[-1]), ("at", since[0]), ("after", since[-1])]
    seen: dict[int, str] = {}
    for label, step in wanted:
        seen.setdefault(step, label)
    return [(label, step) for step, label in seen.items()]


def _examples(run: RunView, step: int, *, defects_first: bool) -> tuple[Example, ...]:
    table = run.rollouts(step)
    found: list[tuple[str, list[Mapping[str, Any]], int]] = [
        (task_id, messages, index)
        for task_id, messages in zip(table["task_id"], table["messages"], strict=True)
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    counts = Counter(_sort(messages[index]) for _, messages, index in found)
    examples = []
    order = counts.most_common()
    if defects_first:
        order.sort(key=lambda item: item[0][0] in HEALTHY)
    for sort, count in order[:KINDS_PER_SCENE]:
        task_id, messages, index = next(f for f in found if _sort(f[1][f[2]]) == sort)
        before, span, after = _cut(messages[index])
        prompt = readable(str(messages[index - 1]["content"]))[-MARGIN:] if index else ""
        examples.append(
            Example(*sort, count, len(found), readable(task_id), prompt, before, span, after)
        )
    return tuple(examples)


def _sort(message: Mapping[str, Any]) -> tuple[str, str]:
    return str(message["state"]), str(message["kind"])


def _cut(message: Mapping[str, Any]) -> tuple[str, str, str]:
    """The text around the span, shortened far from it."""
    text = str(message["content"])
    start = min(max(int(message["start"]), 0), len(text))
    end = min(max(int(message["end"]), start), len(text))
    if message["state"] in HEALTHY:
        start = end = 0
    before, span, after = text[:start], text[start:end], text[end:]
    if len(before) > MARGIN:
        before = "…" + before[-MARGIN:]
    if len(span) > 2 * MARGIN:
        span = span[:MARGIN] + "…" + span[-MARGIN:]
    margin = MARGIN if end else 2 * MARGIN
    if len(after) > margin:
        after = after[:margin] + "…"
    return readable(before), readable(span), readable(after)


def readable(text: str) -> str:
    """Make every character visible: a sampled control or direction mark must not reach the page,
    where it would hide or reorder what follows."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for c in text
    )
