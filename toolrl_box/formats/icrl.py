"""The mark-up of ICRL and Search-R1 (arXiv 2603.08068): a thought, then a search or an answer.

    <think>I need the capital of kalo.</think>
    <search>capital of kalo</search>

The environment's results stand in ``<information>`` tags; ``<answer>kalo</answer>`` ends the
episode. Roles have ChatML frames as in every format, so ``<|im_end|>`` ends each message and what
the environment says is an observation, which no loss ever sees.

Input and output: see ``ToolFormat``. A message's content is its thought when it holds a call and
plain text otherwise. A search is a call of ``search(query)``, an answer one of
``answer(answer)``: a world sees calls whatever the format. An empty answer is an answer, an empty
search is a defect. ``Parsed.tags`` holds every tag, which the format reward counts, and
``Parsed.text`` only what stands outside all tags; thoughts are not kept.

Left out: other tools (DataError), tool documents (the tags are all a model gets to know), and
escaping: a value that holds a tag cannot be written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from re import Match, Pattern
from typing import ClassVar

from toolrl_box.errors import DataError
from toolrl_box.formats._chatml import (
    DEFAULT_SYSTEM,
    END,
    GENERATION_PROMPT,
    START,
    plain_content,
)
from toolrl_box.formats._grammar import Mode, TagGrammar
from toolrl_box.formats._json import dumps
from toolrl_box.formats._literal import JSON
from toolrl_box.formats._scan import CLOSE, OPEN, StreamParser
from toolrl_box.markup import Markup, Tag
from toolrl_box.types import Message, Parsed, ParseError, ToolCall, ToolSpec

ARGUMENT: Mapping[str, str] = {"search": "query", "answer": "answer"}
"""The tools that this format can call, and the one argument of each."""

DEBRIS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", OPEN, CLOSE)


@dataclass(frozen=True)
class Icrl:
    """The format under one drawing of tags; the default is the paper's."""

    name: ClassVar[str] = "icrl"
    markup: Markup = field(default_factory=Markup)

    @property
    def instructions(self) -> str:
        """Goes on after the system text when there are tools."""
        think, search, answer = (self.markup.open(t) for t in ("think", "search", "answer"))
        return f" Use {think}, {search} and {answer}."

    @property
    def call_start(self) -> str:
        return self.markup.open("search")

    @property
    def end_of_message(self) -> str:
        return END

    @property
    def call_end(self) -> str:
        return self.markup.close("search")

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        others: tuple[Tag, ...] = ("answer", "think", "information")
        rest = [tag for name in others for tag in (self.markup.open(name), self.markup.close(name))]
        return (self.call_start, self.call_end, END, START, *rest)

    @cached_property
    def grammar(self) -> TagGrammar:
        mark = self.markup
        acts = {mark.open("search"): "search", mark.open("answer"): "answer"}
        return TagGrammar(
            {
                "text": Mode("text", {mark.open("think"): "think", **acts}, ends=True),
                "think": Mode("free", {mark.close("think"): "thought"}),
                "thought": Mode("blank", acts),
                "search": Mode("free", {mark.close("search"): "closed"}),
                "answer": Mode("free", {mark.close("answer"): "closed"}),
                "closed": Mode("blank", acts, ends=True),
            },
            JSON,
            (*DEBRIS, mark.open("information"), mark.close("information")),
        )

    @cached_property
    def chat_template(self) -> str:
        mark = self.markup
        calls = "".join(
            f"{{%- {'if' if name == 'search' else 'elif'} call.function.name == {dumps(name)} -%}}"
            f"{{{{- {dumps(mark.open(name))} + call.function.arguments[{dumps(ARGUMENT[name])}]"
            f" + {dumps(mark.close(name))} -}}}}"
            for name in _CALLABLE
        )
        return (
            "{%- if messages and messages[0].role == 'system' -%}"
            "{%- set system = messages[0].content -%}{%- set dialogue = messages[1:] -%}"
            "{%- else -%}"
            f"{{%- set system = {dumps(DEFAULT_SYSTEM)} -%}}{{%- set dialogue = messages -%}}"
            "{%- endif -%}"
            "{{- '<|im_start|>system\\n' + system -}}"
            f"{{%- if tools -%}}{{{{- {dumps(self.instructions)} -}}}}{{%- endif -%}}"
            "{{- '<|im_end|>\\n' -}}"
            "{%- for message in dialogue -%}"
            "{%- if message.role == 'tool' -%}"
            "{%- if loop.first or loop.previtem.role != 'tool' -%}"
            "{{- '<|im_start|>user' -}}{%- endif -%}"
            f"{{{{- {dumps(chr(10) + mark.open('information') + chr(10))} + message.content"
            f" + {dumps(chr(10) + mark.close('information'))} -}}}}"
            "{%- if loop.last or loop.nextitem.role != 'tool' -%}"
            "{{- '<|im_end|>\\n' -}}{%- endif -%}"
            "{%- else -%}"
            "{{- '<|im_start|>' + message.role + '\\n' -}}"
            "{%- if message.tool_calls -%}"
            "{%- if message.content -%}"
            f"{{{{- {dumps(mark.open('think'))} + message.content"
            f" + {dumps(mark.close('think') + chr(10))} -}}}}"
            "{%- endif -%}"
            "{%- for call in message.tool_calls -%}" + calls + "{%- endif -%}"
            "{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}{%- endfor -%}"
            "{%- elif message.content -%}{{- message.content -}}{%- endif -%}"
            "{{- '<|im_end|>\\n' -}}"
            "{%- endif -%}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
        )

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
            system += self.instructions
        text = f"{START}system\n{system}{END}\n" + self._frames(messages)
        return text + GENERATION_PROMPT if generation_prompt else text

    def render_message(self, message: Message) -> str:
        """The assistant message's own text; DataError for a call that has no tag."""
        if message.role != "assistant":
            raise DataError(f"render_message takes an assistant message, not a {message.role}'s")
        if not message.tool_calls:
            return message.content
        blocks = [self._write(call) for call in message.tool_calls]
        if message.content:
            blocks = [self.markup.wrap("think", message.content), *blocks]
        return "\n".join(blocks)

    def render_following(self, messages: Sequence[Message]) -> str:
        """From right after an assistant's ``<|im_end|>`` to the next assistant's first token."""
        for message in messages:
            if message.role == "assistant":
                raise DataError("render_following takes tool and user messages, not assistants'")
        return "\n" + self._frames(messages) + GENERATION_PROMPT

    def parser(self) -> StreamParser:
        """A parser for one message that arrives in chunks."""
        return StreamParser(self.parse, self.markup.brackets[2][-1])

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        draft = _Draft(text)
        for match in self._pattern.finditer(text):
            draft.take(match, self._known.get(match.group()))
        return draft.finish()

    @cached_property
    def _known(self) -> dict[str, str]:
        return dict(self.markup.marks())

    @cached_property
    def _pattern(self) -> Pattern[str]:
        # The longest first: with brackets like "|", one tag may begin another.
        tags = sorted({*self._known, *DEBRIS}, key=len, reverse=True)
        return re.compile("|".join(re.escape(tag) for tag in tags))

    def _write(self, call: ToolCall) -> str:
        if call.name not in ARGUMENT:
            raise DataError(
                f"format 'icrl' has no tag for a call of '{call.name}'; it writes calls of: "
                + ", ".join(ARGUMENT)
            )
        argument = ARGUMENT[call.name]
        value = call.arguments.get(argument)
        if set(call.arguments) != {argument} or not isinstance(value, str):
            raise DataError(
                f"a call of '{call.name}' must have one text argument '{argument}' to be written "
                f"in format 'icrl', not {dict(call.arguments)}"
            )
        if self._pattern.search(value) is not None:
            raise DataError(f"format 'icrl' cannot write {value!r}: it holds a tag")
        return self.markup.wrap("search" if call.name == "search" else "answer", value)

    def _frames(self, messages: Sequence[Message]) -> str:
        parts: list[str] = []
        previous: str | None = None
        for message in messages:
            if message.role == "tool":
                # Consecutive results share one user frame, as in the other formats.
                if previous == "tool":
                    parts.pop()
                else:
                    parts.append(f"{START}user")
                content = f"\n{plain_content(message)}\n"
                parts.append("\n" + self.markup.wrap("information", content))
            elif message.role == "assistant":
                parts.append(GENERATION_PROMPT + self.render_message(message))
            else:
                parts.append(f"{START}{message.role}\n{plain_content(message)}")
            parts.append(f"{END}\n")
            previous = message.role
        return "".join(parts)


