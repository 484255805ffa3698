"""OpenAI-style chat JSONL: one dialogue a line (or a JSON list of dialogues).

``messages`` (or ``prompt`` and ``completion`` as message lists); where present ``tools``,
``reward`` (or ``score``), ``rewards`` or ``metrics`` (an object of parts), ``step`` (or
``global_step``, ``training_step``), ``advantage``, ``id``, ``group``, ``category``, ``model``,
``finish_reason``. ShareGPT's ``conversations`` of ``from`` and ``value`` are read too.

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
from toolrl_box.diagnose.readers._values import json_objects
from toolrl_box.diagnose.records import LoggedRollout, Origin, Record


@dataclass(frozen=True)
class Chat(Plain):
    name = "chat"
    suffixes = (".jsonl", ".json", ".ndjson")

    def fits(self, source: Source) -> bool:
        first, names = glance(source.head)
        if not first:
            return {"messages", "role"} <= names
        return is_chat(_list(first)) or is_chat(first.get("completion"))

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            yield rollout(source, origin, row)

        return json_objects(source, convert)


def rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    """The dialogue of one line. Raises BadRecord."""
    before, after = row.get("prompt"), row.get("completion")
    dialogue = _list(row)
    if dialogue is None and isinstance(after, list):
        prompt = before if isinstance(before, list) else [{"role": "user", "content": before}]
        dialogue, known = [*prompt, *after], len(prompt)
    elif dialogue is None:
        raise BadRecord(f"no messages; the line has: {', '.join(list(row)[:10]) or 'nothing'}")
    else:
        known = None
    if not isinstance(dialogue, list):
        raise BadRecord(f"messages must be a list, not {kind(dialogue)}")
    documents = row.get("tools")
    # Declared tools and a `tool_calls` key: the server parsed the calls, were they none.
    native = bool(documents) and any(
        isinstance(message, dict) and "tool_calls" in message for message in dialogue
    )
    messages = chat(dialogue, apart=native or calls_apart(dialogue))
    cut = row.get("finish_reason") == "length" or row.get("truncated") is True
    step = next((found for key in _STEPS if (found := whole(row.get(key))) is not None), None)
    return LoggedRollout(
        origin=origin,
        id=_first_text(row, "id", "rollout_id", "trajectory_id") or source.id(origin.line),
        messages=last_truncated(messages, cut),
        prompt_length=prompt_length(messages) if known is None else known,
        step=source.step if step is None else step,
        reward=number(row.get("reward", row.get("score"))),
        reward_parts=numbers(row.get("rewards")) or numbers(row.get("metrics")),
        advantage=number(row.get("advantage")),
        group=_first_text(row, "group", "group_id", "prompt_id", "task_id"),
        category=_first_text(row, "category", "task", "data_source"),
        model=_first_text(row, "model"),
        tools=tools(documents) or tools_in(messages),
    )


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
