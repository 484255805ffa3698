"""The probe's bank: successful gold episodes, cut into positions with a name.

Input: held-out tasks and a tool format, or token sequences with the spans of their assistant
messages (see :mod:`toolrl_box.probe.chat`). Output: a :class:`Bank` of token sequences and, for
every token that an assistant wrote, the *slot* it stands in. Slots separate the places at which
control tokens belong from those at which they do not (arXiv 2606.26027 §diagnosis):

    start_call_due   first token of a message that must be a call (the opening tag)
    start_text_due   first token of a message that must be text
    after_open       first token after the opening tag
    inside_call      the rest of the call
    closing_call     the closing tag
    after_call       what follows it: the end of the message
    inside_text      text after its first token
    end_text         the end of a text message

Every assistant position is scored, because no slot alone detects a collapse (lab.md).

Left out: sampled dialogues; the contexts stay fixed so that steps can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from toolrl_box.errors import DataError
from toolrl_box.samples import Encode, dialogue_to_sample, end_of_message_id
from toolrl_box.types import Message, Sample, Task, ToolFormat

SLOTS = (
    "start_call_due",
    "start_text_due",
    "after_open",
    "inside_call",
    "closing_call",
    "after_call",
    "inside_text",
    "end_text",
)


@dataclass(frozen=True, slots=True)
class Bank:
    """``sequences``: gold dialogues as token ids. Position ``n`` of the bank is the token
    ``sequences[rows_N[n]][columns_N[n]]`` in slot ``slots_N[n]`` (an index into SLOTS).
    ``first_calls``: where in the bank each dialogue's first message stands, up to the end of its
    call, if it is one. ``control``: the control tokens that are followed, piece -> token id."""

    sequences: tuple[tuple[int, ...], ...]
    rows_N: tuple[int, ...]
    columns_N: tuple[int, ...]
    slots_N: tuple[int, ...]
    first_calls: tuple[slice, ...]
    control: dict[str, int]

    def digest(self) -> str:
        """sha256 of what is scored; equal for equal banks."""
        parts = (self.sequences, self.rows_N, self.columns_N, self.slots_N, self.control)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Span:
    """An assistant message in a token sequence: where it begins, and the slot of each token."""

    start: int
    slots: tuple[str, ...]


def build_bank(tasks: Sequence[Task], fmt: ToolFormat, encode: Encode) -> Bank:
    """The bank of these tasks' gold dialogues. Raises DataError when none of them calls a tool."""
    end_id = end_of_message_id(fmt, encode)
    samples = [dialogue_to_sample(task, fmt, encode) for task in tasks]
    spans = []
    for task, sample in zip(tasks, samples, strict=True):
        gold = [message for message in task.gold if message.role == "assistant"]
        places = _messages(sample, end_id)
        if len(places) != len(gold):
            raise DataError(f"task '{task.id}' has {fmt.end_of_message} inside a gold message")
        spans.append(
            [
                Span(start, tuple(_slots(message, sample.token_ids[start:stop], fmt, encode)))
                for message, (start, stop) in zip(gold, places, strict=True)
            ]
        )
    sequences = [sample.token_ids for sample in samples]
    return bank_of_spans(sequences, spans, control_ids(fmt.control_tokens, encode))


def bank_of_spans(
    sequences: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Span]],
    control: dict[str, int],
) -> Bank:
    """The bank of these token sequences; ``spans[i]``: the assistant messages of sequence ``i``.

    Raises DataError when no message is a call.
    """
    rows: list[int] = []
    columns: list[int] = []
    slots: list[int] = []
    first_calls: list[slice] = []
    for row, messages in enumerate(spans):
        for place, span in enumerate(messages):
            size = len(span.slots)
            if place == 0 and "start_call_due" in span.slots:
                first_calls.append(slice(len(rows), len(rows) + size - 1))
            rows += [row] * size
            columns += range(span.start, span.start + size)
            slots += map(SLOTS.index, span.slots)
    if SLOTS.index("start_call_due") not in slots:
        raise DataError("the probe's bank holds no tool call; it needs gold dialogues with calls")
    return Bank(
        sequences=tuple(map(tuple, sequences)),
        rows_N=tuple(rows),
        columns_N=tuple(columns),
        slots_N=tuple(slots),
        first_calls=tuple(first_calls),
        control=control,
    )


def control_ids(pieces: Sequence[str], encode: Encode) -> dict[str, int]:
    """Control pieces that are one token here, with their ids.

    A piece that a tokenizer splits has no probability of its own and is left out; its first part
    is an ordinary token.
    """
    encoded = {piece: encode(piece) for piece in pieces}
    return {piece: ids[0] for piece, ids in encoded.items() if len(ids) == 1}


def _slots(message: Message, ids: Sequence[int], fmt: ToolFormat, encode: Encode) -> list[str]:
    """The slot of each token of this gold message."""
    opening, closing = encode(fmt.call_start), encode(fmt.call_end)
    if message.tool_calls and _find(ids, opening) is None:
        # The tokenizer fuses the tag with what follows it: where it begins and ends in the text.
        text = fmt.render_message(message)
        begin = text.find(fmt.call_start)
        first, last = (
            _shared(ids, encode(text[:stop])) for stop in (begin, begin + len(fmt.call_start))
        )
        opening = list(ids[first : max(first + 1, last)])
    return name_slots(ids, opening, closing)


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(others)))


def name_slots(ids: Sequence[int], opening: Sequence[int], closing: Sequence[int]) -> list[str]:
    """The slot of each token of one gold message (its end token included)."""
    start = _find(ids, opening)
    if start is None:
        return text_slots(len(ids))
    # A tokenizer may fuse the closing tag with what precedes it: then its last token stands for it.
    fits = tuple(ids[-1 - len(closing) : -1]) == tuple(closing)
    close = len(ids) - 1 - (len(closing) if fits else 1)
    return call_slots(len(ids), range(start, start + len(opening)), range(close, len(ids) - 1))


def text_slots(size: int) -> list[str]:
    """The slots of a text message of ``size`` tokens, its end token included."""
    return ["start_text_due", *["inside_text"] * (size - 2), "end_text"][-size:]


def call_slots(size: int, opening: range, closing: range) -> list[str]:
    """The slots of a call message of ``size`` tokens, its end token included: ``opening`` and
    ``closing`` are where the tokens of the tags stand."""
    inside = closing.start - opening.stop
    return [
        *["start_text_due", *["inside_text"] * (opening.start - 1)][: opening.start],
        *["start_call_due"] * len(opening),
        *["after_open", *["inside_call"] * (inside - 1)][:inside],
        *["closing_call"] * len(closing),
        *["after_call"] * (size - closing.stop),
    ]


def _messages(sample: Sample, end_id: int) -> list[tuple[int, int]]:
    """Spans [start, stop) of the assistant messages of a sample."""
    spans = []
    for learned, group in groupby(range(len(sample.loss_mask)), key=sample.loss_mask.__getitem__):
        if not learned:
            continue
        start = None
        for i in group:
            start = i if start is None else start
            if sample.token_ids[i] == end_id:
                spans.append((start, i + 1))
                start = None
    return spans


def _find(ids: Sequence[int], part: Sequence[int]) -> int | None:
    size = len(part)
    return next((i for i in range(len(ids) - size + 1) if list(ids[i : i + size]) == part), None)
