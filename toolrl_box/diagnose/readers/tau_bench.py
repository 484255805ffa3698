"""tau-bench: its result file, a JSON list of episodes.

``task_id``, ``reward``, ``info`` (the task with its right actions, what the reward was made of),
``traj`` (messages in OpenAI's form), ``trial``. Source: sierra-research/tau-bench,
``tau_bench/types.py`` (``EnvRunResult``) and ``historical_trajectories/gpt-4o-airline.json``.

What the log does not say: step, tools. An episode in which nobody called shows no sign that calls
are held apart, so its messages are read as text. The right actions are no dialogue, so ``gold`` is
empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toolrl_box.diagnose.readers._json import glance, number, numbers, text
from toolrl_box.diagnose.readers._messages import chat, prompt_length
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._values import json_objects
from toolrl_box.diagnose.records import LoggedRollout, Origin, Record


@dataclass(frozen=True)
class TauBench(Plain):
    name = "tau-bench"
    suffixes = (".json", ".jsonl")

    def fits(self, source: Source) -> bool:
        first, names = glance(source.head)
        # An episode longer than the head is known by what stands before its messages.
        return {"task_id", "reward", "info" if not first else "traj"} <= names

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            yield _rollout(source, origin, row)

        return json_objects(source, convert)


def _rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    messages = chat(row.get("traj"))
    task = text(row.get("task_id"))
    trial = text(row.get("trial"))
    info = row.get("info")
    result = info.get("reward_info") if isinstance(info, dict) else None
    return LoggedRollout(
        origin=origin,
        id=f"{task}/{trial}" if task and trial else source.id(origin.line),
        messages=messages,
        prompt_length=prompt_length(messages),
        step=source.step,
        reward=number(row.get("reward")),
        reward_parts=numbers(result.get("info")) if isinstance(result, dict) else {},
        group=task,
    )
