"""A tool format read from a chat template, so that any model is trained in its own mark-up.

Input: a tokenizer. Output: :class:`Native`, a ``ToolFormat``. The template is asked to write small
dialogues; what surrounds a message there is the frame, what surrounds a call is the call's
mark-up, and the dialect that reads such calls back is chosen by trying (no table of models).

Dialogues are composed message by message: the template writes the prompt, then each message and
what follows it apart from the others. Thus every dialogue is a prefix of its continuation even
where the template is not prefix-preserving (Qwen3's drops the thinking blocks of earlier turns,
Mistral's moves the tools), and a supervised row has the tokens that sampling would have met.
:func:`toolrl_box.models.checks.examine` says where that differs from the template's own text.

Left out: templates that end calls and texts with different tokens (harmony), and a grammar for
counterfactual decoding except where the calls are Hermes'.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from toolrl_box.dialects import DIALECTS
from toolrl_box.dialects.table import Dialect
from toolrl_box.errors import ConfigError, DataError, ModelError
from toolrl_box.formats import FORMATS, NATIVE, StreamParser
from toolrl_box.native.template import Template
from toolrl_box.probe.markup import TAG
from toolrl_box.types import Grammar, Message, Parsed, ToolCall, ToolSpec

ASKED, NAME, KEY, VALUE, SAID = "Go.", "probe_tool", "probe_key", "probe_value", "Probe said."
USER = Message("user", ASKED)
CALL = Message("assistant", "", (ToolCall(NAME, {KEY: VALUE}),))
TEXT = Message("assistant", SAID)
RESULT = Message("tool", "Probe done.")
TOOL = ToolSpec(
    NAME, {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]}, "A tool."
)
# What a dialect must read back; text before it is the template's choice.
HARD = ToolCall(
    "probe.tool_2", {"list": [1, -2.5, None], "deep": {"q": 'say "hé"\n'}, "yes": True, "no": ""}
)


@dataclass(frozen=True)
class Frame:
    """``end``: the token that ends every message of the assistant; ``closing``: what the template
    writes after it when the dialogue ends there."""

    end: str
    closing: str


@dataclass(frozen=True)
class Native:
    """The model's own format. ``dialect`` reads its calls."""

    template: Template
    frame: Frame
    dialect: Dialect
    call_start: str
    call_end: str
    control_tokens: tuple[str, ...]
    name = NATIVE

    @property
    def end_of_message(self) -> str:
        return self.frame.end

    @property
    def chat_template(self) -> str:
        return str(self.template.tokenizer.chat_template)

    @cached_property
    def thinks(self) -> bool:
        """Whether the model writes a thinking block at the head of each message."""
        return bool(self._before_text)

    @property
    def grammar(self) -> Grammar:
        """Raises ConfigError where there is none."""
        if self.dialect.name not in FORMATS or self.thinks:
            why = "with thinking blocks" if self.thinks else f"in dialect '{self.dialect.name}'"
            raise ConfigError(
                f"there is no grammar of calls {why}: leave the counterfactual decoding out"
            )
        return FORMATS[self.dialect.name].grammar

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        generation_prompt: bool = False,
    ) -> str:
        """The prompt as the template writes it, then message by message. Raises DataError for a
        dialogue that begins with an assistant, or that the template refuses."""
        first = next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))
        if first == len(messages):
            return self.template(messages, tools, generation_prompt=generation_prompt)
        if first == 0:
            raise DataError("a dialogue cannot begin with an assistant message")
        parts = [self.template(messages[:first], tools, generation_prompt=True)]
        place = first
        while place < len(messages):
            parts += [self.render_message(messages[place]), self.frame.end]
            begin = place = place + 1
            while place < len(messages) and messages[place].role != "assistant":
                place += 1
            last = place == len(messages)
            if last and begin == place and not generation_prompt:
                parts.append(self.frame.closing)
            else:
                following = messages[begin:place]
                parts.append(self._following(following, not last or generation_prompt))
        return "".join(parts)

    def render_message(self, message: Message) -> str:
        """The assistant message's own text, without frame and end token."""
        if message.role != "assistant":
            raise DataError(f"render_message takes an assistant message, not a {message.role}'s")
        prompt = self.template([USER], generation_prompt=True)
        whole = self.template([USER, message])
        ending = self.frame.end + self.frame.closing
        if not (whole.startswith(prompt) and whole.endswith(ending)):
            raise DataError(
                "the chat template does not write this message between its generation prompt and "
                f"{self.frame.end}: {message.content[:60]!r}"
            )
        return whole[len(prompt) : len(whole) - len(ending)]

    def render_following(self, messages: Sequence[Message]) -> str:
        """From right after an assistant's end token to the next assistant's first token."""
        if any(message.role == "assistant" for message in messages):
            raise DataError("render_following takes tool and user messages, not assistants'")
        return self._following(messages, generation_prompt=True)

    def _following(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        # Results follow a call and everything else a text, which some templates insist on.
        answered = bool(messages) and messages[0].role == "tool"
        before, mark = (CALL, VALUE) if answered else (TEXT, SAID)
        text = self.template([USER, before, *messages], generation_prompt=generation_prompt)
        end = text.find(self.frame.end, text.find(mark))
        return text[end + len(self.frame.end) :]

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        return self.dialect.parse(text)

    def parser(self) -> StreamParser:
        return StreamParser(self.parse, self.call_end[-1])

    @cached_property
    def _before_text(self) -> str:
        text = self.render_message(TEXT)
        return text[: text.find(SAID)].strip()


def read_format(tokenizer: PreTrainedTokenizerBase, thinking: bool | None = None) -> Native:
    """Raises ModelError for a template that is not made for tool use, that ends messages with
    anything but one token, or whose calls no dialect reads; ConfigError for ``thinking`` where the
    template knows no such switch."""
    template = Template(tokenizer, thinking)
    if thinking is not None and not has_thinking_switch(tokenizer):
        raise ConfigError(
            f"model.thinking = {thinking}: the chat template has no switch for thinking; leave it "
            "out"
        )
    frame = _read_frame(template)
    try:
        call, said = (_between(template, frame, message) for message in (CALL, TEXT))
    except DataError as error:
        raise ModelError(f"the chat template is not made for tool use: {error}") from error
    if NAME not in call or VALUE not in call:
        raise ModelError(
            "the chat template leaves out tool calls, so it is not made for tool use: choose one "
            f"of the formats {', '.join(FORMATS)}, and a warm-up that teaches it"
        )
    if NAME not in template([USER], [TOOL]):
        raise ModelError("the chat template leaves out the tools: the model could not know them")
    # What stands before a text message too, such as an empty thinking block, is no part of a call.
    head = call[: call.find(NAME)].removeprefix(said[: said.find(SAID)]).lstrip()
    leading, trailing = TAG.match(head), re.search(f"(?:{TAG.pattern})$", call.rstrip())
    opening = leading[0] if leading else head
    closing = trailing[0] if trailing else call.rstrip()[-1]
    dialect = _dialect(template, frame, call)
    control = _control(tokenizer, template, dialect, (opening, closing, frame.end))
    return Native(template, frame, dialect, opening, closing, control)


def has_thinking_switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template heeds ``enable_thinking``."""
    on, off = (
        Template(tokenizer, thinking)([USER], generation_prompt=True) for thinking in (True, False)
    )
    return on != off


def _read_frame(template: Template) -> Frame:
    """The end token, from a text message, and whether calls have the same."""
    tokenizer = template.tokenizer
    text = template([USER, TEXT])
    tail = text[text.find(SAID) + len(SAID) :]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = tokenizer.encode(tail, add_special_tokens=False)
    end = _piece(tokenizer, ids[0]) if ids and ids[0] in special else ""
    if SAID not in text or not end or not tail.startswith(end):
        raise ModelError(
            f"the chat template writes {tail[:40]!r} after an assistant's message; native training "
            "needs one special token that ends it"
        )
    return Frame(end, tail[len(end) :])


def _between(template: Template, frame: Frame, message: Message) -> str:
    prompt, whole = template([USER], generation_prompt=True), template([USER, message])
    ending = frame.end + frame.closing
    if not whole.startswith(prompt):
        raise ModelError(
            "the chat template does not begin an assistant's message with the generation prompt "
            f"{prompt[-40:]!r}"
        )
    if not whole.endswith(ending):
        raise ModelError(
            f"the chat template ends a call with {whole[-20:]!r} and a text with {ending!r}; "
            "native training needs one end token for both"
        )
    return whole[len(prompt) : len(whole) - len(ending)]


def _dialect(template: Template, frame: Frame, call: str) -> Dialect:
    """The first dialect that reads calls as this template writes them."""
    hard = _between(template, frame, Message("assistant", "", (HARD,)))
    for dialect in DIALECTS.values():
        read = [dialect.parse(text) for text in (call, hard)]
        if [p.calls for p in read] == [CALL.tool_calls, (HARD,)] and not any(
            p.errors for p in read
        ):
            return dialect
    raise ModelError(
        f"the chat template writes calls like {call[:80]!r}, which no dialect reads back; known "
        f"are: {', '.join(DIALECTS)}"
    )


def _control(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    dialect: Dialect,
    first: tuple[str, ...],
) -> tuple[str, ...]:
    """The call's tags and the end token, then the frame's tags and what else the dialect has that
    is one token here; for a call that opens without a tag, the first token of its opening too."""
    opening = tokenizer.encode(first[0], add_special_tokens=False)
    text = template([USER, CALL, RESULT], generation_prompt=True)
    text += template([USER, TEXT])
    frame = TAG.findall(text[text.find(ASKED) :])
    known = [p for p in dialect.control_tokens if p in tokenizer.get_vocab()]
    pieces = [_piece(tokenizer, opening[0]), *first, *frame, *known]
    return tuple(dict.fromkeys(pieces))


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
