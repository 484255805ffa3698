"""Task -> Task: what a prompt may carry besides the question.

Input and output are tasks; only ``prompt`` changes, so environment and reward stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from toolrl_box.types import Task


def hint(task: Task) -> str:
    """Deterministic summary of the solution (HBG, arXiv 2606.26027): the gold calls in
    order, one a line, and the words of a turn in which the right move is no call at all."""
    steps: list[str] = []
    acted = False  # whether the current user turn has seen a call
    for message in task.gold:
        acted = message.role != "user" and (acted or bool(message.tool_calls))
        for call in message.tool_calls:
            arguments = (f"{key}={json.dumps(value)}" for key, value in call.arguments.items())
            steps.append(f"{call.name}({', '.join(arguments)})")
        if message.role == "assistant" and not acted:
            steps.append(f"reply {json.dumps(message.content)}")
    return "\n".join(["Hint:", *steps])


def with_hint(
    task: Task, text: str | None = None, position: Literal["system", "user"] = "system"
) -> Task:
    """The task with a hint (its own, without ``text``) at the end of its first system message or
    of its last user message before the first answer."""
    text = hint(task) if text is None else text
    places = [i for i, message in enumerate(task.prompt) if message.role == position]
    assert places, f"the prompt of task '{task.id}' has no {position} message"
    place = places[0] if position == "system" else places[-1]
    hinted = replace(task.prompt[place], content=f"{task.prompt[place].content}\n{text}")
    return replace(task, prompt=(*task.prompt[:place], hinted, *task.prompt[place + 1 :]))


def with_demonstrations(task: Task, demonstrations: Sequence[Task]) -> Task:
    """The task after the whole gold dialogues of ``demonstrations``, as earlier turns of the same
    chat (ICRL's few-shot rollout prompt, arXiv 2603.08068).

    They show how calls are written and read; the tools stay those of the task itself.
    """
    opening = [message for message in task.prompt if message.role == "system"]
    shown = [
        replace(message, tools=())
        for demonstration in demonstrations
        for message in (*demonstration.prompt, *demonstration.gold)
        if message.role != "system"
    ]
    rest = task.prompt[len(opening) :]
    return replace(task, prompt=(*opening, *shown, *rest))
