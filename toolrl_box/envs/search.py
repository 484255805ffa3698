"""The search world: questions that only a corpus can answer, one or two look-ups away.

Job: make seeded tasks and run episodes on them, with a lexical search engine (BM25, the best three
documents) behind ``search(query)``. An answer is a call of ``answer(answer)`` and ends the
episode, so every tool format can play here; ``icrl`` writes both as the paper's tags (ICRL, arXiv
2603.08068). Output: :class:`~toolrl_box.types.Task` with a gold dialogue whose results come from
executing its searches.

The embedded corpus is random facts about invented things ("the capital of kalo is mizo."), drawn
from the seed. Questions of ``train``, ``heldout`` and ``bank`` ask for different facts of one
corpus; ``ood`` has its own things and relations, which occur nowhere else; ``pretrain`` has a new
corpus every few questions, so that nothing in it is worth knowing by heart.

With ``corpus`` and ``questions`` the same class plays a user's files (see ``search_files``).
Questions are split at random, the same way under every seed; their gold dialogue is one search for
the question itself and then the first answer.

An episode ends with an answer, with a message that calls nothing, or with one search too many.
Its figures: ``accuracy`` = ``success`` (normalised exact match with any answer), ``valid_calls``
(searches that were executed), ``format`` (the paper's format score).

Left out: dense retrieval, snippets of long documents, and F1.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from toolrl_box.answers import format_score, matches
from toolrl_box.envs.pocket_words import COMPOSITES
from toolrl_box.envs.search_files import Question, read_corpus, read_questions
from toolrl_box.envs.search_words import (
    BAD_CALL,
    FACT,
    HELDOUT_RELATIONS,
    LOOK_UP,
    NOTHING,
    ONE_HOP,
    QUERY,
    SYSTEM,
    THOUGHTS,
    TRAINED_RELATIONS,
    TWO_HOP,
)
from toolrl_box.errors import ConfigError, unknown
from toolrl_box.types import Message, Parsed, Step, Task, ToolCall, ToolSpec

if TYPE_CHECKING:
    import bm25s

CATEGORIES = ("one_hop", "two_hop")
SPLITS = ("pretrain", "train", "heldout", "bank", "ood")
OWN_CATEGORIES, OWN_SPLITS = ("question",), ("train", "heldout", "bank")
# Which part of the facts (or of a user's questions) each split asks for.
PARTS: Mapping[str, tuple[float, float]] = {
    "train": (0.0, 0.7), "heldout": (0.7, 0.9), "bank": (0.9, 1.0),
    "pretrain": (0.0, 1.0), "ood": (0.0, 1.0),
}  # fmt: skip
RELATIONS_PER_THING = 4
PRETRAIN_THINGS, PRETRAIN_PAGE = 32, 16  # things in a pre-training corpus, questions asked of it


def _tool(name: str, argument: str) -> ToolSpec:
    properties = {argument: {"type": "string"}}
    return ToolSpec(
        name, {"type": "object", "properties": properties, "required": list(properties)}
    )


TOOLS = (_tool("search", "query"), _tool("answer", "answer"))


# --- the search engine ----------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class Library:
    """Documents and a BM25 index over them, made when it is first searched."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._documents = documents

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(word for document in self._documents for word in words(document))

    @cached_property
    def _index(self) -> bm25s.BM25:
        import bm25s  # loads numba where it is installed, beside which vLLM 0.32 cannot start

        index = bm25s.BM25()
        index.index([words(document) for document in self._documents], show_progress=False)
        return index

    def search(self, query: str, results: int) -> list[str]:
        """Up to ``results`` documents that share a word with ``query``, best first."""
        asked = [word for word in words(query) if word in self._known]
        if not asked:
            return []
        count = min(results, len(self._documents))
        found, scores = self._index.retrieve([asked], k=count, show_progress=False)
        pairs = zip(found[0], scores[0], strict=True)
        return [self._documents[place] for place, score in pairs if score > 0]


# --- the embedded corpus --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fact:
    relation: str
    subject: str
    object: str

    def __str__(self) -> str:
        return FACT.format(relation=self.relation, subject=self.subject, object=self.object)


