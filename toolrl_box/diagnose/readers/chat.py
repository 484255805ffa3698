"""OpenAI-style chat JSONL: one dialogue a line (or a JSON list of dialogues).

``messages``, or ``prompt`` and ``completion`` (``response``) as message lists or texts; where
present ``tools``, ``reward`` (or ``score``), ``rewards`` or ``metrics`` (an object of parts),
``step`` (or ``global_step``, ``training_step``), ``advantage``, ``id``, ``group``, ``category``,
``model``, ``finish_reason``. ShareGPT's ``conversations`` of ``from`` and ``value`` are read too.

What the log does not say: with ``messages`` alone, where the prompt ends; it is taken to end before
the first assistant message.

Schema: OpenAI's fine-tuning and chat-completions documentation (messages, tools, tool_calls);
the other fields are what trainers add.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toolrl_box.diagnose.readers._json import (
    BadRecord,
    glance,
    kind,
    number,
    numbers,
    text,
    whole,
)
from toolrl_box.diagnose.readers._messages import (
    calls_apart,
    chat,
    is_chat,
    last_truncated,
    prompt_length,
    tools,
    tools_in,
)
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._turns import dialogue
from toolrl_box.diagnose.readers._values import json_objects
from toolrl_box.diagnose.records import LoggedMessage, LoggedRollout, Origin, Record


@dataclass(frozen=True)
class Chat(Plain):
    name = "chat"
    suffixes = (".jsonl", ".json", ".ndjson")

    def fits(self, source: Source) -> bool:
        first, names = glance(source.head)
        if not first:
            return {"messages", "role"} <= names
        after = _answer(first)
        return (
            is_chat(_list(first))
            or is_chat(after)
            or ("prompt" in first and isinstance(after, str))
        )

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            yield _rollout(source, origin, row)

        return json_objects(source, convert)


def _rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    messages, length = _messages(row)
    cut = row.get("finish_reason") == "length" or row.get("truncated") is True
    step = next((found for key in _STEPS if (found := whole(row.get(key))) is not None), None)
    return LoggedRollout(
        origin=origin,
        id=_first_text(row, "id", "rollout_id", "trajectory_id") or source.id(origin.line),
        messages=last_truncated(messages, cut),
        prompt_length=length,
        step=source.step if step is None else step,
        reward=number(row.get("reward", row.get("score"))),
        reward_parts=numbers(row.get("rewards")) or numbers(row.get("metrics")),
        advantage=number(row.get("advantage")),
        group=_first_text(row, "group", "group_id", "prompt_id", "task_id"),
        category=_first_text(row, "category", "task", "data_source"),
        model=_first_text(row, "model"),
        tools=tools(row.get("tools")) or tools_in(messages),
    )


def _messages(row: dict[str, Any]) -> tuple[tuple[LoggedMessage, ...], int]:
    """The dialogue and how many of its messages are the prompt. Raises BadRecord."""
    if (listed := _list(row)) is not None:
        messages = _chat(row, listed)
        return messages, prompt_length(messages)
    before, after = row.get("prompt"), _answer(row)
    if isinstance(after, str) and (before is None or isinstance(before, str)):
        return dialogue(before or "", after)
    if after is None:
        raise BadRecord(f"no messages; the line has: {', '.join(list(row)[:10]) or 'nothing'}")
    if isinstance(after, str):
        after = [{"role": "assistant", "content": after}]
    if before is None or isinstance(before, str):
        before = [{"role": "user", "content": before}] if before else []
    if not (isinstance(before, list) and isinstance(after, list)):
        raise BadRecord(f"prompt is {kind(before)}, completion is {kind(after)}")
    return _chat(row, [*before, *after]), len(before)


def _chat(row: dict[str, Any], listed: Any) -> tuple[LoggedMessage, ...]:
    if not isinstance(listed, list):
        raise BadRecord(f"messages must be a list, not {kind(listed)}")
    # Declared tools and a `tool_calls` key: the server parsed the calls, were they none.
    native = bool(row.get("tools")) and any(
        isinstance(message, dict) and "tool_calls" in message for message in listed
    )
    return chat(listed, apart=native or calls_apart(listed))


def _answer(row: dict[str, Any]) -> Any:
    return row.get("completion", row.get("response"))


_STEPS = ("step", "global_step", "training_step")


def _list(row: dict[str, Any]) -> Any:
    """The dialogue as messages, ShareGPT's form translated; None when there is none."""
    if "messages" in row:
        return row["messages"]
    turns = row.get("conversations")
    if not isinstance(turns, list):
        return None
    return [
        {"role": turn.get("from"), "content": turn.get("value"), **turn}
        if isinstance(turn, dict)
        else turn
        for turn in turns
    ]


def _first_text(row: dict[str, Any], *keys: str) -> str | None:
    return next((found for key in keys if (found := text(row.get(key))) is not None), None)
