"""The records and Protocols that every other module speaks in; data flows through them one way.

    Task -> Rollout (Turns) -> Group -> Sample -> update -> Reading -> Alarm

Everything here is frozen and holds plain values, so that a record can be journalled, replayed
and compared. Axis suffixes in the package: ``_T`` tokens of one sequence, ``_G`` rollouts of one
group, ``_B`` rows of a batch, ``_V`` vocabulary.

Left out on purpose: tensors (they stay inside policies, backend and probe) and configuration.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
Source = Literal["policy", "hinted", "expert"]
"""Who wrote a rollout: the policy, the policy with a hint that is not shown to it in training, or
the task's gold dialogue."""
State = Literal["healthy_call", "healthy_response", "text_pollution", "collapsed"]
STATES: tuple[State, ...] = ("healthy_call", "healthy_response", "text_pollution", "collapsed")


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One callable tool: its name and its JSON schema (``{"type": "object", "properties": …}``)."""

    name: str
    parameters: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as parsed or as gold: ``arguments`` are JSON values, never code."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message.

    ``content`` is the natural-language part; ``tool_calls`` is for assistants; ``tools`` are
    documents that a *user* message supplies later in the dialogue (category miss_func).
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tools: tuple[ToolSpec, ...] = ()

    @property
    def kind(self) -> Kind:
        """Of an assistant's message."""
        return "call" if self.tool_calls else "text"


@dataclass(frozen=True, slots=True)
class Task:
    """One episode to solve.

    ``prompt`` is what stands before the first assistant message (system text and first user
    message; the format adds the tool documents), ``gold`` the rest of a correct dialogue
    (assistant, tool and later user messages in order), ``target`` what the environment needs to
    set up and check the episode (JSON values only).
    """

    id: str
    category: str
    tools: tuple[ToolSpec, ...]
    prompt: tuple[Message, ...]
    gold: tuple[Message, ...]
    target: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParseError:
    """What is wrong in a message and where: ``text[start:end]`` is the offending span."""

    kind: str
    start: int
    end: int
    detail: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A message read by a tool format.

    ``text`` is the natural language outside any call; ``calls`` the well-formed calls in order;
    ``blocks`` the number of *closed* call blocks, well-formed or not (0 ends the user turn);
    ``errors`` every defect, in order of position. ``tags``: the format's own tags in order of
    position, ``"think"`` for an opening and ``"/think"`` for a closing one, for formats whose
    reward counts them; empty for the others. ``spans``: where the closed blocks stand whose calls
    were read, in order (and closed thoughts, in formats that have them). ``asides``: markup and
    thoughts beside them that are no natural language, where a reader tells those apart.
    """

    text: str
    calls: tuple[ToolCall, ...]
    blocks: int
    errors: tuple[ParseError, ...]
    tags: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    asides: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The environment's answer to one assistant message.

    ``messages`` follow the assistant's message (tool results or the next user message; empty when
    ``done``). At the end ``outcome`` holds named figures, ``{"success": 0.0 or 1.0, …}``.
    """

    messages: tuple[Message, ...]
    done: bool = False
    stop_reason: str | None = None
    outcome: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled message: ``completion_ids`` [T] with its stop token, ``logprobs`` [T] in nats
    under the sampling distribution; ``truncated`` when the token limit ended it."""

    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant message and what followed it.

    ``completion_ids`` [T] and ``logprobs`` [T] (nats) are the model's own; ``text`` is their
    decoding without the stop token; ``observation_ids`` are the tokens written by the environment
    after it (they carry no loss), ``observations`` the same as messages.
    """

    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    parsed: Parsed
    truncated: bool
    observation_ids: tuple[int, ...] = ()
    observations: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished episode. A failed one is data: ``error`` names the cause, it is never a
    silent 0."""

    task: Task
    prompt_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    stop_reason: str
    source: Source = "policy"
    outcome: Mapping[str, float] = field(default_factory=dict)
    reward: float = 0.0
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One task and its rollouts of one step, ``rewards_G`` in order."""

    task: Task
    rollouts: tuple[Rollout, ...]

    @property
    def own(self) -> tuple[Rollout, ...]:
        """The policy's unaided rollouts: what it can do. They come first in the group."""
        return tuple(rollout for rollout in self.rollouts if rollout.source == "policy")

    @property
    def rewards_G(self) -> tuple[float, ...]:
        return tuple(rollout.reward for rollout in self.rollouts)