@lru_cache(maxsize=16)
def facts(corpus: str) -> tuple[Fact, ...]:
    """The facts of an embedded corpus by its name, ``<split side>/<seed>/<page>``, in random
    order. No relation leads two subjects to one object, so three results are always enough."""
    side = corpus.split("/")[0]
    rng = random.Random(f"search/{corpus}")
    things = list(COMPOSITES["ood" if side == "ood" else "train"])
    if side == "pretrain":
        things = rng.sample(things, PRETRAIN_THINGS)
    relations = HELDOUT_RELATIONS if side == "ood" else TRAINED_RELATIONS
    objects: dict[tuple[str, str], str] = {}
    for relation in relations:
        rng.shuffle(things)
        for subject, successor in zip(things, [*things[1:], things[0]], strict=True):
            objects[relation, subject] = successor
    drawn = [
        Fact(relation, subject, objects[relation, subject])
        for subject in things
        for relation in rng.sample(relations, RELATIONS_PER_THING)
    ]
    rng.shuffle(drawn)
    return tuple(drawn)


@lru_cache(maxsize=16)
def embedded_library(corpus: str) -> Library:
    return Library([str(fact) for fact in facts(corpus)])


Hops = tuple[Fact, ...]


@lru_cache(maxsize=64)
def chains(corpus: str, split: str, category: str) -> tuple[Hops, ...]:
    """Everything that ``split`` can ask of a corpus in ``category``, in random order."""
    known = facts(corpus)
    start, stop = (round(share * len(known)) for share in PARTS[split])
    found: list[Hops] = [(fact,) for fact in known[start:stop]]
    if category == "two_hop":
        after: dict[str, list[Fact]] = {}
        for fact in known:
            after.setdefault(fact.subject, []).append(fact)
        # Not back to where the question starts: the answer would stand in it.
        found = [
            (first, then)
            for (first,) in found
            for then in after[first.object]
            if then.object != first.subject
        ]
    random.Random(f"search/{corpus}/{split}/{category}").shuffle(found)
    return tuple(found)


def _corpus_of(split: str, seed: int, index: int) -> str:
    if split == "pretrain":
        return f"pretrain/{seed}/{index // PRETRAIN_PAGE}"
    return f"{'ood' if split == 'ood' else 'train'}/{seed}/0"


def _ask(hops: Hops, rng: random.Random) -> str:
    template = rng.choice(ONE_HOP if len(hops) == 1 else TWO_HOP)
    return template.format(
        relation=hops[0].relation, second=hops[-1].relation, subject=hops[0].subject
    )


