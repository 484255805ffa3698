"""The pocket model's tokenizer: one token per word or JSON chunk, and bytes for anything else.

Job: build a fast ``tokenizers`` file. Input: nothing but the world's words and the formats'
fixed texts. Output: an ordinary Qwen2 tokenizer, byte-level BPE without any merges, to which the
words and chunks are *added* tokens: at every place the longest one wins. Text that none of them
covers is spelled in bytes, so any text goes in and comes out unchanged (up to Unicode NFC, which
is Qwen2's). Control tokens stand alone, never fused with a quote or a newline, because the probe
follows their probability.

Why not a unigram model, which would be the obvious choice: ``AutoTokenizer`` and vLLM load *any*
tokenizer beside a Qwen2 model as ``Qwen2Tokenizer``, silently with another segmentation
(docs/decisions.md, 2026-11-23).

Left out: training on text; the world is closed, its words are known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Tokenizer

from toolrl_box.envs import pocket, pocket_words, search_words
from toolrl_box.formats import FORMATS, INSTRUCTIONS, TOOLS_HEADER

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>",
    "<function=", "</function>", "<parameter=", "</parameter>",
)  # fmt: skip
CHUNKS = (
    # tool documents
    '{"type": "function", "function": {"name": "',
    '", "parameters": {"type": "object", "properties": {"',
    '": {"type": "string"}, "',
    '": {"type": "integer"}, "',
    '": {"type": "string"}}, "required": ["',
    '": {"type": "integer"}}, "required": ["',
    '"]}}}',
    # calls in the three syntaxes
    '{"name": "', '", "arguments": {"', '": "', '": ', '", "', "}}",
    "[", "(", '="', "=", ", ", ")]", ">\n",
    # results and frame
    '{"ok": true}', '{"', '", "log": ["', '"]}', '{"code": "', '{"error": "no such ',
    '{"error": "bad arguments"}', '{"error": "bad call"}', '{"error": "unknown tool"}',
    "system\n", "user\n", "assistant\n",
)  # fmt: skip


def _boilerplate() -> Iterator[str]:
    """The formats' instructions, cut at the tags (those are tokens of their own)."""
    tags = "|".join(re.escape(tag) for tag in TAGS)
    for text in (TOOLS_HEADER, *INSTRUCTIONS.values()):
        yield from (part for part in re.split(tags, text) if len(part) > 1)


def _texts() -> Iterator[str]:
    """Every fixed stretch of words that the world and its prompts can utter."""
    for intents in pocket_words.INTENTS.values():
        for intent in intents:
            shortened = intent.partial[1:] if intent.partial else ()
            for says in (*intent.says, *shortened):
                # A plugin template becomes a sentence about its slots' names.
                says = re.sub(r"TOOL|\b[AB]\b", "{x}", says)
                yield from re.split(r"\{.*?\}", says)
    for replies in pocket_words.REPLIES.values():
        for reply in replies:
            yield from re.split(r"\{.*?\}", reply)
    yield from ("Which ", "?", "here is another tool.", pocket.SYSTEM, "\nHint:\n", "reply ")
    for text in search_words.TEXTS:
        yield from re.split(r"\{.*?\}", text)


def _words(text: str) -> Iterator[str]:
    """Words with the space before them, and without; the last one with the space after it, too,
    so that the value that follows is the same token as in a JSON string (copying needs that)."""
    pieces = re.findall(r" ?\w+|[^\w\s]|\n", text)
    if text.endswith(" ") and pieces:
        pieces[-1] += " "
    for piece in pieces:
        yield from (piece, piece.strip())
    if text == " ":
        yield text


def pieces() -> list[str]:
    """The words and chunks, in a fixed order, each once; single characters are bytes already."""
    values = [word for kind in pocket_words.KINDS.values() for word in kind]
    tools = [row.name for row in pocket_words.TOOLS]
    found: Iterable[str] = [
        *CHUNKS,
        *_boilerplate(),
        pocket.SYSTEM,
        *tools,
        *values,
        *pocket_words.KINDS,
        "count",
        "code",
        "_tool",
        *pocket_words.SYLLABLES,
        *search_words.RELATIONS,
        *(name for names in search_words.TAG_NAMES.values() for name in names),
        *(piece for brackets in search_words.BRACKETS for piece in brackets),
        *(word for text in _texts() for word in _words(text)),
    ]
    # " of" would tear " office": no word with its space may begin a value with its space.
    spaced = [f" {word}" for word in (*values, *tools)]
    torn = {text[:end] for text in spaced for end in range(2, len(text))}
    return [piece for piece in dict.fromkeys(found) if len(piece) > 1 and piece not in torn]


def build_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer; the same on every call. Chat template: Hermes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        eos_token="<|im_end|>",  # noqa: S106 - no password
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (*TAGS, *pieces())])
    tokenizer.chat_template = FORMATS["hermes"].chat_template
    return tokenizer
