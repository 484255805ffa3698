"""The data of the search bases' recipe: tags of its own, gated without examples."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from transformers import Qwen2Tokenizer

from toolrl_box.base import recipe_for
from toolrl_box.envs.search import SearchEnv
from toolrl_box.envs.search_words import BRACKETS, HELDOUT_RELATIONS, TAG_NAMES
from toolrl_box.errors import ConfigError
from toolrl_box.formats.icrl import Icrl
from toolrl_box.markup import TAGS, Markup
from toolrl_box.models.pocket import PocketRecipe
from toolrl_box.models.pretrain import build_base, copy_drill
from toolrl_box.models.search import SearchRecipe, Stage, draw_markup, drilled_word, is_target
from toolrl_box.types import Task

Encode = Callable[[str], list[int]]
SMALL = (
    Stage(6, 4, 1e-3, 1e-4, warmup=2, categories=("one_hop",), drill_every=3),
    Stage(4, 3, 1e-3, 1e-4, shots=(0, 1)),
)


@pytest.fixture(scope="module")
def page() -> list[Task]:
    return SearchEnv().tasks("pretrain", 4, 0)


def learned(row: tuple[list[int], list[bool]], tokenizer: Qwen2Tokenizer) -> str:
    return str(tokenizer.decode([i for i, kept in zip(*row, strict=True) if kept]))


def test_batches_are_a_function_of_the_recipe(encode: Encode) -> None:
    recipe = SearchRecipe(stages=SMALL)
    for index, stage in enumerate(recipe.plan()):
        once = list(recipe.batches(index, encode))
        assert once == list(recipe.batches(index, encode))
        assert once != list(replace(recipe, seed=1).batches(index, encode))
        assert [len(rows) for rows in once] == [stage.batch] * stage.updates


def test_neither_the_tags_of_training_nor_held_out_relations_are_taught(
    encode: Encode, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    recipe = SearchRecipe(gate=0.5)
    for rows in islice(recipe.batches(2, encode), 20):
        for ids, _ in rows:
            text = pocket_tokenizer.decode(ids)
            for relation in HELDOUT_RELATIONS:
                assert relation not in text
    drawn = [draw_markup(random.Random(seed)) for seed in range(400)]
    assert not any(map(is_target, drawn))
    assert is_target(Markup())
    assert {markup.brackets for markup in drawn} == set(BRACKETS)
    for tag in TAGS:
        assert {markup.names[tag] for markup in drawn} == set(TAG_NAMES[tag])


@pytest.mark.parametrize("first", [True, False])
def test_every_example_is_learned_the_first_only_where_it_is_meant_to_be(
    page: list[Task], encode: Encode, pocket_tokenizer: Qwen2Tokenizer, first: bool
) -> None:
    task, *examples = page[:3]
    row = SearchRecipe().episode(task, examples, first, encode, random.Random(0))
    fmt = Icrl(draw_markup(random.Random(0)))
    said = [
        fmt.render_message(message) + "<|im_end|>"
        for shown in ((*examples, task) if first else (examples[1], task))
        for message in shown.gold
        if message.role == "assistant"
    ]
    assert learned(row, pocket_tokenizer) == "".join(said)


def test_the_gate_is_the_share_that_searches_without_an_example(
    page: list[Task], encode: Encode, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    def searches(gate: float) -> int:
        recipe, rng = SearchRecipe(gate=gate), random.Random(0)
        rows = [recipe.episode(page[0], [], False, encode, rng) for _ in range(400)]
        texts = [learned(row, pocket_tokenizer) for row in rows]
        guesses = sum(text.startswith(("It is ", "I think it is ")) for text in texts)
        return len(texts) - guesses

    assert searches(0.0) == 0
    assert searches(0.25) == pytest.approx(100, abs=30)
    assert searches(1.0) == 400


def test_the_drill_has_every_word_of_the_tags_and_relations(encode: Encode) -> None:
    rng = random.Random(0)
    words = {drilled_word(rng) for _ in range(5000)}
    assert {*HELDOUT_RELATIONS, *(names[0] for names in TAG_NAMES.values())} <= words
    ids, mask = copy_drill(encode, lambda: drilled_word(rng))
    assert ids[: len(ids) // 2] == ids[len(ids) // 2 :]
    assert sum(mask) == len(ids) // 2


def test_a_miniature_recipe_runs_and_has_the_network_of_the_other_base(
    tmp_path: Path, tiny_recipe: PocketRecipe
) -> None:
    sizes = {name: getattr(tiny_recipe, name) for name in ("hidden_size", "layers", "head_dim")}
    recipe = replace(SearchRecipe(stages=SMALL), **sizes)
    losses: list[float] = []
    build_base(recipe, tmp_path, lambda _: {}, lambda done, total, loss: losses.append(loss))
    assert len(losses) == sum(stage.updates for stage in SMALL)
    assert "<think>" in (tmp_path / "chat_template.jinja").read_text()
    shared = ("hidden_size", "layers", "heads", "head_dim", "intermediate_size")
    for name in shared:
        assert getattr(SearchRecipe(), name) == getattr(PocketRecipe(), name)


def test_a_worlds_recipe_has_a_knob_of_its_own() -> None:
    assert recipe_for("pocket", 3, noise=0.0) == PocketRecipe(seed=3, noise=0.0)
    assert recipe_for("search", 3, gate=0.5) == SearchRecipe(seed=3, gate=0.5)
    assert recipe_for("search", 0) == SearchRecipe()
    narrow = PocketRecipe(hidden_size=96, intermediate_size=192)
    assert recipe_for("pocket", 0, width=96) == narrow
    with pytest.raises(ConfigError, match=r"--gate 0\.5: the recipe of world 'pocket' has no gate"):
        recipe_for("pocket", 0, gate=0.5)
    with pytest.raises(ConfigError, match=r"unknown world 'serch'; did you mean 'search'\?"):
        recipe_for("serch", 0)
