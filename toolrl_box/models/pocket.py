"""The embedded model: a 0.7M-parameter Qwen2 that has learned the pocket world by a seeded recipe.

Job: build a base (:func:`build_base`), and find the bases that ship with the package.
Input: a :class:`Recipe`. Output: an ordinary Hugging Face directory (safetensors, tokenizer,
``recipe.json`` with the resolved recipe and the measured success).

The curriculum is what made the base learnable in the prototype: one-turn episodes with few tools
and, in every third batch, a *copy drill* (random words, then the same again); then full episodes;
then the *noise* stage, in which a share of the assistant messages is structurally broken and the
episode cut there. Noise is a knob: 0 is the control and gets exactly as much training.

Left out: checkpoints within a build (it takes minutes) and any use of TRL (this is pre-training).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from toolrl_box.envs import pocket, pocket_words
from toolrl_box.formats import FORMATS
from toolrl_box.models.pocket_tokenizer import build_tokenizer
from toolrl_box.prompting import with_hint
from toolrl_box.types import Message, Task, ToolCall, ToolFormat

DATA = Path(__file__).parent / "data"
END = "<|im_end|>"
Sequence_ = tuple[list[int], list[bool]]  # token ids [T], loss mask [T]


@dataclass(frozen=True, slots=True)
class Stage:
    """``updates`` AdamW steps on batches of ``batch`` episodes with the learning rate going
    linearly from ``lr`` to ``lr_end`` after ``warmup`` updates."""

    updates: int
    batch: int
    lr: float
    lr_end: float
    warmup: int = 0
    turns: tuple[int, ...] = (2,)
    tools: int = 0
    drill_every: int = 0
    noise: float = 0.0

    def lr_at(self, update: int) -> float:
        lr = self.lr + (self.lr_end - self.lr) * update / self.updates
        return lr * min(1.0, (update + 1) / self.warmup) if self.warmup else lr


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a base. ``noise``: probability that an assistant message of the
    last stage is broken."""

    noise: float = 0.1
    seed: int = 0
    hidden_size: int = 128
    layers: int = 3
    heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 256
    hints: float = 0.3
    formats: tuple[tuple[str, float], ...] = (("hermes", 0.4), ("pythonic", 0.3), ("xml", 0.3))
    stages: tuple[Stage, ...] = (
        Stage(520, 64, 3e-3, 2.2e-3, warmup=50, turns=(1,), tools=3, drill_every=2),
        Stage(700, 16, 2.2e-3, 3e-4, turns=(1, 2, 2, 2), drill_every=4),
        Stage(300, 16, 1.5e-3, 1e-4, warmup=10),
    )

    def with_noise(self) -> tuple[Stage, ...]:
        *clean, last = self.stages
        return (*clean, replace(last, noise=self.noise))


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """Random weights; the head is untied (vLLM weight sync with a tied head is silently wrong)."""
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=1,
        head_dim=recipe.head_dim,  # type: ignore[call-arg]  # any keyword is kept
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


# --- data -----------------------------------------------------------------------------------


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
    encode: Callable[[str], list[int]],
    noise: float,
    rng: random.Random,
) -> Sequence_:
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


def copy_drill(
    encode: Callable[[str], list[int]], rng: random.Random, words: int = 24
) -> Sequence_:
    """Random words, then the same again; loss on the repetition (it teaches induction).

    The words stand side by side: a separator would be the previous token of every word, and the
    previous token is what induction goes by.
    """
    pool = [word for kind in pocket_words.KINDS.values() for word in kind]
    composites = pocket_words.COMPOSITES["train"]
    drawn = [
        rng.choice(pool) if rng.random() < 0.15 else rng.choice(composites) + rng.choice(("", "7"))
        for _ in range(words)
    ]
    once = [token for word in drawn for token in encode(word)]
    return once + once, [False] * len(once) + [True] * len(once)


def batches(
    recipe: Recipe, stage: Stage, index: int, encode: Callable[[str], list[int]]
) -> Iterator[list[Sequence_]]:
    """The stage's batches; length-sorted in pools of eight so that padding stays small."""
    rng = random.Random(f"base/{recipe.seed}/{index}")
    names, weights = zip(*recipe.formats, strict=True)
    made = 0

    def one() -> Sequence_:
        nonlocal made
        made += 1
        category = rng.choices(pocket.CATEGORIES, (4, 4, 2, 1))[0]
        task = pocket.make_task(
            "pretrain",
            f"pretrain-{recipe.seed}-{index}-{made}",
            category,
            turns=rng.choice(stage.turns),
            tools=stage.tools,
        )
        fmt = FORMATS[rng.choices(names, weights)[0]]
        if rng.random() < recipe.hints:  # a hinted episode is never broken: hints help
            return episode(with_hint(task), fmt, encode, 0.0, rng)
        return episode(task, fmt, encode, stage.noise, rng)

    pool: list[list[Sequence_]] = []
    for update in range(stage.updates):
        if stage.drill_every and update % stage.drill_every == 0:
            yield [copy_drill(encode, rng) for _ in range(stage.batch)]
            continue
        if not pool:
            rows = sorted((one() for _ in range(8 * stage.batch)), key=lambda row: len(row[0]))
            pool = [rows[i : i + stage.batch] for i in range(0, len(rows), stage.batch)]
            rng.shuffle(pool)
        yield pool.pop()


# --- training -------------------------------------------------------------------------------


def loss_on(model: Qwen2ForCausalLM, rows: Sequence[Sequence_], pad: int) -> torch.Tensor:
    """Mean cross-entropy (nats) of the learned tokens of a batch."""
    length = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), length), pad)
    learn_BT = torch.zeros((len(rows), length), dtype=torch.bool)
    for row, (ids, mask) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        learn_BT[row, : len(ids)] = torch.tensor(mask)
    # Right padding needs no attention mask: causal attention never looks at it.
    hidden = model.model(input_ids=ids_BT[:, :-1]).last_hidden_state
    target = learn_BT[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[target]), ids_BT[:, 1:][target])


def build_base(
    recipe: Recipe,
    output: Path,
    measure: Callable[[Path], dict[str, float]],
    on_update: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> dict[str, float]:
    """Run the recipe and save the base to ``output``; returns the measured success.

    ``measure`` scores the saved directory (it lives above this module); ``on_update`` is told
    (updates done, total, loss). Deterministic on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    model = new_model(recipe, tokenizer).train()
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    stages = recipe.with_noise()
    total, done = sum(stage.updates for stage in stages), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    for index, stage in enumerate(stages):
        for update, rows in enumerate(batches(recipe, stage, index, encode)):
            for group in optimizer.param_groups:
                group["lr"] = stage.lr_at(update)
            loss = loss_on(model, rows, pad)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            on_update(done, total, loss.item())
    torch.set_num_threads(threads)

    output.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    success = measure(output)
    record = {"recipe": asdict(recipe), "success": success}
    (output / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    return success
