"""Hints that an LLM writes: asked once a task, kept in the run folder.

Input: a task with gold; the judge's endpoint (``reflection.judge``). Output: the hint's text.
The answers stand in ``judge.jsonl``, which survives rewinding, so a resumed run shows the same
hints and pays for none twice.

Left out: hints from the policy itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from toolrl_box.errors import JudgeError
from toolrl_box.judge import Judge, Ledger
from toolrl_box.prompting import hint
from toolrl_box.types import Task

WORDS = 300
"""The longest hint in words (arXiv 2606.26027)."""


class Hinter:
    """``on_failure`` of the judge: ``error`` ends the run, anything else shows the gold hint."""

    def __init__(
        self, judge: Judge, folder: Path, on_failure: Literal["error", "analyst", "skip"]
    ) -> None:
        self._judge = judge
        self._ledger = Ledger(folder / "judge.jsonl")
        self._on_failure = on_failure

    def __call__(self, task: Task) -> str:
        """Raises JudgeError when there is no answer and the run is to end then."""
        prompt = hint_prompt(task)
        question = self._judge.digest(prompt)
        answer = self._ledger.get(question)
        if answer is None:
            answer = self._judge.ask(prompt)
            if answer.error is not None and self._on_failure == "error":
                raise JudgeError(
                    f"{answer.error}; the run can be resumed, or set reflection.on_failure to "
                    "analyst"
                )
            self._ledger.add(question, answer)
        return f"Hint: {answer.text}" if answer.text else hint(task)


def hint_prompt(task: Task) -> list[dict[str, str]]:
    """Messages for an OpenAI-compatible endpoint."""
    system = (
        f"You write hints for an assistant that uses tools, at most {WORDS} words: the steps of "
        "the solution in order, with one example call. Answer with the hint alone, without tags."
    )
    asked = "\n".join(
        message.content
        for message in (*task.prompt, *task.gold)
        if message.role == "user" and message.content
    )
    user = f"Requests:\n{asked}\n\nSolution:\n{hint(task).removeprefix('Hint:').strip()}"
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
