"""A dialogue as a chat template writes it, with its tokens and its assistant messages.

Input: a tokenizer, messages and tools. Output: :class:`Rendered`. The dialogue is rendered and
tokenised once, as a whole; an assistant's message is what its rendering adds to the rendering of
everything before it. Both are checked: that each rendering begins with the one before (the
template is *prefix-preserving*), and that the tokens do too.

Left out: images, and reasoning that a template drops from earlier turns (such a template is not
prefix-preserving and is refused).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from toolrl_box.errors import DataError, ModelError

Chat = tuple[Sequence[Mapping[str, Any]], list[Any] | None]
"""Messages and tools."""


@dataclass(frozen=True, slots=True)
class Written:
    """An assistant's message in the rendered dialogue: ``text[start:stop]``, and ``tokens`` that
    are the ones the model writes, up to the one that ends the message."""

    message: Mapping[str, Any]
    start: int
    stop: int
    tokens: range


@dataclass(frozen=True, slots=True)
class Rendered:
    """``text`` up to the end of the last assistant message; token ``i`` is
    ``text[offsets[i][0]:offsets[i][1]]``."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    written: tuple[Written, ...]

    def of(self, w: Written) -> str:
        return self.text[w.start : w.stop]

    def end_of(self, w: Written) -> int:
        """The id of the token that ends a message."""
        return self.ids[w.tokens[-1]]

    def tokens(self, start: int, stop: int) -> range:
        """Those that hold any of ``text[start:stop]``."""
        here = [i for i, (a, b) in enumerate(self.offsets) if a < stop and b > start]
        return range(here[0], here[-1] + 1)


def render(name: str, chat: Chat, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Raises ModelError when template or tokenizer cannot serve, DataError naming the dialogue
    when the template refuses it."""
    messages, tools = chat
    text, spans = "", []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = (
            apply_template(name, tokenizer, messages[:stop], tools, generation_prompt=prompts)
            for stop, prompts in ((number, True), (number + 1, False))
        )
        if not (prompt.startswith(text) and whole.startswith(prompt)):
            raise ModelError(
                f"{name}: the chat template is not prefix-preserving: with message {number + 1} it "
                "writes what stands before it otherwise; set tokenizer.chat_template to one that "
                "is (trl.chat_template_utils.get_training_chat_template has some)"
            )
        text = whole
        # The model writes the end token but not the white space that a template puts after it.
        spans.append((message, len(prompt), len(whole.rstrip())))
    text = text.rstrip()
    ids, offsets = tokenise(tokenizer, text)
    written = []
    for message, start, stop in spans:
        tokens = range(_before(offsets, start), _before(offsets, stop))
        if tokenise(tokenizer, text[:start])[0] != ids[: tokens.start]:
            raise ModelError(
                f"{name}: the tokenizer joins the beginning of an assistant message with what "
                "stands before it, so the message has no first token"
            )
        written.append(Written(message, start, stop, tokens))
    return Rendered(text, ids, offsets, tuple(written))


def tokenise(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and where in the text each token stands."""
    if not tokenizer.is_fast:
        raise ModelError("the tokenizer is a slow one, which does not tell where its tokens stand")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def apply_template(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None,
    *,
    generation_prompt: bool,
    **switches: Any,
) -> str:
    """What the tokenizer's template writes; ``switches`` are the template's own variables. Raises
    ModelError without a template, DataError naming the dialogue when it is refused."""
    if tokenizer.chat_template is None:
        raise ModelError("the tokenizer has no chat template: set tokenizer.chat_template")
    try:
        # The stubs know only one of the types that this returns.
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=tools,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **switches,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(f"{name}: the chat template refuses it: {error}") from error
    return str(text)


def _before(offsets: Sequence[tuple[int, int]], position: int) -> int:
    """How many tokens end at or before ``position`` in the text."""
    return sum(stop <= position for _, stop in offsets)
