"""Chat messages and tool documents in OpenAI's form, as most frameworks log them.

``{"role", "content", "tool_calls": [{"function": {"name", "arguments"}}], "tool_call_id"}``;
``content`` may be a list of parts, of which the texts are kept (pictures are not judged).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from toolrl_box.diagnose.readers._json import MAX_DEPTH, BadRecord, dumps, kind, loads
from toolrl_box.diagnose.records import LoggedCall, LoggedMessage
from toolrl_box.formats import too_deep
from toolrl_box.types import Role, ToolSpec

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool-call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "tool-response": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "observation": "tool",
    "environment": "tool",
}
"""What logs call a role (in lower case), and ours."""


def is_chat(value: Any) -> bool:
    """Whether it looks like a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item for item in value[:3])
    )


def chat(value: Any, *, apart: bool | None = None) -> tuple[LoggedMessage, ...]:
    """The messages of one dialogue.

    ``apart`` says whether the log holds calls apart from the text; None: as the messages tell
    (:func:`calls_apart`). Raises BadRecord.
    """
    if not isinstance(value, list):
        raise BadRecord(f"messages must be a list, not {kind(value)}")
    if apart is None:
        apart = calls_apart(value)
    return tuple(chat_message(item, apart) for item in value)


def calls_apart(messages: Sequence[Any]) -> bool:
    """Whether any message shows that calls are held apart: a list of calls, were it empty, an
    answer with the call's id. ``"tool_calls": null`` says nothing: clients write it always."""
    return any(
        isinstance(message, dict)
        and (
            isinstance(message.get("tool_calls"), list)
            or isinstance(message.get("function_call"), dict)
            or message.get("tool_call_id") is not None
        )
        for message in messages
    )


def chat_message(value: Any, apart: bool) -> LoggedMessage:
    """One message. Raises BadRecord when the role is unknown or a part is of the wrong kind."""
    if not isinstance(value, dict):
        raise BadRecord(f"a message must be an object, not {kind(value)}")
    return LoggedMessage(
        role=role(value.get("role")),
        text=content(value.get("content")),
        calls=_calls(value) if apart and role(value.get("role")) == "assistant" else None,
        truncated=value.get("finish_reason") == "length",
    )


def role(value: Any) -> Role:
    """Raises BadRecord for a role that no log is known to use."""
    found = ROLES.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise BadRecord(f"unknown role {str(value)[:40]!r}; one of: {', '.join(ROLES)}")
    return found


def content(value: Any) -> str:
    """The text of a message's content. Raises BadRecord."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(_part(part) for part in value)
    raise BadRecord(f"content must be a text or a list of parts, not {kind(value)}")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _calls(message: Mapping[str, Any]) -> tuple[LoggedCall, ...]:
    value = message.get("tool_calls")
    if value is None:
        single = message.get("function_call")  # OpenAI's older form
        value = [] if single is None else [single]
    if not isinstance(value, list):
        raise BadRecord(f"tool_calls must be a list, not {kind(value)}")
    return tuple(call(item) for item in value)


def call(value: Any) -> LoggedCall:
    """One call, bare or under ``function``, or as JSON text. Raises BadRecord."""
    if isinstance(value, str):
        value = loads(value)
    if not isinstance(value, dict):
        raise BadRecord(f"a call must be an object, not {kind(value)}")
    function = value.get("function")
    if not isinstance(function, dict):
        function = value
    name, arguments = function.get("name"), function.get("arguments")
    if arguments is None:
        arguments = ""
    return LoggedCall(
        name=name if isinstance(name, str) else "",
        arguments=arguments if isinstance(arguments, str) else dumps(arguments),
    )


def tools(value: Any) -> tuple[ToolSpec, ...]:
    """Tool documents in OpenAI's form (bare or under ``function``), a list or its JSON text; what
    is none is left out, because a broken document is no fault of the model."""
    if isinstance(value, str):
        try:
            value = loads(value)
        except BadRecord:
            return ()
    if not isinstance(value, list):
        return ()
    return tuple(spec for item in value if (spec := tool(item)) is not None)


def tool(value: Any) -> ToolSpec | None:
    """One tool document, None when it is none."""
    if isinstance(value, str):
        try:
            value = loads(value)
        except BadRecord:
            return None
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if not isinstance(function, dict):
        function = value
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or too_deep(schema, MAX_DEPTH):
        return None
    description = function.get("description")
    return ToolSpec(
        name=name,
        parameters=schema if isinstance(schema, dict) else {},
        description=description if isinstance(description, str) else "",
    )


def tools_in(messages: Sequence[LoggedMessage]) -> tuple[ToolSpec, ...]:
    """The tools that a ``<tools>`` block of the system message documents, a JSON list or one line
    of JSON each, as Hermes' and Qwen's templates write them."""
    if not messages or messages[0].role != "system" or "<tools>" not in messages[0].text:
        return ()
    # The templates name the tags in a sentence before they use them.
    for piece in messages[0].text.split("<tools>")[1:]:
        block, closed, _ = piece.partition("</tools>")
        if closed and block.strip():
            return _documents(block.strip())
    return ()


@lru_cache(maxsize=64)
def _documents(block: str) -> tuple[ToolSpec, ...]:
    """The tools of one block. Kept, because all rollouts of a step tend to have the same."""
    if block.startswith("["):
        return tools(block)
    return tuple(spec for line in block.splitlines() if (spec := tool(line)) is not None)


def prompt_digest(messages: Sequence[LoggedMessage]) -> str:
    """A short name for a prompt, by which the rollouts of one prompt find together in a log that
    does not name their group."""
    digest = blake2b(digest_size=8)
    for message in messages:
        digest.update(message.role.encode() + b"\0" + message.text.encode(errors="replace") + b"\0")
    return digest.hexdigest()


def prompt_length(messages: Sequence[LoggedMessage]) -> int:
    """How many messages come before the first assistant message: the prompt, in a log that does
    not say where it ends."""
    return next(
        (index for index, message in enumerate(messages) if message.role == "assistant"),
        len(messages),
    )


def last_truncated(
    messages: tuple[LoggedMessage, ...], truncated: bool
) -> tuple[LoggedMessage, ...]:
    """The messages, the last of them marked as cut off if it is so."""
    if not truncated or not messages:
        return messages
    return (*messages[:-1], replace(messages[-1], truncated=True))
