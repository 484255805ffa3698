"""The ChatML frame that all tool formats share: roles, tool documents, results, chat template.

Input: ``Message`` and ``ToolSpec`` records. Output: text, laid out as Qwen2.5's own template lays
it out, so that released models read what they were trained on:

    <|im_start|>system\n{system}{TOOLS_HEADER}{one line of JSON per tool}{instructions}<|im_end|>\n
    <|im_start|>user\n{content}<|im_end|>\n
    <|im_start|>assistant\n{content}\n{calls}<|im_end|>\n
    <|im_start|>user\n<tool_response>\n{result}\n</tool_response><|im_end|>\n

A format adds how calls are written and read (:class:`ChatML` is its base). Content is written as
it is, even where it holds control tokens: escaping would change what a model sees, and whether
such text becomes control *tokens* is for the tokenizer to decide.

Left out: thinking blocks, images, and system messages composed of parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from toolrl_box.errors import DataError
from toolrl_box.formats._grammar import TagGrammar
from toolrl_box.formats._json import dumps
from toolrl_box.formats._scan import StreamParser
from toolrl_box.types import Message, Parsed, ToolCall, ToolSpec

START = "<|im_start|>"
END = "<|im_end|>"
GENERATION_PROMPT = f"{START}assistant\n"
DEFAULT_SYSTEM = "You are a helpful assistant."

TOOLS_HEADER = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
"""Stands between the system text and the tool documents, the same in every format."""


def tool_document(tool: ToolSpec) -> dict[str, Any]:
    """The OpenAI-style document of a tool; an empty description is left out."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = dict(tool.parameters)
    return {"type": "function", "function": function}


def tool_documents(tools: Sequence[ToolSpec]) -> str:
    """One line of JSON per tool."""
    return "\n".join(dumps(tool_document(tool)) for tool in tools)


def to_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """The ``tools=`` argument for ``tokenizer.apply_chat_template``."""
    return [tool_document(tool) for tool in tools]


def plain_content(message: Message) -> str:
    """The content of a message that is not an assistant's, with documents supplied late."""
    if message.tool_calls:
        raise DataError(f"a {message.role} message cannot hold tool calls; only assistants call")
    if not message.tools:
        return message.content
    if message.role != "user":
        raise DataError(f"a {message.role} message cannot supply tools; only users can")
    return f"{message.content}\n<tools>\n{tool_documents(message.tools)}\n</tools>"


