"""Bank from dialogues in the form of transformers, TRL and OpenAI, by any chat template.

Input: rows ``{"messages": […], "tools": […]}``, a tokenizer and its :class:`Markup`. Output: a
:class:`~toolrl_box.probe.bank.Bank`. What follows the last assistant message is left out of it.

Left out: choosing among the rows; every one is in the bank and costs its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolrl_box.errors import DataError, ModelError
from toolrl_box.probe.bank import Bank, Span, bank_of_spans, call_slots, text_slots
from toolrl_box.probe.markup import Markup
from toolrl_box.probe.render import Chat, Rendered, Written, render


def bank_of_chats(
    rows: Iterable[tuple[str, Any]], tokenizer: PreTrainedTokenizerBase, markup: Markup
) -> Bank:
    """The bank of these named rows. Raises DataError, naming the dialogue, for one that cannot be
    read or rendered, and when none holds a tool call; ModelError when the template does not serve.
    """
    sequences, spans = [], []
    for name, row in rows:
        seen = render(name, read_chat(name, row), tokenizer)
        for w in seen.written:
            if seen.end_of(w) not in markup.ends:
                raise ModelError(
                    f"{name}: an assistant message ends with {seen.of(w)[-20:]!r} and not with the "
                    "token that ended the probe dialogue's"
                )
        sequences.append(seen.ids)
        spans.append(
            [Span(w.tokens.start, tuple(_slots(name, seen, w, markup))) for w in seen.written]
        )
    return bank_of_spans(sequences, spans, markup.control)


def read_chat(name: str, row: Any) -> Chat:
    """One dialogue as templates want it: ``tools`` may be JSON text, ``arguments`` too. Raises
    DataError naming the dialogue."""
    if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list):
        raise DataError(f"{name} has no list 'messages'")
    messages = []
    for message in row["messages"]:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{name} holds a message without a 'role'")
        content = message.get("content")
        entry = {**message, "content": "" if content is None else content}
        calls = entry.pop("tool_calls", None)
        if calls:
            entry["tool_calls"] = [_read_call(name, call) for call in calls]
        messages.append(entry)
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{name} has no assistant message")
    tools = row.get("tools")
    return messages, (_json(name, "tools", tools) if isinstance(tools, str) else tools) or None


def without_none(value: Any) -> Any:
    """Without the Nones that Arrow fills a column of unlike records with."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value]
    return value


def _slots(name: str, seen: Rendered, w: Written, markup: Markup) -> list[str]:
    written, content = seen.of(w), w.message["content"]
    calls = "tool_calls" in w.message
    # With tags, a call counts also when it was put into the content as text.
    if not calls and not (markup.tagged and markup.opening in written):
        return text_slots(len(w.tokens))
    said = calls and isinstance(content, str) and content in written
    after = written.find(content) + len(content) if said else 0
    begin = written.find(markup.opening, after)
    end = written.rfind(markup.closing, after, seen.offsets[w.tokens[-1]][0] - w.start)
    if begin < 0 or end < begin:
        raise DataError(
            f"{name}: no call from '{markup.opening}' to '{markup.closing}' in the assistant "
            f"message {written[:80]!r}"
        )
    opening, closing = (
        _shifted(seen.tokens(at, at + len(tag)), w.tokens.start)
        for tag, at in ((markup.opening, w.start + begin), (markup.closing, w.start + end))
    )
    return call_slots(len(w.tokens), opening, closing)


def _shifted(tokens: Sequence[int], start: int) -> range:
    return range(tokens[0] - start, tokens[-1] + 1 - start)


def _read_call(name: str, call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise DataError(f"{name} holds a tool call without a 'function'")
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(name, "arguments", arguments)
    if not isinstance(function.get("name"), str) or not isinstance(arguments, Mapping):
        raise DataError(f"{name} holds a tool call without a 'name' and an object of 'arguments'")
    return {**call, "function": {**function, "arguments": dict(arguments)}}


def _json(name: str, what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{name}: {what} that are no JSON: {text[:80]!r}") from error
