"""verifiers: ``results.jsonl`` of its versions 0.1, ``traces.jsonl`` since 0.2.

``results.jsonl``: ``example_id``, ``prompt`` and ``completion`` (message lists whose calls are JSON
texts, or plain texts), ``reward``, ``metrics`` (also flattened into the row), ``is_truncated``,
``tool_defs``, ``token_usage``. Source: verifiers 0.1.14, ``utils/save_utils.py``
(``state_to_output``) and ``types.py`` (``RolloutOutput``). prime-rl's ``train_rollouts.jsonl`` of
that time has the same fields. For traces see ``_traces``.

What the log does not say: the step, except in a folder's name or, in traces, a training run's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toolrl_box.diagnose.readers._json import (
    BadRecord,
    glance,
    json_lines,
    kind,
    number,
    numbers,
    text,
    whole,
)
from toolrl_box.diagnose.readers._messages import calls_apart, chat, last_truncated, tools, tools_in
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._traces import is_trace, rollouts
from toolrl_box.diagnose.readers._turns import dialogue
from toolrl_box.diagnose.records import LoggedMessage, LoggedRollout, Origin, Record

_MARKS = {"example_id", "is_truncated", "is_completed", "stop_condition", "is_filtered"}


@dataclass(frozen=True)
class Verifiers(Plain):
    name = "verifiers"
    suffixes = (".jsonl",)

    def fits(self, source: Source) -> bool:
        _, names = glance(source.head)
        return is_trace(names) or ({"prompt", "completion"} <= names and bool(names & _MARKS))

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            if is_trace(frozenset(row)):
                yield from rollouts(source, origin, row)
            else:
                yield _rollout(source, origin, row)

        return json_lines(source, convert)


def _rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    messages, length = _messages(row)
    step = whole(row.get("step"))
    tokens = numbers(row.get("token_usage")).get("output_tokens")
    return LoggedRollout(
        origin=origin,
        id=text(row.get("trajectory_id")) or source.id(origin.line),
        messages=last_truncated(messages, row.get("is_truncated") is True),
        prompt_length=length,
        step=source.step if step is None else step,
        reward=number(row.get("reward")),
        reward_parts=numbers(row.get("metrics")),
        advantage=number(row.get("advantage")),
        group=text(row.get("example_id")),
        category=text(row.get("env_name")) or text(row.get("task")),
        tools=tools(row.get("tool_defs")) or tools_in(messages),
        facts={} if tokens is None else {"response_tokens": tokens},
    )


def _messages(row: dict[str, Any]) -> tuple[tuple[LoggedMessage, ...], int]:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return dialogue(prompt, completion)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise BadRecord(f"prompt is {kind(prompt)}, completion is {kind(completion)}")
    messages = [*prompt, *completion]
    # An environment with tool documents has its calls parsed by the server.
    return chat(messages, apart=bool(row.get("tool_defs")) or calls_apart(messages)), len(prompt)
