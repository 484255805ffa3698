"""The multi-turn loop: every unfinished episode gets its next message in one batch.

Input: tasks, a policy, a tool format and a maker of environments. Output: one ``Rollout`` per
task, in order. Also :func:`replay_gold`, which plays a task's gold messages through the same
environment, so that demonstrations are executed and scored like everything else.

Token ids stay as they were sampled; only what the environment says is encoded, once. An exception
inside an environment ends its episode and is recorded; every other exception is a bug and
propagates.

Left out: rewards (:mod:`toolrl_box.rewards`) and grouping (the trainer's business).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from toolrl_box.errors import ConfigError
from toolrl_box.samples import Encode, end_of_message_id
from toolrl_box.types import (
    Environment,
    Generation,
    Message,
    Policy,
    Rollout,
    Sampling,
    Source,
    Step,
    Task,
    ToolFormat,
    Turn,
)

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens kept."""

MakeEnv = Callable[[], Environment]
"""A fresh environment for one episode."""

TRUNCATED = " [truncated]"
"""Marks an observation that was cut to ``max_observation_tokens``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an episode, or shortens what the environment says.

    ``max_messages``: assistant messages; ``max_tokens``: prompt, messages and observations
    together, exceeded by nothing but a prompt (an episode ends when one more whole message might
    not fit); ``max_observation_tokens``: what follows one message, except a frame that is longer.
    """

    max_messages: int
    max_tokens: int
    max_observation_tokens: int

    def __post_init__(self) -> None:
        for name, value in (
            ("max_messages", self.max_messages),
            ("max_tokens", self.max_tokens),
            ("max_observation_tokens", self.max_observation_tokens),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")


@dataclass
class _Episode:
    """One episode in progress."""

    task: Task
    env: Environment
    fmt: ToolFormat
    encode: Encode
    end_id: int
    limits: Limits
    source: Source = "policy"
    prefill: str = ""
    length: int = 0
    prompt_ids: tuple[int, ...] = ()
    turns: list[Turn] = field(default_factory=list)
    ended: Rollout | None = None

    def end(self, stop_reason: str, step: Step | None = None, error: str | None = None) -> None:
        if self.turns:  # what nobody reads any more is no part of the sequence
            self.turns[-1] = replace(self.turns[-1], observation_ids=(), observations=())
        self.ended = Rollout(
            task=self.task,
            prompt_ids=self.prompt_ids,
            turns=tuple(self.turns),
            stop_reason=stop_reason,
            source=self.source,
            outcome=dict(step.outcome) if step else {},
            error=error,
        )

    def start(self) -> list[int]:
        """Reset the environment; the prompt's token ids."""
        try:
            prompt = self.env.reset(self.task)
        except Exception as error:
            self.end("error", error=_described(error))
            return []
        text = self.fmt.render(prompt, self.task.tools, generation_prompt=True)
        self.prompt_ids = (*self.encode(text), *self.encode(self.prefill))
        self.length = len(self.prompt_ids)
        return list(self.prompt_ids)

    def take(self, generation: Generation, text: str) -> list[int]:
        """Play one message; the token ids to append before the next one."""
        parsed = self.fmt.parse(text)
        turn = Turn(
            completion_ids=generation.completion_ids,
            logprobs=generation.logprobs,
            text=text,
            parsed=parsed,
            truncated=generation.truncated,
        )
        self.turns.append(turn)
        self.length += len(generation.completion_ids)
        try:
            step = self.env.step(parsed)
        except Exception as error:
            self.end("error", error=_described(error))
            return []
        if step.done:
            self.end(step.stop_reason or "done", step)
            return []
        if len(self.turns) >= self.limits.max_messages:
            self.end("max_messages")
            return []
        messages, ids = self._observed(step.messages)
        if generation.completion_ids[-1] != self.end_id:
            # Cut off, or ended by another stop token: close the message in the model's place,
            # so that the context stays a well-formed dialogue.
            ids = [self.end_id, *ids]
        self.turns[-1] = replace(turn, observation_ids=tuple(ids), observations=messages)
        self.length += len(ids)
        return ids

    def _observed(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], list[int]]:
        """The messages as the model will see them, the longest shortened until all fit."""
        limit = self.limits.max_observation_tokens
        ids = self.encode(self.fmt.render_following(messages))
        marks: set[int] = set()
        while len(ids) > limit:
            contents = [
                message.content.removesuffix(TRUNCATED) if i in marks else message.content
                for i, message in enumerate(messages)
            ]
            longest = max(range(len(messages)), key=lambda i: len(contents[i]), default=0)
            if not messages or not contents[longest]:
                break  # nothing left to shorten: the frame and the tool documents stay whole
            kept = min(len(contents[longest]) - 1, len(contents[longest]) * limit // len(ids))
            marks.add(longest)
            shorter = replace(messages[longest], content=contents[longest][:kept] + TRUNCATED)
            messages = (*messages[:longest], shorter, *messages[longest + 1 :])
            ids = self.encode(self.fmt.render_following(messages))
        return messages, ids


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def run_episodes(
    tasks: Sequence[Task],
    policy: Policy,
    fmt: ToolFormat,
    make_env: MakeEnv,
    encode: Encode,
    decode: Decode,
    sampling: Sampling,
    *,
    max_messages: int = 16,
    max_tokens: int = 4096,
    max_observation_tokens: int = 1024,
    prefills: Sequence[str] | None = None,
    first_row: int = 0,
) -> list[Rollout]:
    """Play every task once; the rollouts in the order of the tasks, with reward 0 as yet.

    ``prefills``: for each task, words with which its first assistant message is made to begin;
    they count as prompt. ``first_row``: the number of the first task's row in the session, where
    the tasks are a part of a greater batch.

    Stop reasons: the environment's own (``done`` if it names none), ``max_messages``,
    ``max_tokens`` and ``error``; for the last three the outcome is empty. The last turn of an
    ended episode has no observation: nobody read it. Raises :class:`ConfigError` for limits
    below 1 and :class:`ModelError` when the format's end of a message is not one token.
    """
    limits = Limits(max_messages, max_tokens, max_observation_tokens)
    end_id = end_of_message_id(fmt, encode)
    rows = zip(tasks, prefills or [""] * len(tasks), strict=True)
    episodes = {
        row: _Episode(task, make_env(), fmt, encode, end_id, limits, prefill=prefill)
        for row, (task, prefill) in enumerate(rows, first_row)
    }
    appended = {row: episode.start() for row, episode in episodes.items()}
    session = policy.session(sampling)
    while True:
        for i in appended:
            episode = episodes[i]
            if not episode.ended and episode.length + sampling.max_new_tokens > max_tokens:
                episode.end("max_tokens")
        # An ended episode is no longer named, which lets the session forget it.
        appended = {i: ids for i, ids in appended.items() if not episodes[i].ended}
        if not appended:
            break
        generations = session.generate(appended)
        appended = {
            i: episodes[i].take(generation, decode(_spoken(generation)))
            for i, generation in generations.items()
        }
    rollouts = [episode.ended for episode in episodes.values()]
    return [rollout for rollout in rollouts if rollout is not None]


def _spoken(generation: Generation) -> tuple[int, ...]:
    """The message without the stop token that ended it."""
    ids = generation.completion_ids
    return ids if generation.truncated else ids[:-1]


def replay_gold(
    task: Task,
    fmt: ToolFormat,
    make_env: MakeEnv,
    encode: Encode,
    *,
    max_messages: int = 16,
    max_tokens: int = 4096,
    max_observation_tokens: int = 1024,
) -> Rollout:
    """The task's gold assistant messages played through its environment, as an expert's rollout.

    Observations are the environment's, not those written in the gold dialogue. Ends as
    :func:`run_episodes` does, or with ``gold_exhausted``. Log-probs are 0.
    """
    limits = Limits(max_messages, max_tokens, max_observation_tokens)
    end_id = end_of_message_id(fmt, encode)
    episode = _Episode(task, make_env(), fmt, encode, end_id, limits, source="expert")
    episode.start()
    for message in task.gold:
        if episode.ended:
            break
        if message.role != "assistant":
            continue
        text = fmt.render_message(message)
        ids = (*encode(text), end_id)
        if episode.length + len(ids) > max_tokens:
            episode.end("max_tokens")
            break
        episode.take(Generation(ids, (0.0,) * len(ids)), text)
    if not episode.ended:
        episode.end("gold_exhausted")
    assert episode.ended is not None
    return episode.ended