def to_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the dict form of transformers and TRL; late documents go into the content."""
    chat: list[dict[str, Any]] = []
    for message in messages:
        if message.role != "assistant":
            chat.append({"role": message.role, "content": plain_content(message)})
            continue
        entry: dict[str, Any] = {"role": "assistant", "content": message.content}
        if message.tool_calls:
            entry["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                }
                for call in message.tool_calls
            ]
        chat.append(entry)
    return chat


def template(instructions: str, macros: str, calls: str) -> str:
    """The Jinja chat template of a format.

    ``macros`` defines what ``calls`` needs; ``calls`` is Jinja code that writes the calls of
    ``message`` (its text, when there is any, is followed by a newline already).
    """
    return (
        macros
        + "{%- if messages and messages[0].role == 'system' -%}"
        + "{%- set system = messages[0].content -%}{%- set dialogue = messages[1:] -%}"
        + "{%- else -%}"
        + f"{{%- set system = {dumps(DEFAULT_SYSTEM)} -%}}{{%- set dialogue = messages -%}}"
        + "{%- endif -%}"
        + "{{- '<|im_start|>system\\n' + system -}}"
        + f"{{%- if tools -%}}{{{{- {dumps(TOOLS_HEADER)} -}}}}"
        + "{%- for tool in tools -%}"
        + "{{- tool | tojson -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}"
        + "{%- endfor -%}"
        + f"{{{{- {dumps(instructions)} -}}}}{{%- endif -%}}"
        + "{{- '<|im_end|>\\n' -}}"
        + "{%- for message in dialogue -%}"
        + "{%- if message.role == 'tool' -%}"
        + "{%- if loop.first or loop.previtem.role != 'tool' -%}"
        + "{{- '<|im_start|>user' -}}{%- endif -%}"
        + "{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}"
        + "{%- if loop.last or loop.nextitem.role != 'tool' -%}"
        + "{{- '<|im_end|>\\n' -}}{%- endif -%}"
        + "{%- else -%}"
        + "{{- '<|im_start|>' + message.role + '\\n' -}}"
        + "{%- if message.content -%}{{- message.content -}}{%- endif -%}"
        + "{%- if message.tool_calls -%}"
        + "{%- if message.content -%}{{- '\\n' -}}{%- endif -%}"
        + calls
        + "{%- endif -%}"
        + "{{- '<|im_end|>\\n' -}}"
        + "{%- endif -%}{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )


@dataclass(frozen=True)
class ChatML:
    """Base of the formats: everything about the frame; a format adds calls.

    Invariant, exact on text, for a dialogue *p a₁ f₁ a₂ f₂ … aₙ* (prompt, assistant messages,
    what follows them)::

        render(p, tools, generation_prompt=True)
          + render_message(a₁) + "<|im_end|>" + render_following(f₁)
          + …
          + render_message(aₙ) + "<|im_end|>" + "\\n"
        == render([*p, a₁, *f₁, …, aₙ], tools)

    The model writes ``<|im_end|>`` but not the newline after it: the newline begins
    ``render_following``, and a rollout that ends with an assistant message lacks it.
    """

    name: ClassVar[str]
    instructions: ClassVar[str]
    """Closes the tool documents and tells how to write a call."""
    control_tokens: ClassVar[tuple[str, ...]]
    call_start: ClassVar[str]
    call_end: ClassVar[str]
    chat_template: ClassVar[str]
    end_of_message: ClassVar[str] = END
    grammar: ClassVar[TagGrammar]

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        """The text of one message's calls."""
        raise NotImplementedError

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        raise NotImplementedError

    def parser(self) -> StreamParser:
        """A parser for one message that arrives in chunks."""
        return StreamParser(self.parse, self.call_end[-1])

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        generation_prompt: bool = False,
    ) -> str:
        """The whole dialogue as text; a default system text is used when it has none."""
        system = DEFAULT_SYSTEM
        if messages and messages[0].role == "system":
            system = plain_content(messages[0])
            messages = messages[1:]
        if tools:
            system += TOOLS_HEADER + tool_documents(tools) + self.instructions
        text = f"{START}system\n{system}{END}\n" + self._frames(messages)
        return text + GENERATION_PROMPT if generation_prompt else text

    def render_message(self, message: Message) -> str:
        """The assistant message's own text, without the frame and without the stop token."""
        if message.role != "assistant":
            raise DataError(f"render_message takes an assistant message, not a {message.role}'s")
        if not message.tool_calls:
            return message.content
        calls = self.write_calls(message.tool_calls)
        return f"{message.content}\n{calls}" if message.content else calls

    def render_following(self, messages: Sequence[Message]) -> str:
        """From right after an assistant's ``<|im_end|>`` to the next assistant's first token."""
        for message in messages:
            if message.role == "assistant":
                raise DataError("render_following takes tool and user messages, not assistants'")
        return "\n" + self._frames(messages) + GENERATION_PROMPT

    def _frames(self, messages: Sequence[Message]) -> str:
        parts: list[str] = []
        previous: str | None = None
        for message in messages:
            if message.role == "tool":
                # Consecutive results share one user frame, as in Qwen's template.
                if previous == "tool":
                    parts.pop()
                else:
                    parts.append(f"{START}user")
                parts.append(f"\n<tool_response>\n{plain_content(message)}\n</tool_response>")
            elif message.role == "assistant":
                parts.append(GENERATION_PROMPT + self.render_message(message))
            else:
                parts.append(f"{START}{message.role}\n{plain_content(message)}")
            parts.append(f"{END}\n")
            previous = message.role
        return "".join(parts)


def write_arguments(arguments: Mapping[str, Any]) -> str:
    """Arguments as a JSON object."""
    return dumps(dict(arguments))
