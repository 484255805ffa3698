"""BFCL: ``BFCL_v4_{category}_result.json``, one entry a line.

``id``, ``result``, token counts, ``inference_log``. A single-turn result is a text, or for native
function calling a list of ``{name: arguments}``; a multi-turn result has one list a user turn, of
such results. ``inference_log`` (multi-turn) has the whole dialogue: per user turn
``begin_of_turn_query`` and ``step_K``, each a list of assistant, tool and handler entries. Source:
bfcl-eval 2026.3.23, ``model_handler/base_handler.py`` (``inference_multi_turn_*``, ``write``).

What the log does not say: reward (it is in BFCL's score files), step, tools; without
``inference_log`` also what the user said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from toolrl_box.diagnose.readers._json import BadRecord, dumps, glance, kind, text
from toolrl_box.diagnose.readers._messages import chat, prompt_length
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._values import json_objects
from toolrl_box.diagnose.records import (
    LoggedCall,
    LoggedMessage,
    LoggedRollout,
    Origin,
    Record,
)

_STEP = re.compile(r"step_(\d{1,9})")


@dataclass(frozen=True)
class Bfcl(Plain):
    name = "bfcl"
    suffixes = (".json", ".jsonl")

    def fits(self, source: Source) -> bool:
        first, names = glance(source.head)
        known = not first or isinstance(first.get("result"), str | list)
        named = source.stem.endswith("_result") or "inference_log" in names
        return known and named and {"id", "result"} <= names

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            yield _rollout(source, origin, row)

        return json_objects(source, convert)


def _rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    log = row.get("inference_log")
    turns = [turn for turn in log if _is_turn(turn)] if isinstance(log, list) else []
    if turns:
        messages = tuple(message for turn in turns for message in _turn(turn))
    else:
        messages = tuple(_result(row.get("result")))
    if any(message.calls is not None for message in messages):
        # Native calling: a message without calls is one in which the model called nothing.
        messages = tuple(
            replace(message, calls=message.calls or ()) if message.role == "assistant" else message
            for message in messages
        )
    name = text(row.get("id"))
    return LoggedRollout(
        origin=origin,
        id=name or source.id(origin.line),
        messages=messages,
        prompt_length=prompt_length(messages),
        step=source.step,
        group=name,
        category=name.rpartition("_")[0] or None if name else None,
    )


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and "begin_of_turn_query" in value


def _turn(turn: Mapping[str, Any]) -> Iterator[LoggedMessage]:
    query = turn["begin_of_turn_query"]
    yield from chat([query] if isinstance(query, dict) else query, apart=False)
    steps = sorted(
        (int(found[1]), value) for name, value in turn.items() if (found := _STEP.fullmatch(name))
    )
    for _, entries in steps:
        if not isinstance(entries, list):
            raise BadRecord(f"a step must be a list, not {kind(entries)}")
        for entry in entries:
            role = entry.get("role") if isinstance(entry, dict) else None
            if role == "assistant":
                yield _assistant(entry.get("content"))
            elif role == "tool":
                content = entry.get("content")
                shown = content if isinstance(content, str) else dumps(content)
                yield LoggedMessage("tool", shown)


def _result(value: Any) -> Iterator[LoggedMessage]:
    """The assistant messages of a ``result``, which may be nested by turn and step."""
    if isinstance(value, list) and any(isinstance(item, list | str) for item in value):
        for item in value:
            yield from _result(item)
    else:
        yield _assistant(value)


def _assistant(value: Any) -> LoggedMessage:
    """A text, or the calls of one message: ``[{name: arguments}, …]``."""
    if isinstance(value, str):
        return LoggedMessage("assistant", value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRecord(f"a result must be a text or a list of calls, not {kind(value)}")
    calls = tuple(
        LoggedCall(name, arguments if isinstance(arguments, str) else dumps(arguments))
        for item in value
        for name, arguments in item.items()
    )
    return LoggedMessage("assistant", "", calls=calls)
