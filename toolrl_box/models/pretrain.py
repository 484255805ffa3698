"""Pre-training of the embedded models: a new network, its batches, its updates, its folder.

Input: a :class:`Recipe`. Output: an ordinary Hugging Face directory (safetensors, tokenizer,
``recipe.json`` with the resolved recipe and the measured success).

Left out: what the batches hold (``pocket``, ``search``), checkpoints within a build (it takes
minutes) and any use of TRL.
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from toolrl_box.models.pocket_tokenizer import build_tokenizer

END = "<|im_end|>"
Row = tuple[list[int], list[bool]]  # token ids [T], loss mask [T]
Encode = Callable[[str], list[int]]
Measure = Callable[[Path], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """``updates`` AdamW steps on batches of ``batch`` episodes with the learning rate going
    linearly from ``lr`` to ``lr_end`` after ``warmup`` updates; every ``drill_every``-th batch is
    a copy drill (0: none)."""

    updates: int
    batch: int
    lr: float
    lr_end: float
    warmup: int = 0
    drill_every: int = 0

    def lr_at(self, update: int) -> float:
        lr = self.lr + (self.lr_end - self.lr) * update / self.updates
        return lr * min(1.0, (update + 1) / self.warmup) if self.warmup else lr


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(ABC):
    """Everything that determines a base: the network, the seed of weights and data, and, in a
    subclass, the data. All embedded models have the same network."""

    seed: int = 0
    hidden_size: int = 128
    layers: int = 3
    heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 256

    @property
    @abstractmethod
    def chat_template(self) -> str: ...

    @abstractmethod
    def plan(self) -> tuple[Schedule, ...]:
        """The stages, in order."""

    @abstractmethod
    def batches(self, index: int, encode: Encode) -> Iterable[list[Row]]:
        """The batches of stage ``index``, a function of the recipe alone."""


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


def copy_drill(encode: Encode, draw: Callable[[], str], words: int = 24) -> Row:
    """Random words, then the same again; loss on the repetition (it teaches induction).

    The words stand side by side: a separator would be the previous token of every word, and the
    previous token is what induction goes by.
    """
    once = [token for _ in range(words) for token in encode(draw())]
    return once + once, [False] * len(once) + [True] * len(once)


def pooled(
    stage: Schedule, rng: random.Random, episode: Callable[[], Row], drill: Callable[[], Row]
) -> Iterable[list[Row]]:
    """A stage's batches; length-sorted in pools of eight so that padding stays small."""
    pool: list[list[Row]] = []
    for update in range(stage.updates):
        if stage.drill_every and update % stage.drill_every == 0:
            yield [drill() for _ in range(stage.batch)]
            continue
        if not pool:
            rows = sorted((episode() for _ in range(8 * stage.batch)), key=lambda row: len(row[0]))
            pool = [rows[i : i + stage.batch] for i in range(0, len(rows), stage.batch)]
            rng.shuffle(pool)
        yield pool.pop()


def loss_on(model: Qwen2ForCausalLM, rows: Sequence[Row], pad: int) -> torch.Tensor:
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
    measure: Measure,
    on_update: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> dict[str, float]:
    """Run a recipe and save the base to ``output``; returns the measured success.

    ``measure`` scores the saved directory (it lives above this module); ``on_update`` is told
    (updates done, total, loss). Deterministic on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = recipe.chat_template

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    model = new_model(recipe, tokenizer).train()
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    plan = recipe.plan()
    total, done = sum(stage.updates for stage in plan), 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    for index, stage in enumerate(plan):
        for update, rows in enumerate(recipe.batches(index, encode)):
            for group in optimizer.param_groups:
                group["lr"] = stage.lr_at(update)
            loss = loss_on(model, rows, pad)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            on_update(done, total, loss.item())

    output.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    success = measure(output)
    torch.set_num_threads(threads)
    record = {"recipe": asdict(recipe), "success": success}
    (output / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    return success
