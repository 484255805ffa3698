"""What the gold dialogues tell: where a call is due, and whether a model knows what to put there.

Input: tasks with gold dialogues, a tool format and a model. Output: for each task which of its
assistant messages is a call (for forced prefixes), and :class:`Accuracy`: with the gold dialogue as
context (teacher forcing), is every token of a call's tool name, and of its arguments, the most
likely one? Tags, quotes, commas and brackets around them do not count: those are the structure
that may be broken.

Where name and arguments stand is found without knowing the format: the call is written once more
with another name (key, value), and what differs is the place. A token that covers part of it
counts as its own.

Left out: partial credit (a call's name or arguments are exact or not), and calls that a format
writes without a name (``icrl``: the tag is the name).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from string import ascii_letters

from toolrl_box.errors import DataError
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.rollout import Decode
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.types import Message, Task, ToolCall, ToolFormat

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of the gold calls, in [0, 1]; None when no call has such a part. ``call``: both the
    name and the arguments are right, of the calls that have either."""

    calls: int
    name: float | None
    arguments: float | None
    call: float | None


def due_calls(tasks: Sequence[Task], fmt: ToolFormat) -> tuple[tuple[bool, ...], ...]:
    """For each task, which of its gold assistant messages is a call that opens as
    ``fmt.call_start`` does. Raises DataError when none is."""
    due = tuple(tuple(_is_due(message, fmt) for message in _assistant(task)) for task in tasks)
    if not any(map(any, due)):
        raise DataError(
            f"the gold dialogues of the {len(tasks)} tasks hold no tool call; the counterfactuals "
            "need tasks with gold calls"
        )
    return due


def teacher_forced(tasks: Sequence[Task], fmt: ToolFormat, policy: HFPolicy) -> Accuracy:
    """Accuracy on the gold calls. Raises DataError for a task without gold dialogue."""
    sequences = [dialogue_to_sample(task, fmt, policy.encode) for task in tasks]
    right = policy.most_likely([sample.token_ids for sample in sequences])
    parts = [
        (_all_right(right_T, names), _all_right(right_T, arguments))
        for task, sample, right_T in zip(tasks, sequences, right, strict=True)
        for names, arguments in _positions(task, sample.loss_mask, fmt, policy)
    ]
    whole = [part for part in parts if part != (None, None)]
    return Accuracy(
        calls=len(parts),
        name=_share([name for name, _ in parts]),
        arguments=_share([arguments for _, arguments in parts]),
        call=_share([False not in part for part in whole]),
    )


def _assistant(task: Task) -> list[Message]:
    return [message for message in task.gold if message.role == "assistant"]


def _is_due(message: Message, fmt: ToolFormat) -> bool:
    if not message.tool_calls:
        return False
    return fmt.render_message(replace(message, content="")).startswith(fmt.call_start)


def _all_right(right_T: Sequence[bool], positions: Sequence[int]) -> bool | None:
    return all(right_T[i] for i in positions) if positions else None


def _share(values: Sequence[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _positions(
    task: Task, loss_mask: Sequence[bool], fmt: ToolFormat, policy: HFPolicy
) -> Iterator[tuple[list[int], list[int]]]:
    """For each gold call, the positions in its task's sequence of its name and of its arguments."""
    end = 0
    for message in _assistant(task):
        ids = policy.encode(fmt.render_message(message))
        start = loss_mask.index(True, end)
        end = start + len(ids) + 1  # the end of the message is a token of its own
        for number in range(len(message.tool_calls)):
            names, arguments = (
                [start + i for span in spans for i in covering(ids, span, policy.decode)]
                for spans in call_spans(message, number, fmt)
            )
            yield names, arguments


def call_spans(message: Message, number: int, fmt: ToolFormat) -> tuple[list[Span], list[Span]]:
    """Where in the message's text one of its calls has its name, and its argument keys and values.

    A place that the format does not write, or writes as nothing (an empty text), has no span.
    """
    call = message.tool_calls[number]
    written = fmt.render_message(message)

    def place(other: ToolCall) -> list[Span]:
        calls = (*message.tool_calls[:number], other, *message.tool_calls[number + 1 :])
        try:
            text = fmt.render_message(replace(message, tool_calls=calls))
        except DataError:  # no such name or key in this format, so it is not written as text
            return []
        start, stop = _difference(written, text)
        return [(start, stop)] if start < stop else []

    arguments: list[Span] = []
    for key, value in call.arguments.items():
        other = _other(key, call.arguments)
        renamed = {other if k == key else k: v for k, v in call.arguments.items()}
        arguments += place(replace(call, arguments=renamed))
        changed = {**call.arguments, key: _other(value if isinstance(value, str) else "")}
        arguments += place(replace(call, arguments=changed))
    return place(replace(call, name=_other(call.name))), arguments


def covering(ids: Sequence[int], span: Span, decode: Decode) -> list[int]:
    """Indices of the tokens whose text lies in the span, if only with one character."""
    ends = [len(decode(ids[: i + 1])) for i in range(len(ids))]
    starts = [0, *ends]
    return [i for i in range(len(ids)) if starts[i] < span[1] and ends[i] > span[0]]


def _other(word: str, taken: Collection[str] = ()) -> str:
    """A letter that ``word`` neither begins nor ends with and that is not taken."""
    fitting = (c for c in ascii_letters if c not in (word[:1], word[-1:]) and c not in taken)
    return next(fitting)


def _difference(text: str, other: str) -> Span:
    """The part of ``text`` between what both begin with and what both end with."""
    shorter = min(len(text), len(other))
    start = next((i for i in range(shorter) if text[i] != other[i]), shorter)
    tail = next((i for i in range(shorter - start) if text[-1 - i] != other[-1 - i]), None)
    return start, len(text) - (shorter - start if tail is None else tail)
