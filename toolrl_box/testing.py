"""What tests need in place of a model: a codec, a policy that reads from a script, an echo world.

Input: scripts as text. Output: the same records as the real parts give. Public, so that a new
environment, format or scheme can be tested without a network or a model.

Left out: a fake format (use a real one, they are cheap) and a tiny model (tests that need one
build it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toolrl_box.types import (
    Generation,
    Message,
    Parsed,
    Sampling,
    Step,
    Task,
    ToolCall,
    ToolSpec,
)

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>")


@dataclass(frozen=True)
class ByteCodec:
    """One token per UTF-8 byte, and one (256 and up) for each special piece of text."""

    specials: tuple[str, ...] = SPECIALS

    @property
    def vocabulary(self) -> int:
        return 256 + len(self.specials)

    def id_of(self, special: str) -> int:
        return 256 + self.specials.index(special)

    def encode(self, text: str) -> list[int]:
        for index, special in enumerate(self.specials):
            if special in text:
                before, after = text.split(special, 1)
                return [*self.encode(before), 256 + index, *self.encode(after)]
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        pieces = [
            bytes([token]) if token < 256 else self.specials[token - 256].encode() for token in ids
        ]
        return b"".join(pieces).decode(errors="replace")


@dataclass
class ScriptedPolicy:
    """Says what the script says: row ``r`` says ``script[r % len(script)]``, message by message.

    A message ends with ``<|im_end|>`` unless it names a stop token itself; one longer than
    ``max_new_tokens`` is truncated. Each log-prob is ``logprob``. ``contexts`` keeps what each
    row had been given or had said when it was last asked.
    """

    script: Sequence[Sequence[str]]
    codec: ByteCodec = field(default_factory=ByteCodec)
    logprob: float = -1.0
    contexts: dict[int, list[int]] = field(default_factory=dict)

    def session(self, sampling: Sampling) -> ScriptedSession:
        return ScriptedSession(self, sampling)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[0.0, *[self.logprob] * (len(ids) - 1)][: len(ids)] for ids in sequences]


@dataclass
class ScriptedSession:
    """The session of a :class:`ScriptedPolicy`; starts with empty contexts."""

    policy: ScriptedPolicy
    sampling: Sampling
    said: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.policy.contexts.clear()

    def generate(self, appended: Mapping[int, Sequence[int]]) -> Mapping[int, Generation]:
        return {row: self._say(row, ids) for row, ids in appended.items()}

    def _say(self, row: int, appended: Sequence[int]) -> Generation:
        codec, script = self.policy.codec, self.policy.script
        position = self.said.get(row, 0)
        self.said[row] = position + 1
        stops = {codec.id_of("<|im_end|>"), codec.id_of("<|endoftext|>")}
        ids = codec.encode(script[row % len(script)][position])
        if not stops & set(ids):
            ids.append(codec.id_of("<|im_end|>"))
        ids = ids[: 1 + next(i for i, token in enumerate(ids) if token in stops)]
        truncated = len(ids) > self.sampling.max_new_tokens
        ids = ids[: self.sampling.max_new_tokens]
        context = self.policy.contexts.setdefault(row, [])
        context += [*appended, *ids]
        return Generation(tuple(ids), (self.policy.logprob,) * len(ids), truncated)


ECHO = ToolSpec(
    "echo",
    {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "Say it back.",
)


def echo_task(words: Sequence[str]) -> Task:
    """One user turn per word: the assistant echoes the word with the tool, then says it."""
    users = [Message("user", f"Echo {word}") for word in words]
    gold: list[Message] = []
    for position, word in enumerate(words):
        if position:
            gold.append(users[position])
        gold += [
            Message("assistant", "", (ToolCall("echo", {"text": word}),)),
            Message("tool", word),
            Message("assistant", word),
        ]
    return Task(
        id="echo-" + "-".join(words),
        category="echo",
        tools=(ECHO,),
        prompt=(Message("system", "You are helpful."), users[0]),
        gold=tuple(gold),
        target={"words": list(words), "answers": [words[-1]]},
    )


@dataclass
class EchoEnvironment:
    """Answers calls of ``echo``; a message without a call block ends the user turn.

    Succeeds when every user turn ended with its word. A call of ``boom`` raises.
    """

    words: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def reset(self, task: Task) -> tuple[Message, ...]:
        self.words = list(task.target["words"])
        return task.prompt

    def step(self, message: Parsed) -> Step:
        if message.blocks:
            return Step(tuple(Message("tool", self._answer(call)) for call in message.calls))
        self.said.append(message.text.strip())
        if len(self.said) < len(self.words):
            return Step((Message("user", f"Echo {self.words[len(self.said)]}"),))
        success = float(self.said == self.words)
        return Step((), done=True, stop_reason="answered", outcome={"success": success})

    def _answer(self, call: ToolCall) -> str:
        if call.name == "boom":
            raise RuntimeError("the environment broke")
        return str(call.arguments.get("text", ""))
