"""Reflections of one run: made once, kept beside the rollouts that they are about.

Job: answer :attr:`toolrl_box.phases.Context.reflect`. Input: names of failed rollouts, which are
read back from the run folder. Output: tasks whose gold is a reflection; rows in ``reflections/``
and a line in the journal.

What a phase was taught is filed under its first step, so that rewinding the run drops it together
with that step; asked again (a resumed run replays its scheme), the same rollouts give the texts
that are on file. An LLM judge's answers survive rewinding in ``judge.jsonl``.

Left out: how texts are written (``supervision``) and how a judge is asked (``judge``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from toolrl_box.errors import JudgeError
from toolrl_box.judge import Answer, Judge, Ledger
from toolrl_box.phases import RolloutKey
from toolrl_box.runlog import RunLog
from toolrl_box.supervision import Analyst, Dialogue, Said, judge_prompt, judged
from toolrl_box.types import Task, ToolFormat

OnFailure = Literal["error", "analyst", "skip"]
FREE = Answer(None, None, 0, 0, None, 0)
GIVE_UP = 3
"""Unanswered questions in a row after which the judge is asked no more for this phase."""


class Reflector:
    """``judge`` None: the analyst writes. ``on_failure``: what a judge that fails does to the run:
    end it with JudgeError (it can be resumed), let the analyst write, or leave the text out."""

    def __init__(
        self,
        log: RunLog,
        tasks: Mapping[str, Task],
        fmt: ToolFormat,
        analyst: Analyst,
        judge: Judge | None = None,
        on_failure: OnFailure = "error",
    ) -> None:
        self._log = log
        self._tasks = tasks
        self._fmt = fmt
        self._analyst = analyst
        self._judge = judge
        self._on_failure = on_failure
        self._ledger = Ledger(log.path / "judge.jsonl")
        self._unanswered = 0

    def __call__(self, keys: Sequence[RolloutKey], texts: int) -> tuple[Task, ...]:
        """At most ``texts`` tasks for each of ``keys``, in order."""
        filed = {
            RolloutKey(row["rollout_step"], row["group"], row["member"], row["task_id"]): row
            for row in RunLog.open(self._log.path).reflections()
        }
        if not all(key in filed for key in keys):
            filed = dict(zip(keys, self._write(keys, texts), strict=True))
        return tuple(
            Dialogue(**dialogue).task(_name(key, i), self._tasks[key.task_id])
            for key in keys
            for i, dialogue in enumerate(filed[key]["dialogues"])
        )

    def _write(self, keys: Sequence[RolloutKey], texts: int) -> list[dict[str, Any]]:
        logs, self._unanswered = self._logs(keys), 0
        rows = [self._row(key, logs[key], texts) for key in keys]
        step = self._log.last_step + 1
        self._log.reflections(step, rows)
        costs = [row["cost"] for row in rows if row["cost"] is not None]
        self._log.event(
            "reflections",
            step=step,
            trajectories=len(rows),
            texts=sum(len(row["dialogues"]) for row in rows),
            authors=dict(Counter(row["author"] for row in rows)),
            failures=sum(row["error"] is not None for row in rows),
            prompt_tokens=sum(row["prompt_tokens"] for row in rows),
            completion_tokens=sum(row["completion_tokens"] for row in rows),
            cost=sum(costs) if costs else None,
        )
        return rows

    def _row(self, key: RolloutKey, log: Sequence[Said], texts: int) -> dict[str, Any]:
        task, answer, author = self._tasks[key.task_id], FREE, "analyst"
        if self._judge is not None:
            answer = self._ask(self._judge, task, log)
            author = "judge" if answer.text else self._on_failure
        match author:
            case "judge":
                dialogues = judged(answer.text or "", log, self._fmt)
            case "analyst":
                dialogues = self._analyst(task, log)
            case _:
                dialogues = ()
        return {
            "step": self._log.last_step + 1,
            "rollout_step": key.step,
            "group": key.group,
            "member": key.member,
            "task_id": key.task_id,
            "author": author,
            "dialogues": [asdict(dialogue) for dialogue in dialogues[:texts]],
            "error": answer.error,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "cost": answer.cost,
        }

    def _ask(self, judge: Judge, task: Task, log: Sequence[Said]) -> Answer:
        prompt = judge_prompt(task, log, self._fmt)
        question = judge.digest(prompt)
        answer = self._ledger.get(question)
        if answer is None and self._unanswered >= GIVE_UP:
            return replace(FREE, error=f"not asked: {GIVE_UP} in a row before it went unanswered")
        if answer is None:
            answer = judge.ask(prompt)
            if answer.error is not None and self._on_failure == "error":
                raise JudgeError(
                    f"{answer.error}; the run can be resumed, or set reflection.on_failure to "
                    "analyst or skip"
                )
            self._ledger.add(question, answer)
        self._unanswered = 0 if answer.text else self._unanswered + 1
        return answer

    def _logs(self, keys: Sequence[RolloutKey]) -> dict[RolloutKey, list[Said]]:
        """What was said in each rollout, from the run folder."""
        view, found = RunLog.open(self._log.path), {}
        for step in dict.fromkeys(key.step for key in keys):
            table = view.rollouts(step).set_index(["group", "member"])["messages"]
            for key in keys:
                if key.step == step:
                    messages = table.loc[(key.group, key.member)]
                    said = [Said(m["role"], m["content"]) for m in messages]
                    found[key] = [line for line in said if line.role != "system"]
        return found


def _name(key: RolloutKey, text: int) -> str:
    return f"reflection-{key.step}-{key.group}-{key.member}-{text}"
