"""Finds the structural state of every message that the model wrote, in a stream of records.

Input: records, and the name of a tool format if the user forces one. Output: the same records,
rollouts with a finding for each assistant message after their prompt. The tool format is chosen
from the first :data:`SAMPLE` rollouts, which are held back for that long (other records may
overtake them): a log begins before it collapses.

Left out: what the findings add up to (``diagnose.aggregate``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolrl_box.diagnose.diagnosis import ToolFormatSeen
from toolrl_box.diagnose.records import LoggedMessage, LoggedRollout, Record
from toolrl_box.dialects import Dialect, detect, dialect, without_stop
from toolrl_box.errors import DataError
from toolrl_box.formats import read_json_object
from toolrl_box.probe.policies import DEFAULT, Policies
from toolrl_box.probe.schemas import follows_schema
from toolrl_box.probe.states import classify
from toolrl_box.probe.structured import StructuredCall, classify_structured, structured_text
from toolrl_box.types import Finding, ToolSpec

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
    """Use :meth:`stream`; ``seen`` is known once a rollout has come out of it. ``bad_schemas``:
    tools whose schema is none, so that calls are not checked against it."""

    def __init__(self, forced: str | None = None, policies: Policies = DEFAULT) -> None:
        """Raises ConfigError for a tool format that is none."""
        if forced is not None:
            dialect(forced)
        self._forced = forced
        self._policies = policies
        self._dialect: Dialect | None = None
        self._tools: dict[str, tuple[ToolSpec, ...]] = {}
        self.seen: ToolFormatSeen | None = None
        self.bad_schemas: set[str] = set()

    def stream(self, records: Iterable[Record]) -> Iterator[Record | JudgedRollout]:
        """Never raises for what a record holds."""
        held: list[LoggedRollout] = []
        characters = 0
        for record in records:
            if not isinstance(record, LoggedRollout):
                yield record
            elif self._dialect is not None:
                yield self._judge(record, self._dialect)
            else:
                held.append(record)
                characters += sum(len(message.text) for message in record.messages)
                if len(held) >= SAMPLE or characters >= SAMPLE_CHARACTERS:
                    chosen = self._dialect = self._choose(held)
                    yield from (self._judge(rollout, chosen) for rollout in held)
                    held.clear()
        if held:
            chosen = self._dialect = self._choose(held)
            yield from (self._judge(rollout, chosen) for rollout in held)

    def _judge(self, rollout: LoggedRollout, chosen: Dialect) -> JudgedRollout:
        tools = self._known(rollout.tools)
        findings: list[tuple[str, Finding]] = []
        made: list[list[_Call]] = []
        for message in written(rollout):
            try:
                findings.append(self._found(message, chosen, tools))
            except DataError:  # a reference in a schema that only this call needed
                self.bad_schemas.update(tool.name for tool in tools[:KNOWN_TOOLS])
                findings.append(self._found(message, chosen, ()))
            if rollout.gold is not None:
                made.append(_calls(message, chosen))
        if rollout.gold is None:
            return JudgedRollout(rollout, tuple(findings))
        gold = [_calls(message, chosen) for message in rollout.gold if message.role == "assistant"]
        wrong = tuple(
            bool(calls) and index < len(gold) and calls != gold[index]
            for index, calls in enumerate(made)
        )
        return JudgedRollout(rollout, tuple(findings), wrong)

    def _found(
        self, message: LoggedMessage, chosen: Dialect, tools: Sequence[ToolSpec]
    ) -> tuple[str, Finding]:
        """The text that the finding is about, and the finding. DataError for a bad schema."""
        text = without_stop(message.text)
        parsed = chosen.parse(text)
        if not message.calls:
            finding = classify(
                text,
                parsed,
                tools=tools,
                truncated=message.truncated,
                control_tokens=chosen.control_tokens,
                policies=self._policies,
            )
            return text, finding
        apart = [StructuredCall(call.name, call.arguments) for call in message.calls]
        finding = classify_structured(
            text,
            apart,
            parsed,
            tools=tools,
            truncated=message.truncated,
            control_tokens=chosen.control_tokens,
            policies=self._policies,
        )
        return structured_text(text, apart), finding

    def _choose(self, rollouts: Sequence[LoggedRollout]) -> Dialect:
        messages = [message for rollout in rollouts for message in written(rollout)]
        found = detect(
            (message.text for message in messages),
            structured_calls=any(message.calls is not None for message in messages),
        )
        name = found.name if self._forced is None else self._forced
        stripped = found.stripped and found.name == name
        self.seen = ToolFormatSeen(
            name=name,
            forced=self._forced is not None,
            stripped=stripped,
            evidence=dict(found.evidence),
        )
        return dialect(name, stripped=stripped)

    def _known(self, tools: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
        """The same tools as one object each, so that their schemas are prepared once."""
        if not tools:
            return tools
        key = json.dumps([(tool.name, tool.parameters) for tool in tools], default=str)
        if key not in self._tools:
            if len(self._tools) >= KNOWN_TOOLS:
                self._tools.clear()
            self._tools[key] = tuple(self._usable(tool) for tool in tools)
        return self._tools[key]

    def _usable(self, tool: ToolSpec) -> ToolSpec:
        """The tool; without its schema when that is none, because a log is not to be mended."""
        try:
            follows_schema(tool, {})
        except DataError:
            if len(self.bad_schemas) < KNOWN_TOOLS:
                self.bad_schemas.add(tool.name)
            return replace(tool, parameters={})
        return tool


_Call = tuple[str, Mapping[str, Any] | None]


def written(rollout: LoggedRollout) -> list[LoggedMessage]:
    """The messages that the model wrote."""
    after = rollout.messages[rollout.prompt_length :]
    return [message for message in after if message.role == "assistant"]


def _calls(message: LoggedMessage, chosen: Dialect) -> list[_Call]:
    if message.calls:
        return [(call.name, read_json_object(call.arguments)) for call in message.calls]
    return [(call.name, call.arguments) for call in chosen.parse(without_stop(message.text)).calls]
