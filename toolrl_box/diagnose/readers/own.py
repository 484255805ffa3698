"""Our own run folders: ``rollouts/step_NNNNNN.parquet`` and ``metrics.parquet``.

Schemas: ``runlog.ROLLOUTS`` and ``runlog.METRICS``. Every assistant message there has the state it
was logged with, which is how the prompt's demonstrations are told from the model's own; the state
itself is not taken over, so that a diagnosis judges our logs as it judges others'.

An expert's rollout is a gold dialogue: all of it is prompt, nothing of it is judged. Checkpoints
are found by their folders' names. Left out: journal, probe and evaluation (``toolrl report``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toolrl_box.diagnose.readers._json import (
    BadRecord,
    kind,
    loads,
    number,
    numbers,
    text,
    whole,
)
from toolrl_box.diagnose.readers._messages import chat, prompt_length
from toolrl_box.diagnose.readers._parquet import parquet_rows, schema
from toolrl_box.diagnose.readers._scalars import scalars
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.records import LoggedRollout, Origin, Record

_ROLLOUTS = (
    *("step", "group", "member", "task_id", "category", "source", "reward", "reward_parts"),
    *("messages", "loss_mask", "logprobs"),
)


@dataclass(frozen=True)
class Own(Plain):
    name = "toolrl"
    suffixes = (".parquet",)

    def fits(self, source: Source) -> bool:
        found = schema(source)
        names = set() if found is None else set(found.names)
        return set(_ROLLOUTS) <= names or {"step", "rl_step", "phase_kind"} <= names

    def read(self, source: Source) -> Iterator[Record]:
        found = schema(source)
        if found is not None and "phase_kind" in found.names:
            return parquet_rows(source, lambda origin, row: _figures(source, origin, row))
        return parquet_rows(source, lambda origin, row: (_rollout(source, origin, row),), _ROLLOUTS)


def _figures(source: Source, origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
    # NaN is how this table says that a step has no such figure.
    known = {name: value for name, value in row.items() if not _is_nan(value)}
    found = scalars(source, origin, known)
    return () if found is None else (found,)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    logged = _json(row, "messages")
    if not isinstance(logged, list):
        raise BadRecord(f"messages must be a list, not {kind(logged)}")
    messages = chat(logged, apart=False)
    states = [isinstance(message, dict) and "state" in message for message in logged]
    length = states.index(True) if True in states else prompt_length(messages)
    step, group, member = (whole(row.get(name)) for name in ("step", "group", "member"))
    own = _own_logprobs(row)
    return LoggedRollout(
        origin=origin,
        id=f"{step}/{group}/{member}",
        messages=messages,
        prompt_length=len(messages) if row.get("source") == "expert" else length,
        step=source.step if step is None else step,
        reward=number(row.get("reward")),
        reward_parts=numbers(_json(row, "reward_parts")),
        group=f"{step}/{group}",
        category=text(row.get("category")),
        facts={"response_tokens": float(len(own)), "max_logprob": max(own)} if own else {},
    )


def _json(row: dict[str, Any], name: str) -> Any:
    """The value of a column that holds JSON text. Raises BadRecord."""
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRecord(f"{name} must be JSON text, not {kind(value)}")
    return loads(value)


def _own_logprobs(row: dict[str, Any]) -> list[float]:
    """Log-probs of the tokens that the model wrote."""
    mask, logprobs = row.get("loss_mask"), row.get("logprobs")
    if not (isinstance(mask, list) and isinstance(logprobs, list)):
        return []
    pairs = zip(logprobs, mask, strict=False)
    return [figure for value, own in pairs if own and (figure := number(value)) is not None]