@dataclass(frozen=True, slots=True)
class Sample:
    """A training sequence for GRPO and SFT alike.

    ``token_ids`` [T] begins with the prompt (``prompt_length`` tokens); ``loss_mask`` [T] is True
    where the model wrote the token (or an expert in its place); ``logprobs`` [T] in nats, 0.0
    where the mask is False, or None when nobody sampled it.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    prompt_length: int
    logprobs: tuple[float, ...] | None = None
    advantage: float | None = None
    source: Source = "policy"


@dataclass(frozen=True, slots=True)
class Finding:
    """Structural state of one message: ``text[start:end]`` proves ``kind``."""

    state: State
    kind: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a detector sees of one step: named scalars (nats, shares, rewards)."""

    step: int
    values: Mapping[str, float]


Kind = Literal["call", "text"]
"""What an assistant message is, by whether it calls a tool."""
Level = Literal["warn", "act"]
LEVELS: tuple[Level, ...] = ("warn", "act")  # rising


@dataclass(frozen=True, slots=True)
class Alarm:
    """A detector's verdict on one step. ``level`` orders what to do about it."""

    detector: str
    step: int
    value: float
    threshold: float
    level: Level

    def reaches(self, level: Level) -> bool:
        """Whether it is at least as grave as ``level``."""
        return LEVELS.index(self.level) >= LEVELS.index(level)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. ``temperature`` 0 is greedy; ``seed`` fixes the whole session."""

    temperature: float
    max_new_tokens: int
    seed: int


class Session(Protocol):
    """A batch of growing token sequences under fixed weights (a policy may keep its KV cache)."""

    def generate(self, appended: Mapping[int, Sequence[int]]) -> Mapping[int, Generation]:
        """Append the given tokens to each named row and sample one message for it.

        A row first named starts empty, so the first call carries the prompts. Rows that are not
        named any more are finished and may be forgotten; naming one again is an error.
        """


class Policy(Protocol):
    """Anything that can write messages and score tokens."""

    def session(self, sampling: Sampling) -> Session: ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-prob in nats of each token given those before it; 0.0 for the first."""


class Environment(Protocol):
    """One instance is one episode; no globals."""

    def reset(self, task: Task) -> tuple[Message, ...]:
        """Start the episode; returns the prompt messages."""

    def step(self, message: Parsed) -> Step: ...


class World(Protocol):
    """A kind of task and the episodes on it: what an entry of ``ENVS`` makes from its settings.

    It is a frozen dataclass whose fields are those settings; calling it gives a fresh episode.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``heldout`` and ``bank`` at least; ``ood`` where there is foreign content."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Every category of task, in the order of reports; evaluation covers all of them."""

    @property
    def train_categories(self) -> tuple[str, ...]:
        """Those that are trained on unless the user says otherwise."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the tool formats that can write its dialogues, the usual one first."""

    def tasks(
        self, split: str, count: int, seed: int, categories: Sequence[str] | None = None
    ) -> list[Task]:
        """``count`` tasks of ``split``, categories in rotation (None: ``train_categories``).

        The same arguments give the same tasks, fewer tasks are the first of more. Raises
        ConfigError for an unknown split or category, or when there are not that many.
        """

    def __call__(self) -> Environment: ...


class Grammar(Protocol):
    """Which assistant messages are structurally possible, read character by character."""

    @property
    def start(self) -> Hashable:
        """Before the message's first character."""

    def step(self, state: Any, char: str) -> Hashable | None:
        """The state after one more character; None when no sound message goes on like that."""

    def may_end(self, state: Any) -> bool:
        """Whether a sound message may end here."""


class MessageParser(Protocol):
    """Reads one assistant message that arrives in chunks."""

    @property
    def closed(self) -> int:
        """Closed call blocks so far."""

    def feed(self, chunk: str) -> None: ...

    def finish(self) -> Parsed:
        """What :meth:`ToolFormat.parse` returns for the whole text."""


class ToolFormat(Protocol):
    """How tools, calls and results are written as text, and read back.

    All embedded formats share the ChatML frame; they differ in the tool block.
    """

    @property
    def name(self) -> str: ...

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Structural pieces of text whose probability the probe follows, most telling first."""

    @property
    def end_of_message(self) -> str:
        """The one token that ends an assistant's message."""

    @property
    def call_start(self) -> str:
        """The piece with which a call opens."""

    @property
    def call_end(self) -> str:
        """The piece with which a call closes."""

    @property
    def grammar(self) -> Grammar:
        """Which messages are structurally possible in this format."""

    @property
    def chat_template(self) -> str:
        """Jinja template that renders exactly like :meth:`render` (prefix-preserving)."""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        generation_prompt: bool = False,
    ) -> str:
        """The whole dialogue as text, with the tool documents in the system message."""

    def render_message(self, message: Message) -> str:
        """The assistant message's own text, without the frame and without the stop token."""

    def render_following(self, messages: Sequence[Message]) -> str:
        """What stands between an assistant message's end token and the next assistant's
        first token: the following tool or user messages and the generation prompt."""

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""

    def parser(self) -> MessageParser:
        """The same for a message that arrives in chunks."""
