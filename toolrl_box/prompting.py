"""Task -> Task: what a prompt may carry besides the question.

Input and output are tasks; only ``prompt`` changes, so environment and reward stay the same.
"""

from __future__ import annotations

from dataclasses import replace

from toolrl_box.types import Message, Task


def hint(task: Task) -> str:
    """Deterministic summary of the solution: the gold calls in order (HBG, arXiv 2606.26027)."""
    steps = [
        " ".join([call.name, *(str(value) for value in call.arguments.values())])
        for message in task.gold
        for call in message.tool_calls
    ]
    return f"Hint: {', '.join(steps)}."


def with_hint(task: Task, text: str | None = None) -> Task:
    """The task with a hint at the end of its system message."""
    first, *rest = task.prompt
    assert first.role == "system", "a task's prompt begins with its system message"
    hinted = Message("system", f"{first.content}\n{hint(task) if text is None else text}")
    return replace(task, prompt=(hinted, *rest))