_CALLABLE: tuple[Tag, ...] = ("search", "answer")


@dataclass(slots=True)
class _Draft:
    """A ``Parsed`` under construction: ``inside`` names the open block, ``opened`` is its tag."""

    text: str
    inside: str | None = None
    opened: tuple[int, int] = (0, 0)
    spoiled: bool = False
    position: int = 0
    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    blocks: int = 0
    errors: list[ParseError] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def take(self, match: Match[str], tag: str | None) -> None:
        """The next tag; ``tag`` is its name, None for debris of the frame or other formats."""
        span = match.span()
        if tag is not None:
            self.tags.append(tag)
        if self.inside is None:
            self.pieces.append(self.text[self.position : span[0]])
            self.position = span[1]
        if tag in ("think", "search", "answer"):
            if self.inside is not None:
                self._abandon(span[1])
            self.inside, self.opened, self.spoiled = tag, span, False
            self.position = span[1]
        elif tag is not None and tag == f"/{self.inside}":
            self._close(span)
        else:
            self.spoiled = True
            if tag is None:
                kind = "role_debris" if "|" in match.group() else "stray_tag"
            else:
                kind = "stray_close" if tag in ("/think", "/search", "/answer") else "stray_tag"
            self._error(kind, *span, f"{match.group()} out of place")

    def finish(self) -> Parsed:
        if self.inside is None:
            self.pieces.append(self.text[self.position :])
        elif self.inside == "think":
            self._error("stray_tag", *self.opened, "a thought without closing tag")
        else:
            self._error("unclosed_call", self.opened[0], len(self.text), "no closing tag")
        self.errors.sort(key=lambda error: (error.start, error.end))
        text = "".join(self.pieces).strip()
        calls, errors = tuple(self.calls), tuple(self.errors)
        return Parsed(text, calls, self.blocks, errors, tuple(self.tags), tuple(self.spans))

    def _abandon(self, end: int) -> None:
        """A block that another one opens in."""
        if self.inside == "think":
            self._error("stray_tag", *self.opened, "a thought without closing tag")
        else:
            self._error("nested_open", self.opened[0], end, "opened again before closing")

    def _close(self, span: tuple[int, int]) -> None:
        name, self.inside, start, self.position = self.inside, None, self.position, span[1]
        if name is None:
            return
        if name == "think":
            self.spans.append((self.opened[0], span[1]))
            return
        self.blocks += 1
        value = self.text[start : span[0]].strip()
        if self.spoiled:
            self._error("bad_syntax", start, span[0], "a tag inside")
        elif name == "search" and not value:
            self._error("empty_call", self.opened[0], span[1], "nothing to search for")
        else:
            self.calls.append(ToolCall(name, {ARGUMENT[name]: value}))
            self.spans.append((self.opened[0], span[1]))

    def _error(self, kind: str, start: int, end: int, detail: str) -> None:
        self.errors.append(ParseError(kind, start, end, detail))