# --- the world ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchEnv:
    """``corpus`` and ``questions``: files of the user's own, both or neither; ``results``:
    documents per search; ``max_searches`` per episode."""

    corpus: str = ""
    questions: str = ""
    results: int = 3
    max_searches: int = 6

    def __post_init__(self) -> None:
        if bool(self.corpus) != bool(self.questions):
            missing = "env.questions" if self.corpus else "env.corpus"
            raise ConfigError(f"env.corpus and env.questions belong together; {missing} is missing")
        for name, value in (("results", self.results), ("max_searches", self.max_searches)):
            if value < 1:
                raise ConfigError(f"env.{name} = {value}: must be at least 1")

    @property
    def splits(self) -> tuple[str, ...]:
        return OWN_SPLITS if self.questions else SPLITS

    @property
    def categories(self) -> tuple[str, ...]:
        return OWN_CATEGORIES if self.questions else CATEGORIES

    @property
    def train_categories(self) -> tuple[str, ...]:
        return self.categories

    @property
    def formats(self) -> tuple[str, ...]:
        return ("icrl", "hermes", "pythonic", "xml")

    def __call__(self) -> SearchEpisode:
        return SearchEpisode(self)

    def library(self, corpus: str) -> Library:
        """The documents that a task's ``target["corpus"]`` names; a user's have no name."""
        return embedded_library(corpus) if corpus else self._own_library

    def tasks(
        self, split: str, count: int, seed: int, categories: Sequence[str] | None = None
    ) -> list[Task]:
        """See :class:`~toolrl_box.types.World`."""
        wanted = self.train_categories if categories is None else categories
        for category in wanted:
            if category not in self.categories:
                raise unknown("category", category, self.categories)
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        if self.questions:
            return [self._own_task(split, question) for question in self._pick(split, count, seed)]
        asked: Counter[tuple[str, str]] = Counter()
        made = []
        for index in range(count):
            category = wanted[index % len(wanted)]
            corpus = _corpus_of(split, seed, index)
            pool = chains(corpus, split, category)
            place = asked[corpus, category]
            if place == len(pool):
                raise ConfigError(
                    f"the embedded corpus has {len(pool)} questions of category '{category}' for "
                    f"split '{split}'; {count} tasks ask for more"
                )
            asked[corpus, category] += 1
            made.append(self._task(f"{split}-{seed}-{index}", category, corpus, pool[place]))
        return made

    def _task(self, key: str, category: str, corpus: str, hops: Hops) -> Task:
        rng = random.Random(f"search/{key}/{category}")
        searches = []
        for fact in hops:
            slots = {"relation": fact.relation, "subject": fact.subject}
            searches.append((THOUGHTS["search"].format(**slots), QUERY.format(**slots)))
        known = THOUGHTS["answer"].format(relation=hops[-1].relation)
        answers = (hops[-1].object,)
        return self._solved(key, category, corpus, _ask(hops, rng), searches, known, answers)

    def _own_task(self, split: str, asked: Question) -> Task:
        searches = [(LOOK_UP["search"], asked.question)]
        key, category = f"{split}-{asked.id}", OWN_CATEGORIES[0]
        known = LOOK_UP["answer"]
        return self._solved(key, category, "", asked.question, searches, known, asked.answers)

    def _solved(
        self,
        key: str,
        category: str,
        corpus: str,
        question: str,
        searches: Sequence[tuple[str, str]],
        known: str,
        answers: Sequence[str],
    ) -> Task:
        """The task, its gold dialogue played: (thought, query) pairs, then the first answer."""
        gold: list[Message] = []
        for thought, query in searches:
            gold.append(Message("assistant", thought, (ToolCall("search", {"query": query}),)))
            gold.append(Message("tool", _told(self.library(corpus).search(query, self.results))))
        gold.append(Message("assistant", known, (ToolCall("answer", {"answer": answers[0]}),)))
        return Task(
            id=key,
            category=category,
            tools=TOOLS,
            prompt=(Message("system", SYSTEM), Message("user", question)),
            gold=tuple(gold),
            target={"answers": list(answers), "corpus": corpus},
        )

    def _pick(self, split: str, count: int, seed: int) -> list[Question]:
        # Which part a question is in does not hang on the seed: no seed trains on what another
        # evaluates.
        shuffled = list(self._own_questions)
        random.Random("search").shuffle(shuffled)
        start, stop = (round(share * len(shuffled)) for share in PARTS[split])
        part = shuffled[start:stop]
        if count > len(part):
            raise ConfigError(
                f"{self.questions} has {len(part)} questions for split '{split}' (of "
                f"{len(shuffled)}: 70% train, 20% heldout, 10% bank); {count} were asked for"
            )
        random.Random(f"search/{seed}").shuffle(part)
        return part[:count]

    @cached_property
    def _own_questions(self) -> list[Question]:
        return read_questions(Path(self.questions))

    @cached_property
    def _own_library(self) -> Library:
        return Library(read_corpus(Path(self.corpus)))


def _told(documents: Sequence[str]) -> str:
    return "\n".join(documents) or NOTHING


class SearchEpisode:
    """One episode. Implements :class:`~toolrl_box.types.Environment`."""

    def __init__(self, world: SearchEnv) -> None:
        self._world = world

    def reset(self, task: Task) -> tuple[Message, ...]:
        self._answers: Sequence[str] = task.target["answers"]
        self._library = self._world.library(task.target["corpus"])
        self._messages: list[Parsed] = []
        self._searches = 0
        return task.prompt

    def step(self, message: Parsed) -> Step:
        self._messages.append(message)
        answers = [call for call in message.calls if call.name == "answer"]
        if answers:
            said = answers[0].arguments.get("answer", "")
            return self._end("answered", matches(str(said), self._answers))
        if message.blocks == 0:
            return self._end("no_call")
        told: list[str] = []
        for call in message.calls:
            query = call.arguments.get("query")
            if call.name != "search" or not isinstance(query, str) or not query.strip():
                told.append(BAD_CALL)
                continue
            if self._searches == self._world.max_searches:
                return self._end("max_searches")
            self._searches += 1
            told.append(_told(self._library.search(query, self._world.results)))
        told += [BAD_CALL] * (message.blocks - len(told))
        return Step(tuple(Message("tool", text) for text in told))

    def _end(self, reason: str, right: bool = False) -> Step:
        outcome = {
            "success": float(right),
            "accuracy": float(right),
            "valid_calls": float(self._searches),
            "format": format_score(self._messages),
        }
        return Step((), True, reason, outcome)
