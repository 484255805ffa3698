"""Training sequences from rollouts and from gold dialogues, token by token as they were written.

Input: a ``Rollout``, or a ``Task`` with its gold dialogue. Output: a ``Sample`` whose loss mask is
True exactly on the assistant's tokens and the stop token that ends each of its messages.

Text is encoded piece by piece (prompt, message, what follows), as it is while sampling, never as
one string and never again: so a gold dialogue and a rollout that says the same have the same
token ids. Left out: truncation and padding, which belong to whoever makes batches.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from toolrl_box.errors import DataError, ModelError
from toolrl_box.types import Kind, Rollout, Sample, Task, ToolFormat

Encode = Callable[[str], list[int]]
"""Text to token ids, without adding special tokens."""


def end_of_message_id(fmt: ToolFormat, encode: Encode) -> int:
    """The one token that ends a message; :class:`ModelError` when it is not one token."""
    ids = encode(fmt.end_of_message)
    if len(ids) != 1:
        raise ModelError(
            f"the tokenizer writes {fmt.end_of_message} as {len(ids)} tokens; it must be exactly "
            "one (add it to the vocabulary)"
        )
    return ids[0]


def rollout_to_sample(rollout: Rollout, advantage: float | None = None) -> Sample:
    """The rollout as one sequence. Only the policy's own has log-probs: an expert's was sampled by
    nobody, a hinted one in another context.

    A rollout that ended before its first message gives a sample whose mask is nowhere True.
    """
    token_ids = list(rollout.prompt_ids)
    loss_mask = [False] * len(token_ids)
    logprobs = [0.0] * len(token_ids)
    for turn in rollout.turns:
        own, observed = len(turn.completion_ids), len(turn.observation_ids)
        assert len(turn.logprobs) == own, (len(turn.logprobs), own)
        token_ids += [*turn.completion_ids, *turn.observation_ids]
        loss_mask += [True] * own + [False] * observed
        logprobs += [*turn.logprobs, *[0.0] * observed]
    return Sample(
        token_ids=tuple(token_ids),
        loss_mask=tuple(loss_mask),
        prompt_length=len(rollout.prompt_ids),
        logprobs=tuple(logprobs) if rollout.source == "policy" else None,
        advantage=advantage,
        source=rollout.source,
    )


def dialogue_to_sample(
    task: Task, fmt: ToolFormat, encode: Encode, messages: Kind | None = None
) -> Sample:
    """The task's gold dialogue as one sequence; what follows its last message is left out. With
    ``messages`` only assistant messages of that kind are learned.

    Raises :class:`DataError` when the gold dialogue does not begin with an assistant message.
    """
    if not task.gold or task.gold[0].role != "assistant":
        raise DataError(
            f"task '{task.id}' has no gold dialogue that begins with an assistant message"
        )
    end_id = end_of_message_id(fmt, encode)
    prompt = encode(fmt.render(task.prompt, task.tools, generation_prompt=True))
    token_ids = list(prompt)
    loss_mask = [False] * len(prompt)
    last = max(i for i, message in enumerate(task.gold) if message.role == "assistant")
    spans = groupby(task.gold[: last + 1], key=lambda message: message.role == "assistant")
    for by_assistant, group in spans:
        turn = list(group)
        if not by_assistant:
            following = encode(fmt.render_following(turn))
            token_ids += following
            loss_mask += [False] * len(following)
            continue
        for position, message in enumerate(turn):
            if position:  # one assistant message directly after another
                between = encode(fmt.render_following(()))
                token_ids += between
                loss_mask += [False] * len(between)
            written = [*encode(fmt.render_message(message)), end_id]
            token_ids += written
            loss_mask += [messages in (None, message.kind)] * len(written)
    return Sample(
        token_ids=tuple(token_ids),
        loss_mask=tuple(loss_mask),
        prompt_length=len(prompt),
        source="expert",
    )
