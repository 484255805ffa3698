"""The recipe of the embedded model: a 0.6M-parameter Qwen2 that learns the pocket world.

Input: nothing but the recipe's own settings. Output: the stages and batches that
:func:`~toolrl_box.models.pretrain.build_base` trains on.

The curriculum is what made the base learnable in the prototype: one-turn episodes with few tools
and, in every second batch, a *copy drill* (random words, then the same again); then full episodes;
then the *noise* stage, in which a share of the assistant messages is structurally broken and the
episode cut there. Noise is a knob: 0 is the control and gets exactly as much training.

Left out: the training itself (``pretrain``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from toolrl_box.envs import pocket, pocket_words
from toolrl_box.formats import FORMATS
from toolrl_box.models.pretrain import END, Encode, Recipe, Row, Schedule, copy_drill, pooled
from toolrl_box.prompting import with_hint
from toolrl_box.types import Message, Task, ToolCall, ToolFormat


@dataclass(frozen=True, slots=True)
class Stage(Schedule):
    """A stage on pocket episodes with one of ``turns`` user turns, ``tools`` tools listed (0: as
    in training), and ``noise``, the probability that an assistant message is broken."""

    turns: tuple[int, ...] = (2,)
    tools: int = 0
    noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PocketRecipe(Recipe):
    """Everything that determines a base. ``noise``: that of the last stage; ``hints``: share of
    episodes with a hint in the prompt."""

    noise: float = 0.1
    hints: float = 0.3
    formats: tuple[tuple[str, float], ...] = (("hermes", 0.4), ("pythonic", 0.3), ("xml", 0.3))
    stages: tuple[Stage, ...] = (
        Stage(520, 64, 3e-3, 2.2e-3, warmup=50, turns=(1,), tools=3, drill_every=2),
        Stage(700, 16, 2.2e-3, 3e-4, turns=(1, 2, 2, 2), drill_every=4),
        Stage(300, 16, 1.5e-3, 1e-4, warmup=10),
    )

    @property
    def chat_template(self) -> str:
        return FORMATS["hermes"].chat_template

    def plan(self) -> tuple[Stage, ...]:
        *clean, last = self.stages
        return (*clean, replace(last, noise=self.noise))

    def batches(self, index: int, encode: Encode) -> Iterable[list[Row]]:
        stage = self.plan()[index]
        rng = random.Random(f"base/{self.seed}/{index}")
        names, weights = zip(*self.formats, strict=True)
        made = 0

        def one() -> Row:
            nonlocal made
            made += 1
            category = rng.choices(pocket.CATEGORIES, (4, 4, 2, 1))[0]
            task = pocket.make_task(
                "pretrain",
                f"pretrain-{self.seed}-{index}-{made}",
                category,
                turns=rng.choice(stage.turns),
                tools=stage.tools,
            )
            fmt = FORMATS[rng.choices(names, weights)[0]]
            if rng.random() < self.hints:  # a hinted episode is never broken: hints help
                return episode(with_hint(task), fmt, encode, 0.0, rng)
            return episode(task, fmt, encode, stage.noise, rng)

        return pooled(stage, rng, one, lambda: copy_drill(encode, lambda: drilled_word(rng)))


def break_message(text: str, fmt: ToolFormat, rng: random.Random) -> str:
    """A structurally broken variant of a gold assistant message (the episode is cut after it).

    The shares are those of the prototype. The debris that dominates collapses in the laboratory,
    text after a closed call, is *not* among them: it is not planted.
    """
    start, end = fmt.call_start, fmt.call_end
    draw = rng.random()
    if start in text:  # a call is due
        if draw < 0.30:
            return text.removesuffix(end).rstrip("\n")
        if draw < 0.50:
            return start
        if draw < 0.65:
            return text.removeprefix(start).lstrip("\n")
        return rng.choice((*pocket_words.REPLIES["done"], *pocket_words.REPLIES["no_tool"]))
    if draw < 0.35:
        words = text.split(" ")
        at = rng.randrange(len(words))
        return " ".join([*words[:at], rng.choice((start, end)), *words[at:]])
    if draw < 0.55:
        return start
    if draw < 0.70:
        return ""
    return fmt.render_message(Message("assistant", "", (_any_call(rng),)))


def _any_call(rng: random.Random) -> ToolCall:
    row = rng.choice(pocket_words.TOOLS)
    words = {p: rng.choice(pocket_words.KINDS.get(p, ("kalo1",))) for p in row.params}
    return ToolCall(row.name, words | ({"count": 3} if "count" in words else {}))


def episode(
    task: Task,
    fmt: ToolFormat,
    encode: Encode,
    noise: float,
    rng: random.Random,
) -> Row:
    """A gold dialogue as tokens with the loss on assistant messages; broken with ``noise``."""
    ids = encode(fmt.render(task.prompt, task.tools, generation_prompt=True))
    mask = [False] * len(ids)

    def add(text: str, learned: bool) -> None:
        piece = encode(text)
        ids.extend(piece)
        mask.extend([learned] * len(piece))

    following: list[Message] = []
    for message in task.gold:
        if message.role != "assistant":
            following.append(message)
            continue
        if following:
            add(fmt.render_following(following), False)
            following = []
        text = fmt.render_message(message)
        if rng.random() < noise:
            add(break_message(text, fmt, rng) + END, True)
            break
        add(text + END, True)
    return ids, mask


def drilled_word(rng: random.Random) -> str:
    """A word of the copy drill: mostly an invented one, of two or three tokens."""
    if rng.random() < 0.15:
        return rng.choice(_VALUES)
    return rng.choice(pocket_words.COMPOSITES["train"]) + rng.choice(("", "7"))


_VALUES = [word for kind in pocket_words.KINDS.values() for word in kind]
