"""The prompts that the run fails at, as chat JSONL: an SFT set where the log has gold.

Input: a log, read once more, and the step from which on failures count. Output: a file with one
line for each different prompt: ``messages`` (the prompt, then gold), ``tools``, ``gold`` (whether
the log had it; only such lines can be trained on), ``prompt_messages`` (how many messages are the
prompt), ``reward``, ``step``, ``category``, ``id``.

A rollout failed when its reward is below the middle of the log's lowest and highest; without
rewards, when one of its messages is not structurally sound. Prompts are told apart by a hash of
what they say, of which :data:`MAX_PROMPTS` are kept: memory is bounded. Left out: choosing among
the rollouts of a prompt; the first that failed stands for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toolrl_box.diagnose.evidence import SOUND
from toolrl_box.diagnose.judge import Judge, JudgedRollout, written
from toolrl_box.diagnose.records import LoggedMessage, LoggedRollout, Record
from toolrl_box.durable import writing
from toolrl_box.formats import to_tools

MAX_PROMPTS = 100_000


@dataclass(frozen=True, slots=True)
class Written:
    """``more``: whether there were further prompts than fit."""

    prompts: int
    with_gold: int
    more: bool


def write_failed_prompts(
    path: Path,
    records: Iterable[Record],
    *,
    judge: Judge,
    since: int | None,
    middle: float | None,
) -> Written:
    """Replaces ``path`` as a whole. ``judge``: one that has judged nothing yet; ``since``: rollouts
    of earlier steps do not count; ``middle``: the reward below which a rollout failed, None
    without rewards."""
    seen: set[bytes] = set()
    gold, more = 0, False
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                for record in records if middle is not None else judge.stream(records):
                    rollout = record.rollout if isinstance(record, JudgedRollout) else record
                    if not isinstance(rollout, LoggedRollout) or not _failed(record, since, middle):
                        continue
                    if (key := _key(rollout)) in seen:
                        continue
                    if len(seen) >= MAX_PROMPTS:
                        more = True
                        break
                    seen.add(key)
                    gold += rollout.gold is not None
                    file.write(json.dumps(_line(rollout), ensure_ascii=False) + "\n")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return Written(len(seen), gold, more)


def _failed(record: Record | JudgedRollout, since: int | None, middle: float | None) -> bool:
    rollout = record.rollout if isinstance(record, JudgedRollout) else record
    assert isinstance(rollout, LoggedRollout)
    if rollout.prompt_length == 0 or not written(rollout):
        return False
    if since is not None and rollout.step is not None and rollout.step < since:
        return False
    if middle is not None:
        return rollout.reward is not None and not rollout.reward >= middle
    assert isinstance(record, JudgedRollout)
    return any(finding.kind not in SOUND for _, finding in record.findings)


def _key(rollout: LoggedRollout) -> bytes:
    digest = blake2b(digest_size=16)
    for message in rollout.messages[: rollout.prompt_length]:
        digest.update(json.dumps(_message(message), sort_keys=True).encode())
    return digest.digest()


def _line(rollout: LoggedRollout) -> dict[str, Any]:
    messages = (*rollout.messages[: rollout.prompt_length], *(rollout.gold or ()))
    return {
        "messages": [_message(message) for message in messages],
        "tools": to_tools(rollout.tools),
        "gold": rollout.gold is not None,
        "prompt_messages": rollout.prompt_length,
        "reward": rollout.reward,
        "step": rollout.step,
        "category": rollout.category,
        "id": rollout.id,
    }


def _message(message: LoggedMessage) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.calls:
        made["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.calls
        ]
    return made


def _arguments(text: str) -> Any:
    """As an object, which chat templates expect; broken JSON stays text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
