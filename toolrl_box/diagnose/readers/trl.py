"""TRL: the completions that ``log_completions=True`` writes, and the trainer's own figures.

``completions/completions_NNNNN.parquet``, one row per completion: ``step``, ``prompt``,
``completion``, one column per reward function, columns that reward functions logged
(``log_extra``), ``advantage``. Prompts and completions are texts, or lists of messages in which
calls are structured. Source: trl 1.16.0, ``trainer/grpo_trainer.py`` (``GRPOTrainer.log``).

``trainer_state.json`` (``log_history``) of transformers' Trainer: transformers 5.23.0,
``trainer_callback.py`` (``TrainerState.save_to_json``). Every checkpoint holds the whole history so
far, so of several the last is read.

What the log does not say: which columns are rewards (every floating-point column counts as one)
and ``reward_weights``. The reward is their sum, which is TRL's unless weights were set; the scalar
``reward`` in ``trainer_state.json`` has them. Where a generation serves several optimiser steps TRL
writes its rows once per logging step, and so they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from toolrl_box.diagnose.readers._json import BadRecord, kind, number, whole
from toolrl_box.diagnose.readers._messages import calls_apart, chat, prompt_digest, tools, tools_in
from toolrl_box.diagnose.readers._parquet import parquet_rows, schema, without_padding
from toolrl_box.diagnose.readers._scalars import scalars
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._turns import dialogue
from toolrl_box.diagnose.readers._values import json_values
from toolrl_box.diagnose.records import LoggedMessage, LoggedRollout, Origin, Record


@dataclass(frozen=True)
class Trl(Plain):
    name = "trl"
    suffixes = (".parquet",)

    def fits(self, source: Source) -> bool:
        found = schema(source)
        return found is not None and {"prompt", "completion", "advantage"} <= set(found.names)

    def read(self, source: Source) -> Iterator[Record]:
        found = schema(source)
        rewards = _reward_columns(found) if found is not None else ()
        # The type of the column tells it for all rows, also for those where nobody called.
        apart = found is not None and "tool_calls" in str(found.field("completion").type)

        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            yield _rollout(source, origin, row, rewards, apart)

        return parquet_rows(source, convert)


def _reward_columns(found: pa.Schema) -> tuple[str, ...]:
    return tuple(
        field.name
        for field in found
        if pa.types.is_floating(field.type) and field.name not in ("advantage", "step")
    )


def _rollout(
    source: Source, origin: Origin, row: Mapping[str, Any], rewards: Sequence[str], apart: bool
) -> LoggedRollout:
    messages, length = _messages(row.get("prompt"), row.get("completion"), apart)
    # A reward function that has no opinion on a row gives None, which TRL logs as NaN.
    parts = {
        name: figure
        for name in rewards
        if (figure := number(row.get(name))) is not None and not math.isnan(figure)
    }
    step = whole(row.get("step"))
    return LoggedRollout(
        origin=origin,
        id=source.id(origin.line),
        messages=messages,
        prompt_length=length,
        step=source.step if step is None else step,
        reward=sum(parts.values()) if parts else None,
        reward_parts=parts,
        advantage=number(row.get("advantage")),
        group=prompt_digest(messages[:length]),
        tools=tools(row.get("tools")) or tools_in(messages),
    )


def _messages(prompt: Any, completion: Any, apart: bool) -> tuple[tuple[LoggedMessage, ...], int]:
    """The dialogue and the prompt's share. Raises BadRecord."""
    prompt, completion = without_padding(prompt), without_padding(completion)
    if isinstance(completion, str) and isinstance(prompt, str):
        return dialogue(prompt, completion)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise BadRecord(f"prompt is {kind(prompt)}, completion is {kind(completion)}")
    messages = [*prompt, *completion]
    return chat(messages, apart=apart or calls_apart(messages)), len(prompt)


@dataclass(frozen=True)
class TrainerState:
    name = "trainer_state"
    suffixes = (".json",)

    def fits(self, source: Source) -> bool:
        return source.name == "trainer_state.json"

    def select(self, sources: Sequence[Source]) -> Sequence[Source]:
        """The last of each run: the one beside the checkpoints, or in the last of them."""
        last: dict[tuple[str, ...], Source] = {}
        for source in sources:
            in_checkpoint = len(source.inside) > 1 and source.inside[-2].startswith("checkpoint-")
            run = source.path.parent.parent if in_checkpoint else source.path.parent
            held = last.get(run.parts)
            if held is None or _recency(source) > _recency(held):
                last[run.parts] = source
        return list(last.values())

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, state: dict[str, Any]) -> Iterable[Record]:
            history = state.get("log_history")
            if not isinstance(history, list):
                raise BadRecord(f"log_history must be a list, not {kind(history)}")
            for row in history:
                found = scalars(source, origin, row) if isinstance(row, dict) else None
                if found is not None:
                    yield found

        return json_values(source, convert)


def _recency(source: Source) -> float:
    folder = source.inside[-2] if len(source.inside) > 1 else ""
    digits = folder.removeprefix("checkpoint-")
    return float(digits) if folder != digits and digits.isdecimal() else math.inf
