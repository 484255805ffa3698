"""verl: the rollouts of ``trainer.rollout_data_dir`` (and ``validation_data_dir``).

``{step}.jsonl``, one rollout a line: ``input``, ``output``, ``gts``, ``score``, ``step`` and what
the reward function added. Input and output were decoded without special tokens, so that of a ChatML
dialogue bare ``\\nuser\\n`` and ``\\nassistant\\n`` lines are left; verl-tool adds
``tool_interact_info``, whose texts split an output that has no such lines. Source: verl 0.9.1,
``trainer/ppo/ray_trainer.py`` (``_log_rollout_data``, ``_write_generations``) and
``trainer/ppo/v1/trainer_base.py``.

What the log does not say: where a message ended, advantages, tools other than in a ``<tools>``
block. A ``\\nuser\\n`` that the model wrote itself cannot be told from the environment's.
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
from toolrl_box.diagnose.readers._messages import prompt_digest, tools_in
from toolrl_box.diagnose.readers._observations import observations, split_at
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._turns import dialogue
from toolrl_box.diagnose.records import LoggedRollout, Origin, Record

_NO_REWARD_PART = ("step", "score", "reward")


@dataclass(frozen=True)
class Verl(Plain):
    name = "verl"
    suffixes = (".jsonl",)

    def fits(self, source: Source) -> bool:
        first, names = glance(source.head)
        texts = not first or (isinstance(first["input"], str) if "input" in first else False)
        return texts and {"input", "output"} <= names and bool(names & {"score", "gts"})

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            yield _rollout(source, origin, row)

        return json_lines(source, convert)


def _rollout(source: Source, origin: Origin, row: dict[str, Any]) -> LoggedRollout:
    prompt, response = row.get("input"), row.get("output")
    if not (isinstance(prompt, str) and isinstance(response, str)):
        raise BadRecord(f"input and output must be texts, not {kind(prompt)} and {kind(response)}")
    messages, length = dialogue(prompt, response)
    if len(messages) == length + 1:
        returned = observations(row.get("tool_interact_info"))
        messages = (*messages[:length], *split_at(messages[length].text, returned))
    step = whole(row.get("step"))
    parts = {name: part for name, part in numbers(row).items() if name not in _NO_REWARD_PART}
    return LoggedRollout(
        origin=origin,
        id=text(row.get("uid")) or text(row.get("request_id")) or source.id(origin.line),
        messages=messages,
        prompt_length=length,
        step=source.step if step is None else step,
        reward=number(row.get("score")),
        reward_parts=parts,
        group=prompt_digest(messages[:length]),
        category=text(row.get("data_source")),
        tools=tools_in(messages),
    )
