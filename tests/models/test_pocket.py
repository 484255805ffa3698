"""The embedded model: its tokenizer, the data of its recipe, and a recipe in miniature."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM, Qwen2Tokenizer

from toolrl_box.envs.pocket import CATEGORIES, make_tasks
from toolrl_box.envs.pocket_words import COMPOSITES, KINDS, SYLLABLES, TOOLS
from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.formats import FORMATS
from toolrl_box.models import load_model
from toolrl_box.models.pocket import PocketRecipe, Stage, break_message, drilled_word, episode
from toolrl_box.models.pocket_tokenizer import SPECIAL, TAGS, build_tokenizer, pieces
from toolrl_box.models.pretrain import build_base, copy_drill, loss_on, new_model
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.types import Message, Task, ToolCall, ToolFormat

Encode = Callable[[str], list[int]]
CALL = Message("assistant", "", (ToolCall("book_room", {"city": "oslo", "day": "friday"}),))
TEXT = Message("assistant", "That is done.")
TASKS = make_tasks("train", 24, 0, CATEGORIES)


def whole(task: Task, fmt: ToolFormat) -> str:
    return fmt.render([*task.prompt, *task.gold], task.tools)


# --- tokenizer ------------------------------------------------------------------------------


@given(text=st.text(max_size=40))
def test_any_text_goes_in_and_comes_out_up_to_nfc(
    pocket_tokenizer: Qwen2Tokenizer, text: str
) -> None:
    ids = pocket_tokenizer.encode(text, add_special_tokens=False)
    assert pocket_tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@given(parts=st.lists(st.sampled_from([*SPECIAL, *TAGS, *pieces(), "x", " ", "\n", "é"])))
def test_any_concatenation_of_its_pieces_survives(
    pocket_tokenizer: Qwen2Tokenizer, parts: list[str]
) -> None:
    text = "".join(parts)
    ids = pocket_tokenizer.encode(text, add_special_tokens=False)
    assert pocket_tokenizer.decode(ids) == text


def test_every_value_tool_and_control_token_is_one_token(encode: Encode) -> None:
    values = [word for kind in KINDS.values() for word in kind]
    tools = [row.name for row in TOOLS]
    params = [param for row in TOOLS for param in row.params]
    control = [piece for fmt in FORMATS.values() for piece in fmt.control_tokens]
    control.remove('", ')  # a Python-like call's: the tokenizer writes the quote by itself
    for word in [*values, *tools, *params, *control, *SPECIAL, *TAGS, *SYLLABLES]:
        assert len(encode(word)) == 1, word


def test_a_composite_is_its_two_syllables(encode: Encode) -> None:
    for side in COMPOSITES.values():
        for composite in side:
            assert len(encode(composite)) == 2, composite


def test_no_word_of_a_text_tears_a_value(encode: Encode) -> None:
    values = [word for kind in KINDS.values() for word in kind]
    for value in (*values, *(row.name for row in TOOLS)):
        for before in (" ", '"', "\n", "("):
            assert encode(f"{before}{value}.")[-2:] == [*encode(value), *encode(".")], value


def test_control_tokens_stand_alone_in_a_dialogue(
    encode: Encode, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    for fmt in FORMATS.values():
        message = fmt.render_message(CALL)
        tokens = [pocket_tokenizer.decode([i]) for i in encode(message)]
        assert tokens[0] == fmt.call_start
        assert tokens[-1] == fmt.call_end


def test_padding_is_not_the_end_of_a_message(pocket_tokenizer: Qwen2Tokenizer) -> None:
    named = (pocket_tokenizer.pad_token, pocket_tokenizer.eos_token)
    assert named == ("<|endoftext|>", "<|im_end|>")
    assert pocket_tokenizer.pad_token_id != pocket_tokenizer.eos_token_id


def test_the_tokenizer_is_the_same_every_time(pocket_tokenizer: Qwen2Tokenizer) -> None:
    assert build_tokenizer().get_vocab() == pocket_tokenizer.get_vocab()


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_gold_ids_decode_to_the_rendered_dialogue(
    fmt: ToolFormat, encode: Encode, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    for task in TASKS:
        ids = dialogue_to_sample(task, fmt, encode).token_ids
        assert pocket_tokenizer.decode(list(ids)) == whole(task, fmt).removesuffix("\n")


def test_transformers_reloads_the_same_segmentation_beside_a_qwen2_model(
    tmp_path: Path, tiny_model: Qwen2ForCausalLM, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    """The trap: any tokenizer beside a Qwen2 model is loaded as a Qwen2Tokenizer."""
    tiny_model.save_pretrained(tmp_path)
    pocket_tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(reloaded) is Qwen2Tokenizer
    assert reloaded.get_vocab() == pocket_tokenizer.get_vocab()
    texts = [whole(task, fmt) for task in TASKS for fmt in FORMATS.values()]
    for text in [*texts, "naïve ‘text’ kalo7 \t  <tool_call", "a<|im_end|>b", "gofi_tool"]:
        ids = pocket_tokenizer.encode(text, add_special_tokens=False)
        assert reloaded.encode(text, add_special_tokens=False) == ids
        assert reloaded.decode(ids) == text
    assert (reloaded.pad_token_id, reloaded.eos_token_id) == (
        pocket_tokenizer.pad_token_id,
        pocket_tokenizer.eos_token_id,
    )


# --- the recipe's data ----------------------------------------------------------------------


def shares(message: Message, fmt: ToolFormat, draws: int = 4000) -> dict[str, float]:
    """How often :func:`break_message` does what."""
    text, rng = fmt.render_message(message), random.Random(0)
    counted = Counter(kind(break_message(text, fmt, rng), text, fmt) for _ in range(draws))
    return {name: count / draws for name, count in counted.items()}


def kind(broken: str, text: str, fmt: ToolFormat) -> str:
    parsed = fmt.parse(broken)
    if broken == "":
        return "empty"
    if broken == fmt.call_start:
        return "opening tag"
    if parsed.calls:
        return "call" if broken.endswith(fmt.call_end) and not parsed.errors else "polluted"
    if broken + fmt.call_end in (text, text.replace("\n" + fmt.call_end, fmt.call_end)):
        return "unclosed"
    if fmt.call_start + broken in (text, text.replace(fmt.call_start + "\n", fmt.call_start)):
        return "unopened"
    if [word for word in broken.split(" ") if word not in (fmt.call_start, fmt.call_end)] == (
        text.split(" ")
    ):
        return "stray tag"
    return "reply"


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_a_due_call_is_broken_in_the_documented_shares(fmt: ToolFormat) -> None:
    assert shares(CALL, fmt) == pytest.approx(
        {"unclosed": 0.30, "opening tag": 0.20, "unopened": 0.15, "reply": 0.35}, abs=0.03
    )


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_a_due_text_is_broken_in_the_documented_shares(fmt: ToolFormat) -> None:
    assert shares(TEXT, fmt) == pytest.approx(
        {"stray tag": 0.35, "opening tag": 0.20, "empty": 0.15, "call": 0.30}, abs=0.03
    )


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_text_after_a_closed_call_is_never_planted(fmt: ToolFormat) -> None:
    rng = random.Random(1)
    for message in (CALL, TEXT):
        for _ in range(1000):
            broken = break_message(fmt.render_message(message), fmt, rng)
            parsed = fmt.parse(broken)
            assert not parsed.blocks or broken.endswith(fmt.call_end)
            assert not parsed.calls or parsed.text == ""


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_an_episode_without_noise_is_the_gold_sample(fmt: ToolFormat, encode: Encode) -> None:
    for task in TASKS:
        ids, mask = episode(task, fmt, encode, 0.0, random.Random(0))
        sample = dialogue_to_sample(task, fmt, encode)
        assert (tuple(ids), tuple(mask)) == (sample.token_ids, sample.loss_mask)


def test_an_episode_ends_with_its_first_broken_message(encode: Encode) -> None:
    fmt = FORMATS["hermes"]
    for task in TASKS:
        ids, mask = episode(task, fmt, encode, 1.0, random.Random(0))
        sample = dialogue_to_sample(task, fmt, encode)
        assert ids[: sample.prompt_length] == list(sample.token_ids[: sample.prompt_length])
        assert mask == [False] * sample.prompt_length + [True] * (len(ids) - sample.prompt_length)
        assert ids[-1:] == encode("<|im_end|>")


def test_the_copy_drill_learns_only_the_repetition(encode: Encode) -> None:
    ids, mask = copy_drill(encode, partial(drilled_word, random.Random(0)))
    half = len(ids) // 2
    assert ids[:half] == ids[half:]
    assert mask == [False] * half + [True] * half


SMALL = (
    Stage(6, 4, 1e-3, 1e-4, warmup=2, turns=(1,), tools=3, drill_every=3),
    Stage(5, 3, 1e-3, 1e-4),
)


def test_batches_are_a_function_of_the_recipe(encode: Encode) -> None:
    recipe = PocketRecipe(stages=SMALL)
    for index, stage in enumerate(recipe.plan()):
        once = list(recipe.batches(index, encode))
        assert once == list(recipe.batches(index, encode))
        assert once != list(replace(recipe, seed=1).batches(index, encode))
        assert [len(rows) for rows in once] == [stage.batch] * stage.updates


def test_the_noisy_and_the_clean_recipe_take_the_same_updates() -> None:
    noisy, clean = PocketRecipe(noise=0.1).plan(), PocketRecipe(noise=0.0).plan()
    assert [replace(stage, noise=0.0) for stage in noisy] == list(clean)
    assert [stage.noise for stage in noisy] == [0.0] * (len(noisy) - 1) + [0.1]


def test_noise_leaves_the_stages_before_the_last_alone(encode: Encode) -> None:
    noisy, clean = PocketRecipe(noise=0.5, stages=SMALL), PocketRecipe(noise=0.0, stages=SMALL)
    first = [list(r.batches(0, encode)) for r in (noisy, clean)]
    last = [list(r.batches(1, encode)) for r in (noisy, clean)]
    assert first[0] == first[1]
    assert last[0] != last[1]


def test_the_tasks_of_the_base_are_none_of_the_laboratory(encode: Encode) -> None:
    recipe = PocketRecipe(hints=0.0)
    rows = {tuple(ids) for batch in islice(recipe.batches(2, encode), 40)
            for ids, _ in batch}  # fmt: skip
    for split in ("train", "heldout", "bank"):
        for task in make_tasks(split, 100, 0, CATEGORIES):
            for fmt in FORMATS.values():
                assert dialogue_to_sample(task, fmt, encode).token_ids not in rows


def test_the_learning_rate_warms_up_and_goes_down_linearly() -> None:
    stage = Stage(100, 1, 1.0, 0.5, warmup=10)
    assert stage.lr_at(0) == pytest.approx(0.1)
    assert stage.lr_at(50) == pytest.approx(0.75)
    assert stage.lr_at(99) == pytest.approx(0.505)


# --- training and loading -------------------------------------------------------------------


def test_the_loss_is_the_mean_over_learned_tokens_and_ignores_padding(
    tiny_model: Qwen2ForCausalLM,
) -> None:
    rows = [([5, 6, 7, 8], [False, False, True, True]), ([9, 10, 11], [False, True, False])]
    nll = []
    for ids, mask in rows:
        logprobs = tiny_model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        nll += [-logprobs[i - 1, ids[i]] for i in range(1, len(ids)) if mask[i]]
    expected = torch.stack(nll).mean()
    for pad in (0, 3):
        torch.testing.assert_close(loss_on(tiny_model, rows, pad), expected)


def miniature(folder: Path, recipe: PocketRecipe) -> list[float]:
    losses: list[float] = []
    figures = build_base(
        replace(recipe, stages=SMALL),
        folder,
        measure=lambda path: {"greedy": float((path / "model.safetensors").is_file())},
        on_update=lambda done, total, loss: losses.append(loss),
    )
    assert figures == {"greedy": 1.0}
    return losses


def test_a_miniature_recipe_runs_saves_and_reloads(
    tmp_path: Path, tiny_recipe: PocketRecipe, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    threads = torch.get_num_threads()
    losses = miniature(tmp_path / "a", tiny_recipe)
    assert len(losses) == sum(stage.updates for stage in SMALL)
    assert torch.get_num_threads() == threads
    record = json.loads((tmp_path / "a" / "recipe.json").read_text())
    assert record["success"] == {"greedy": 1.0}
    assert record["recipe"]["hidden_size"] == tiny_recipe.hidden_size
    assert not list((tmp_path / "a").glob("*.bin"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert type(reloaded) is Qwen2ForCausalLM
    head, embedding = reloaded.get_output_embeddings(), reloaded.get_input_embeddings()
    assert head.weight is not embedding.weight

    assert miniature(tmp_path / "b", tiny_recipe) == losses
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]

    loaded = load_model(str(tmp_path / "a"))
    assert loaded.tokenizer.pad_token_id == pocket_tokenizer.pad_token_id
    assert {loaded.tokenizer.decode([i]) for i in loaded.stop_ids} == {
        "<|im_end|>",
        "<|endoftext|>",
    }


def test_new_weights_are_a_function_of_the_seed(
    tiny_recipe: PocketRecipe, pocket_tokenizer: Qwen2Tokenizer
) -> None:
    first, again, other = (
        new_model(recipe, pocket_tokenizer).lm_head.weight
        for recipe in (tiny_recipe, tiny_recipe, replace(tiny_recipe, seed=1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_default_model_has_the_size_that_is_promised(pocket_tokenizer: Qwen2Tokenizer) -> None:
    model = new_model(PocketRecipe(), pocket_tokenizer)
    assert 600_000 <= model.num_parameters() <= 2_000_000


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("pockt", ConfigError, r"unknown model 'pockt'; did you mean 'pocket'\? one of: pocket"),
        ("EMPTY", ModelError, r"is no Hugging Face model folder: config.json is missing"),
        ("nobody/nothing", ModelError, r"cannot load model 'nobody/nothing'"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(
    name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as raised:
        load_model(str(tmp_path) if name == "EMPTY" else name)
    assert "\n" not in str(raised.value)
