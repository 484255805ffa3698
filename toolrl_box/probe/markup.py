"""How a tokenizer's chat template writes tool calls, read from the template itself.

Input: a tokenizer. Output: :class:`Markup`: what a call begins and ends with, which tokens end a
message, and the control tokens to follow. A small dialogue with a call is rendered, and what
surrounds the call is the mark-up: ``<tool_call>`` … ``</tool_call>`` (Hermes, Qwen, functions in
XML), ``[TOOL_CALLS]`` … ``]`` (Mistral), ``[`` … ``]`` (lists of Python calls), ``{`` … ``}``
(Llama), or whatever else begins with a tag. No table of models is kept: there is always one more.

Left out: templates that are chosen by name (``chat_template`` as a dict): transformers takes the
one for tools.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolrl_box.errors import DataError, ModelError
from toolrl_box.probe.bank import control_ids
from toolrl_box.probe.render import Rendered, render, tokenise

TAG = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]")
BRACKETS = ("[", "{")
FRAGMENT = re.compile(r"<[^<>\s]{1,40}=")  # <function=
ASKED, NAME, KEY, VALUE, SAID = "Go.", "probe_tool", "probe_key", "probe_value", "Probe said."
NAMED = "the probe dialogue"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": NAME,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {KEY: {"type": "string", "description": "A key."}},
                "required": [KEY],
            },
        },
    }
]
CALL = {
    "id": "probe0001",  # Mistral's templates want nine letters and digits
    "type": "function",
    "function": {"name": NAME, "arguments": {KEY: VALUE}},
}
DIALOGUE: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": NAME, "tool_call_id": "probe0001", "content": "Done."},
    {"role": "assistant", "content": SAID},
)


@dataclass(frozen=True, slots=True)
class Markup:
    """``opening`` and ``closing``: what a call begins and ends with; ``tagged``: whether these are
    tags, which stand in no ordinary text, rather than bare brackets. ``ends``: ids of the tokens
    that end a message. ``control``: the control tokens to follow, piece -> id."""

    opening: str
    closing: str
    tagged: bool
    ends: frozenset[int]
    control: dict[str, int]


def read_markup(tokenizer: PreTrainedTokenizerBase) -> Markup:
    """Raises ModelError when the template writes no tools or calls, is not prefix-preserving, ends
    a message with anything but one token, begins a call with neither tag nor bracket, or uses tags
    that are not one token each."""
    try:
        seen = render(NAMED, (DIALOGUE, TOOLS), tokenizer)
    except DataError as error:
        raise ModelError(f"the chat template is not made for tool use: {error}") from error
    call, said = map(seen.of, seen.written)
    start = seen.written[0].start
    if NAME not in seen.text[:start] or NAME not in call or VALUE not in call:
        raise ModelError(
            "the chat template leaves out tools or tool calls, so it is not made for tool use; if "
            "your messages hold calls as text, say how they begin and end: tags=('<…>', '</…>')"
        )
    ends = _ends(tokenizer, seen)
    body = seen.text[start : seen.offsets[seen.written[0].tokens[-1]][0]].rstrip()
    # What stands before a text message too, such as an empty thinking block, is no part of a call.
    head = body[: call.find(NAME)].removeprefix(said[: said.find(SAID)]).lstrip()
    leading, trailing = TAG.match(head), re.search(f"(?:{TAG.pattern})$", body)
    opening = leading[0] if leading else head[:1]
    if not leading and opening not in BRACKETS:
        raise ModelError(
            f"the chat template begins a call with {head!r}, which is no tag and no bracket: say "
            "what its calls begin and end with: tags=('…', '…')"
        )
    closing = trailing[0] if trailing else body[-1:]
    followed = []
    for tag, at in ((opening, body.find(NAME) - len(head)), (closing, len(body) - len(closing))):
        parts = seen.tokens(start + at, start + at + len(tag))
        if TAG.fullmatch(tag) and len(parts) != 1:
            raise ModelError(
                f"the tokenizer has no token '{tag}', it writes {len(parts)} pieces: add it with "
                "tokenizer.add_tokens and resize the embeddings, or accept the pieces with "
                f"tags=({opening!r}, {closing!r})"
            )
        followed.append(seen.ids[parts[0]])
    control = _pieces(tokenizer, [*followed, *ends]) | _frame(tokenizer, seen)
    return Markup(opening, closing, leading is not None, frozenset(ends), control)


def given_markup(tokenizer: PreTrainedTokenizerBase, tags: tuple[str, str]) -> Markup:
    """The same when the user says what a call begins and ends with; the tags may be several tokens
    each, and calls may stand in the messages' content as text. Raises ModelError when the template
    is not prefix-preserving or ends a message with anything but one token."""
    seen = render(NAMED, ((DIALOGUE[0], DIALOGUE[-1]), None), tokenizer)
    ends = _ends(tokenizer, seen)
    control = control_ids(tags, lambda tag: tokenise(tokenizer, tag)[0])
    control |= _pieces(tokenizer, ends) | _frame(tokenizer, seen)
    return Markup(*tags, True, frozenset(ends), control)


def _ends(tokenizer: PreTrainedTokenizerBase, seen: Rendered) -> list[int]:
    """The token that ends each message."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    for w in seen.written:
        if seen.end_of(w) not in special:
            raise ModelError(
                f"the chat template ends a message with {seen.of(w)[-20:]!r}: it must end with one "
                "special token"
            )
    return [seen.end_of(w) for w in seen.written]


def _frame(tokenizer: PreTrainedTokenizerBase, seen: Rendered) -> dict[str, int]:
    """Tokens that are tags, from the end of the first user message on."""
    asked = seen.text.rfind(ASKED, 0, seen.written[0].start)
    pieces = _pieces(tokenizer, seen.ids[seen.tokens(asked, asked + len(ASKED)).stop :])
    return {p: i for p, i in pieces.items() if TAG.fullmatch(p) or FRAGMENT.fullmatch(p)}


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> dict[str, int]:
    return {str(tokenizer.decode([token])): token for token in ids}
