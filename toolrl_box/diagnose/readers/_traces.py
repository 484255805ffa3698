"""Traces of verifiers 0.2 and later, which prime-rl logs too.

An episode ``{"env", "task", "group", "run", "traces": […]}``, or a bare trace ``{"nodes", "calls",
"rewards", "metrics", "tools", …}``. A trace is a graph of messages: ``{"parent", "message",
"sampled", "mask", "logprobs", "advantages", …}``; each path from a root to a leaf is a branch.
Source: verifiers 0.4.0, ``v1/trace.py``, ``v1/graph.py``, ``v1/episode.py``,
``v1/utils/trace_store.py``.

Every branch becomes a rollout; what an earlier branch of the trace has shown is its prompt, so no
message is judged twice. Left out: reasoning that a server held apart (``reasoning_content``), and
traces of agents that are not trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from toolrl_box.diagnose.readers._json import BadRecord, kind, number, numbers, text, whole
from toolrl_box.diagnose.readers._messages import calls_apart, chat, tools
from toolrl_box.diagnose.readers._source import Source
from toolrl_box.diagnose.records import LoggedRollout, Origin

MAX_MESSAGES = 100_000
"""Messages of all branches of a trace together; a line could else be made to hold any number."""
Node = Mapping[str, Any]


def is_trace(names: frozenset[str]) -> bool:
    """Whether an object with these names is an episode or a trace."""
    return {"traces", "task"} <= names or {"nodes", "task"} <= names


def rollouts(source: Source, origin: Origin, row: Mapping[str, Any]) -> Iterator[LoggedRollout]:
    """The rollouts of one line. Raises BadRecord."""
    traces = row.get("traces", [row] if "nodes" in row else None)
    if not isinstance(traces, list):
        raise BadRecord(f"traces must be a list, not {kind(traces)}")
    for trace in traces:
        if not isinstance(trace, dict):
            raise BadRecord(f"a trace must be an object, not {kind(trace)}")
        if _object(trace, "agent").get("trainable", True):
            yield from _branches(source, origin, row, trace)


def _branches(
    source: Source, origin: Origin, episode: Mapping[str, Any], trace: Mapping[str, Any]
) -> Iterator[LoggedRollout]:
    nodes = trace.get("nodes")
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise BadRecord("nodes must be a list of objects")
    cut = {
        whole(call.get("node"))
        for call in _list(trace, "calls")
        if isinstance(call, dict) and call.get("finish_reason") == "length"
    }
    name = text(trace.get("id")) or source.id(origin.line)
    documents = tools(trace.get("tools"))
    run = _object(episode, "run")
    step = whole(_object(run, "work").get("step"))
    seen: set[int] = set()
    for branch, path in enumerate(_paths(nodes)):
        dialogue = [nodes[index].get("message") for index in path]
        apart = bool(documents) or calls_apart(dialogue)
        messages = tuple(
            replace(message, truncated=True) if index in cut else message
            for index, message in zip(path, chat(dialogue, apart=apart), strict=True)
        )
        known = sum(index in seen for index in path)
        first = next(
            (place for place, index in enumerate(path) if nodes[index].get("sampled")), len(path)
        )
        yield LoggedRollout(
            origin=origin,
            id=name if branch == 0 else f"{name}/{branch}",
            messages=messages,
            prompt_length=max(first, known),
            step=source.step if step is None else step,
            reward=_reward(trace),
            reward_parts={**_parts(trace), **numbers(trace.get("metrics"))},
            advantage=_advantage([nodes[index] for index in path]),
            group=text(_object(episode, "group").get("id")),
            category=text(_object(episode, "env").get("name"))
            or text(_object(episode, "env").get("id"))
            or text(_object(trace, "task").get("type")),
            model=_model(trace),
            tools=documents,
            facts=_facts([nodes[index] for index in path if index not in seen]),
        )
        seen.update(path)


def _paths(nodes: list[dict[str, Any]]) -> Iterator[list[int]]:
    """Node numbers from root to leaf, one list a leaf.

    Raises BadRecord for a parent that does not come before its child, which the format rules out
    (it might be a circle), and for more branches than any episode has.
    """
    parents: list[int | None] = []
    for index, node in enumerate(nodes):
        parent = whole(node.get("parent"))
        if node.get("parent") is not None and (parent is None or not 0 <= parent < index):
            shown = str(node.get("parent"))[:40]
            raise BadRecord(f"node {index} has parent {shown}, which is not before it")
        parents.append(parent)
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent is None else depths[parent] + 1)
    leaves = sorted(set(range(len(nodes))).difference(parents))
    if (total := sum(depths[leaf] for leaf in leaves)) > MAX_MESSAGES:
        raise BadRecord(f"branches of {total} messages are more than {MAX_MESSAGES}")
    for leaf in leaves:
        path: list[int] = []
        at: int | None = leaf
        while at is not None:
            path.append(at)
            at = parents[at]
        yield path[::-1]


def _reward(trace: Mapping[str, Any]) -> float | None:
    """The weighted sum, as ``Trace.reward`` has it; older versions log it ready."""
    if (ready := number(trace.get("reward"))) is not None:
        return ready
    rewards = _object(trace, "rewards")
    values = [
        score * (1.0 if weight is None else weight)
        for name in rewards
        if (score := number(_object(rewards, name).get("score"))) is not None
        for weight in (number(_object(rewards, name).get("weight")),)
    ]
    return sum(values) if values else None


def _parts(trace: Mapping[str, Any]) -> dict[str, float]:
    rewards = _object(trace, "rewards")
    scores = {name: _object(rewards, name).get("score") for name in rewards}
    return numbers(scores) | numbers(rewards)


def _advantage(path: list[Node]) -> float | None:
    """The branch's advantage where all its sampled tokens have the same, as in GRPO."""
    values = {number(value) for node in path for value in _list(node, "advantages")}
    return values.pop() if len(values) == 1 else None


def _facts(path: list[Node]) -> dict[str, float]:
    """What the nodes' tokens tell; empty where a log has no tokens."""
    facts: dict[str, float] = {}
    sampled = sum(_trues(node) for node in path if node.get("sampled"))
    if sampled:
        facts["response_tokens"] = float(sampled)
    logprobs = [
        figure
        for node in path
        if node.get("sampled")
        for value in _list(node, "logprobs")
        if (figure := number(value)) is not None
    ]
    if logprobs:
        facts["max_logprob"] = max(logprobs)
    start = next((place for place, node in enumerate(path) if node.get("sampled")), len(path))
    given = [node for node in path[start:] if not node.get("sampled")]
    if tokens := sum(len(_list(node, "mask")) for node in given):
        facts["observation_in_loss"] = sum(_trues(node) for node in given) / tokens
    return facts


def _trues(node: Node) -> int:
    return sum(value is True for value in _list(node, "mask"))


def _model(trace: Mapping[str, Any]) -> str | None:
    names = [call.get("model") for call in _list(trace, "calls") if isinstance(call, dict)]
    return next((name for name in reversed(names) if isinstance(name, str)), None)


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    return found if isinstance(found, list) else []


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}
