"""The probe's bank: successful gold episodes, cut into positions with a name.

Input: held-out tasks and a tool format. Output: a :class:`Bank` of token sequences and, for every
token that an assistant wrote, the *slot* it stands in. Slots separate the places at which control
tokens belong from those at which they do not (arXiv 2606.26027 §diagnosis):

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

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from toolrl_box.errors import DataError
from toolrl_box.samples import Encode, dialogue_to_sample, end_of_message_id
from toolrl_box.types import Sample, Task, ToolFormat

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


def build_bank(tasks: Sequence[Task], fmt: ToolFormat, encode: Encode) -> Bank:
    """The bank of these tasks' gold dialogues. Raises DataError when none of them calls a tool."""
    end_id = end_of_message_id(encode)
    opening, closing = encode(fmt.call_start), encode(fmt.call_end)
    samples = [dialogue_to_sample(task, fmt, encode) for task in tasks]
    rows: list[int] = []
    columns: list[int] = []
    slots: list[int] = []
    first_calls: list[slice] = []
    for row, sample in enumerate(samples):
        for place, (start, stop) in enumerate(_messages(sample, end_id)):
            ids = sample.token_ids[start:stop]
            if place == 0 and _find(ids, opening) is not None:
                first_calls.append(slice(len(rows), len(rows) + len(ids) - 1))
            rows += [row] * len(ids)
            columns += range(start, stop)
            slots += [SLOTS.index(slot) for slot in name_slots(ids, opening, closing)]
    if SLOTS.index("start_call_due") not in slots:
        raise DataError("the probe's bank holds no tool call; it needs gold dialogues with calls")
    return Bank(
        sequences=tuple(sample.token_ids for sample in samples),
        rows_N=tuple(rows),
        columns_N=tuple(columns),
        slots_N=tuple(slots),
        first_calls=tuple(first_calls),
        control=control_ids(fmt.control_tokens, encode),
    )


def control_ids(pieces: Sequence[str], encode: Encode) -> dict[str, int]:
    """Control pieces that are one token here, with their ids.

    A piece that a tokenizer splits has no probability of its own and is left out; its first part
    is an ordinary token.
    """
    encoded = {piece: encode(piece) for piece in pieces}
    return {piece: ids[0] for piece, ids in encoded.items() if len(ids) == 1}


def name_slots(ids: Sequence[int], opening: Sequence[int], closing: Sequence[int]) -> list[str]:
    """The slot of each token of one gold message (its ``<|im_end|>`` included)."""
    start = _find(ids, opening)
    if start is None:
        return ["start_text_due", *["inside_text"] * (len(ids) - 2), "end_text"][-len(ids) :]
    before = ["start_text_due", *["inside_text"] * (start - 1)][:start]
    # A tokenizer may fuse the closing tag with what precedes it: then its last token stands for it.
    fits = tuple(ids[-1 - len(closing) : -1]) == tuple(closing)
    close = len(closing) if fits else 1
    inside = len(ids) - start - len(opening) - close - 1
    return [
        *before,
        *["start_call_due"] * len(opening),
        *["after_open", *["inside_call"] * (inside - 1)][:inside],
        *["closing_call"] * close,
        "after_call",
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
