"""Finds the structural state of every message that the model wrote, in a stream of records.

Input: records, and the name of a tool format if the user forces one. Output: the same records,
rollouts with a finding for each assistant message after their prompt. The tool format is chosen
from the first :data:`SAMPLE` rollouts, which are held back for that long (other records may
overtake them): a log begins before it collapses.

Left out: what the findings add up to (``diagnose.aggregate``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from toolrl_box.diagnose.diagnosis import ToolFormatSeen
from toolrl_box.diagnose.records import LoggedCall, LoggedMessage, LoggedRollout, Record
from toolrl_box.errors import lookup
from toolrl_box.formats import ALL_FORMATS
from toolrl_box.probe.states import classify
from toolrl_box.types import Finding, ToolCall, ToolFormat, ToolSpec

SAMPLE = 256
SAMPLE_CHARACTERS = 4_000_000
KNOWN_TOOLS = 1024


@dataclass(frozen=True, slots=True)
class JudgedRollout:
    """``findings``: text and finding of each message that the model wrote, in order. ``wrong``:
    for each, whether it is a well-formed call that differs from gold's call at its place; empty
    when the log has no gold."""

    rollout: LoggedRollout
    findings: tuple[tuple[str, Finding], ...]
    wrong: tuple[bool, ...] = ()


class Judge:
    """Use :meth:`stream`; ``seen`` is known once a rollout has come out of it."""

    def __init__(self, forced: str | None = None) -> None:
        """Raises ConfigError for a tool format that is none."""
        if forced is not None:
            lookup("tool format", forced, ALL_FORMATS)
        self._forced = forced
        self._format: ToolFormat | None = None
        self._tools: dict[str, tuple[ToolSpec, ...]] = {}
        self.seen: ToolFormatSeen | None = None

    def stream(self, records: Iterable[Record]) -> Iterator[Record | JudgedRollout]:
        """Raises DataError when a tool's parameters are no JSON schema."""
        held: list[LoggedRollout] = []
        characters = 0
        for record in records:
            if not isinstance(record, LoggedRollout):
                yield record
            elif self._format is not None:
                yield self.judge(record)
            else:
                held.append(record)
                characters += sum(len(message.text) for message in record.messages)
                if len(held) >= SAMPLE or characters >= SAMPLE_CHARACTERS:
                    self._choose(held)
                    yield from map(self.judge, held)
                    held.clear()
        if held:
            self._choose(held)
            yield from map(self.judge, held)

    def judge(self, rollout: LoggedRollout) -> JudgedRollout:
        assert self._format is not None, "stream() chooses the format"
        tools = self._known(rollout.tools)
        written = [m for m in rollout.messages[rollout.prompt_length :] if m.role == "assistant"]
        findings = []
        made: list[tuple[ToolCall, ...]] = []
        for message in written:
            text = _whole(message, self._format)
            parsed = self._format.parse(text)
            made.append(parsed.calls)
            finding = classify(
                text,
                parsed,
                tools=tools,
                truncated=message.truncated,
                control_tokens=self._format.control_tokens,
            )
            findings.append((text, finding))
        wrong: tuple[bool, ...] = ()
        if rollout.gold is not None:
            gold = [m for m in rollout.gold if m.role == "assistant"]
            wrong = tuple(
                bool(calls) and index < len(gold) and not self._matches(calls, gold[index])
                for index, calls in enumerate(made)
            )
        return JudgedRollout(rollout, tuple(findings), wrong)

    def _matches(self, calls: Sequence[ToolCall], gold: LoggedMessage) -> bool:
        assert self._format is not None
        wanted = self._format.parse(_whole(gold, self._format)).calls
        return list(calls) == list(wanted)

    def _choose(self, rollouts: Sequence[LoggedRollout]) -> None:
        evidence: Counter[str] = Counter()
        for rollout in rollouts:
            for message in rollout.messages[rollout.prompt_length :]:
                if message.role == "assistant":
                    for name, fmt in ALL_FORMATS.items():
                        evidence[name] += bool(fmt.parse(message.text).calls)
        name = self._forced or max(ALL_FORMATS, key=lambda name: evidence[name])
        self._format = ALL_FORMATS[name]
        self.seen = ToolFormatSeen(
            name=name,
            forced=self._forced is not None,
            stripped=False,
            evidence={name: count for name, count in evidence.items() if count},
        )

    def _known(self, tools: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
        """The same tools as one object each, so that their schemas are prepared once."""
        if not tools:
            return tools
        key = json.dumps([(tool.name, tool.parameters) for tool in tools], default=str)
        if key not in self._tools:
            if len(self._tools) >= KNOWN_TOOLS:
                self._tools.clear()
            self._tools[key] = tools
        return self._tools[key]


def _whole(message: LoggedMessage, fmt: ToolFormat) -> str:
    """The message with the calls that its log holds apart."""
    if not message.calls:
        return message.text
    calls = "\n".join(f"<tool_call>\n{_json(call)}\n</tool_call>" for call in message.calls)
    return f"{message.text}\n{calls}" if message.text else calls


def _json(call: LoggedCall) -> str:
    return f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}'
