"""verl-tool: the step records of its reward managers.

``verl_step_records/{run}/{name}-step-{N}.json`` (or ``-step-val-{N}``), a JSON list (some managers:
JSONL) of ``id``, ``data_source``, ``prompt``, ``response``, ``score`` (a number, or an object with
``score`` and parts), ``reward``, ``tool_interact_info`` (``action``, ``obs``, ``valid_action``,
``done``, …), ``extra_info``; ``traj_ids`` in some versions. Texts keep their special tokens.
Source: TIGER-AI-Lab/verl-tool at 011070aa, ``workers/reward_manager/torl.py``, ``sqlcoder.py``, and
``agent_loop/verltool_agent_loop.py`` for the interactions.

Where the response has the frame's headers they split it, else the returned texts do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toolrl_box.diagnose.readers._json import BadRecord, glance, kind, number, numbers, text, whole
from toolrl_box.diagnose.readers._messages import prompt_digest, tools_in
from toolrl_box.diagnose.readers._observations import observations, split_at
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._turns import dialogue, ended_fact
from toolrl_box.diagnose.readers._values import json_objects
from toolrl_box.diagnose.records import LoggedRollout, Origin, Record


@dataclass(frozen=True)
class VerlTool(Plain):
    name = "verl-tool"
    suffixes = (".json", ".jsonl")

    def fits(self, source: Source) -> bool:
        first, names = glance(source.head)
        texts = not first or isinstance(first.get("response"), str)
        return texts and {"prompt", "response"} <= names and bool(names & _MARKS)

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            yield _rollout(source, origin, row)

        return json_objects(source, convert)


_MARKS = {"tool_interact_info", "traj_ids", "data_source", "num_valid_action"}


def _rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    prompt, response = row.get("prompt"), row.get("response")
    if not (isinstance(prompt, str) and isinstance(response, str)):
        raise BadRecord(
            f"prompt and response must be texts, not {kind(prompt)} and {kind(response)}"
        )
    messages, length = dialogue(prompt, response)
    if len(messages) == length + 1:
        returned = observations(row.get("tool_interact_info"))
        messages = (*messages[:length], *split_at(messages[length].text, returned))
    score = row.get("score")
    parts = numbers(score)
    reward = next(
        (
            figure
            for value in (row.get("reward"), score, parts.get("score"), row.get("final_reward"))
            if (figure := number(value)) is not None
        ),
        None,
    )
    step = whole(row.get("step"))
    tokens = number(row.get("response_ntokens"))
    return LoggedRollout(
        origin=origin,
        id=text(row.get("traj_ids")) or text(row.get("id")) or source.id(origin.line),
        messages=messages,
        prompt_length=length,
        step=source.step if step is None else step,
        reward=reward,
        reward_parts={name: part for name, part in parts.items() if name != "score"},
        group=prompt_digest(messages[:length]),
        category=text(row.get("data_source")),
        tools=tools_in(messages),
        facts=ended_fact(prompt, response)
        | ({} if tokens is None else {"response_tokens": tokens}),
    )
