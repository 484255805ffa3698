"""What every reader makes of a foreign log: rollouts, scalars, checkpoints and damage.

A reader yields these records one at a time, in the order of the file, and keeps nothing: a log may
be larger than the memory. What a log does not say is None, never a guess. Texts are as logged;
the readers neither strip nor repair them, because a stray blank may be the evidence.

Left out: token ids (few logs have them), and which state a message is in (``probe.states``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolrl_box.types import Role, ToolSpec


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record stands: ``line`` counts from 1 (a row of a parquet file likewise)."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """A call that the log holds apart from the text. ``arguments`` is JSON text as logged, broken
    or not (that is for the states to find); an object that the log holds as such is dumped."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """One message. ``calls`` is None when the log writes calls, if there are any, into the text; an
    empty tuple when it holds calls apart and there were none."""

    role: Role
    text: str
    calls: tuple[LoggedCall, ...] | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class LoggedRollout:
    """One episode.

    ``messages`` from the first that the log holds. ``prompt_length``: how many of them are the
    prompt, which the model did not write (assistant messages among them are demonstrations and are
    not judged). ``step``: the training step, None when the log does not say.
    ``group``: what the rollouts of one prompt share. ``gold``: a right continuation after the
    prompt, where the log has one. ``facts``: figures that only some logs have, named in
    :data:`FACTS`.
    """

    origin: Origin
    id: str
    messages: tuple[LoggedMessage, ...]
    prompt_length: int
    step: int | None = None
    reward: float | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    advantage: float | None = None
    group: str | None = None
    category: str | None = None
    model: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    gold: tuple[LoggedMessage, ...] | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


FACTS: Mapping[str, str] = {
    "max_logprob": "highest log-prob of a sampled token, nats; above 0 it is impossible",
    "observation_in_loss": "share of the observations' tokens that carry loss; right is 0",
    "ended_with_eos": "1 when the last message ended with the stop token, 0 when not",
    "retokenised": "share of sampled tokens that differ after decoding and encoding; right is 0",
    "response_tokens": "sampled tokens of the episode",
}


@dataclass(frozen=True, slots=True)
class Scalars:
    """Figures of one step, under the names of :data:`SCALARS` where the reader knows them, else
    under the log's own."""

    origin: Origin
    step: int
    values: Mapping[str, float]


SCALARS: Mapping[str, str] = {
    "reward": "mean reward",
    "reward_std": "standard deviation of the reward within groups, or of the batch",
    "kl": "KL to the reference, nats a token",
    "entropy": "entropy of the policy, nats a token",
    "grad_norm": "norm of the gradient before clipping",
    "clip_fraction": "share of clipped ratios",
    "loss": "the loss as logged",
    "learning_rate": "learning rate",
    "response_length": "mean tokens of a response",
    "truncated": "share of responses cut at the length limit",
    "success": "share of tasks solved in an evaluation",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint seen beside the log. Its contents are not read."""

    path: Path
    step: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A record that could not be read, and why. It is counted and named, never fatal."""

    origin: Origin
    reason: str


Record = LoggedRollout | Scalars | Checkpoint | Damage


@dataclass(frozen=True, slots=True)
class Judged:
    """An assistant message with its structural state, as the pages and tables show it.

    ``text`` is cut to a bounded length around the span; ``start`` and ``end`` are positions in
    that cut text. ``index`` counts the assistant messages of the rollout from 0.
    """

    origin: Origin
    rollout: str
    step: int | None
    index: int
    text: str
    state: str
    kind: str
    start: int
    end: int
    reward: float | None = None
    category: str | None = None
    model: str | None = None
