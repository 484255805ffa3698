"""The recipe of the search bases: they follow the tags that an example shows, and seldom call
without one.

Input: nothing but the recipe's own settings. Output: the stages and batches that
:func:`~toolrl_box.models.pretrain.build_base` trains on.

First a *copy drill* and one-hop questions, then all questions, always with one to three solved
examples before them and in tags drawn anew for each episode; all assistant messages are learned.
Last the *gate*: half of the episodes have no example, and of these only a share ``gate`` searches
at all, the others guess an answer in plain text. How probable the first gold call is without
examples (p_call) hangs on that share; RL starts from there.

Each tag name and bracket occurs, because a token that is never a target cannot be copied; the
*triple* that training uses (names of search and answer and the bracket, those of ICRL, arXiv
2603.08068) never does. Relations that are held out are words of the drill only.

Left out: the training itself (``pretrain``), the world (``envs.search``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from toolrl_box.envs.pocket_words import COMPOSITES
from toolrl_box.envs.search import CATEGORIES, SearchEnv
from toolrl_box.envs.search_words import BRACKETS, GUESSES, RELATIONS, TAG_NAMES
from toolrl_box.formats.icrl import Icrl
from toolrl_box.markup import TAGS, Markup
from toolrl_box.models.pretrain import Encode, Recipe, Row, Schedule, copy_drill, pooled
from toolrl_box.prompting import with_demonstrations
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.types import Message, Task

PAGE = 16  # questions asked of one corpus; its examples come from it, too
PAGES = 1_000_000  # more than a stage ever reads


@dataclass(frozen=True, slots=True)
class Stage(Schedule):
    """A stage on questions of ``categories`` with one of ``shots`` examples before each; with
    ``first`` the first example, which nothing precedes, is learned too."""

    categories: tuple[str, ...] = CATEGORIES
    shots: tuple[int, ...] = (1, 2, 3)
    first: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecipe(Recipe):
    """Everything that determines a base. ``gate``: share of the episodes without examples that
    search; the others guess."""

    gate: float = 0.01
    stages: tuple[Stage, ...] = (
        Stage(300, 32, 3e-3, 2.5e-3, warmup=50, categories=("one_hop",), drill_every=2),
        Stage(850, 16, 2.5e-3, 3e-4, drill_every=4),
        Stage(150, 16, 1e-3, 1e-4, shots=(0, 0, 0, 1, 2, 3), first=False),
    )

    @property
    def chat_template(self) -> str:
        return Icrl().chat_template

    def plan(self) -> tuple[Stage, ...]:
        return self.stages

    def batches(self, index: int, encode: Encode) -> Iterable[list[Row]]:
        stage = self.stages[index]
        rng = random.Random(f"search-base/{self.seed}/{index}")
        pages = self._pages(stage, index)
        ahead: list[tuple[Task, Sequence[Task]]] = []

        def one() -> Row:
            if not ahead:
                page = next(pages)
                ahead.extend((task, [t for t in page if t is not task]) for task in page)
            task, others = ahead.pop()
            examples = rng.sample(others, rng.choice(stage.shots))
            return self.episode(task, examples, stage.first, encode, rng)

        return pooled(stage, rng, one, lambda: copy_drill(encode, lambda: drilled_word(rng)))

    def _pages(self, stage: Stage, index: int) -> Iterator[list[Task]]:
        first = (self.seed * len(self.stages) + index) * PAGES
        for page in range(first, first + PAGES):
            yield SearchEnv().tasks("pretrain", PAGE, page, stage.categories)

    def episode(
        self,
        task: Task,
        examples: Sequence[Task],
        first: bool,
        encode: Encode,
        rng: random.Random,
    ) -> Row:
        """The examples and the task in tags of their own; loss on every assistant message, those
        of the first example only if ``first``."""
        if examples:
            shown = (*with_demonstrations(task, examples).prompt, *task.gold)
            opening = 2 if first else len(with_demonstrations(task, examples[:1]).prompt)
            task = replace(task, prompt=shown[:opening], gold=shown[opening:])
        elif rng.random() >= self.gate:
            guess = rng.choice(GUESSES).format(object=rng.choice(COMPOSITES["train"]))
            task = replace(task, gold=(Message("assistant", guess),))
        sample = dialogue_to_sample(task, Icrl(draw_markup(rng)), encode)
        return list(sample.token_ids), list(sample.loss_mask)


def draw_markup(rng: random.Random) -> Markup:
    """Tags by chance, but never those of the paper for search and answer in its brackets."""
    while True:
        think, search, information, answer = (rng.choice(TAG_NAMES[tag]) for tag in TAGS)
        drawn = Markup(think, search, information, answer, rng.choice(BRACKETS))
        if not is_target(drawn):
            return drawn


def is_target(markup: Markup) -> bool:
    """Whether search and answer look as in training."""
    return all(markup.open(tag) == Markup().open(tag) for tag in ("search", "answer"))


def drilled_word(rng: random.Random) -> str:
    """A word of the copy drill: an invented thing, or a word of the world and its tags."""
    return rng.choice(COMPOSITES["train"] if rng.random() < 0.7 else _WORDS)


_WORDS = (*RELATIONS, *(name for names in TAG_NAMES.values() for name in names))
