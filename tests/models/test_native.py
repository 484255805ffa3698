"""The model's own format: read from real templates, prefix-preserving, the same in SFT and RL.

Templates come from the installed TRL, on the pocket tokenizer with their tags added, so these tests
run everywhere; `make tokenizers` and `-m slow` show the same of the real tokenizers.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tests.models.real import KINDS, tokenizer_of
from toolrl_box.envs.pocket import make_tasks
from toolrl_box.errors import ConfigError, DataError, ModelError
from toolrl_box.models.pocket_tokenizer import build_tokenizer
from toolrl_box.native import Native, format_of, read_format
from toolrl_box.native.format import DIALECTS
from toolrl_box.probe.bank import SLOTS, build_bank
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.types import Message, ToolCall, ToolSpec

LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEMPLATES: dict[str, tuple[tuple[str, ...], str]] = {
    "qwen2_5": ((), "hermes"),
    "qwen3": (("<think>", "</think>"), "hermes"),
    "qwen3_instruct_2507": ((), "hermes"),
    "llama3_1": (LLAMA, "llama3"),
    "llama3_2": (LLAMA, "llama3"),
}
TOOL = ToolSpec("find", {"type": "object", "properties": {"q": {"type": "string"}}}, "Finds.")


@lru_cache
def templated(name: str) -> PreTrainedTokenizerBase:
    """The pocket tokenizer with a template that TRL ships."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(list(TEMPLATES[name][0]), special_tokens=True)
    if TEMPLATES[name][0] == LLAMA:
        tokenizer.bos_token = LLAMA[0]
    tokenizer.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text()
    return tokenizer


def encoder(tokenizer: PreTrainedTokenizerBase) -> Any:
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False))


words = st.text(st.sampled_from("abc é7\"{}[]'\n"), min_size=1, max_size=12).map(str.strip)
said = words.filter(bool).map(lambda text: Message("assistant", f"So {text}."))
value = st.one_of(
    words, st.integers(-99, 99), st.booleans(), st.none(), st.lists(words, max_size=2)
)
called = st.dictionaries(st.sampled_from(["q", "n"]), value, max_size=2).map(
    lambda arguments: Message("assistant", "", (ToolCall("find", arguments),))
)
result = words.map(lambda text: Message("tool", f"r {text}"))
asked = words.map(lambda text: Message("user", f"Ask {text}?"))
answered = st.one_of(st.tuples(said, asked), st.tuples(called, result))
dialogues = st.lists(answered, min_size=1, max_size=4).map(
    lambda pairs: [
        Message("system", "Be brief."),
        Message("user", "Begin."),
        *[message for pair in pairs for message in pair],
        Message("assistant", "Done."),
    ]
)


def holds(fmt: Native, dialogue: list[Message]) -> None:
    """The invariant of formats, in text: pieces make the whole, and every part begins it."""
    text = fmt.render(dialogue[:2], (TOOL,), generation_prompt=True)
    whole = fmt.render(dialogue, (TOOL,))
    for place in range(2, len(dialogue) - 1, 2):
        message = dialogue[place]
        written = fmt.render_message(message)
        assert fmt.parse(written).calls == message.tool_calls
        assert not fmt.parse(written).errors
        text += written + fmt.end_of_message + fmt.render_following([dialogue[place + 1]])
        assert text == fmt.render(dialogue[: place + 2], (TOOL,), generation_prompt=True)
        assert whole.startswith(text)
    closing = fmt.end_of_message + fmt.frame.closing
    assert whole == text + fmt.render_message(dialogue[-1]) + closing


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=15)
@given(dialogue=dialogues)
def test_every_dialogue_is_a_prefix_of_its_continuation(name: str, dialogue: list[Message]) -> None:
    fmt = read_format(templated(name))
    assert fmt.dialect.name == TEMPLATES[name][1]
    holds(fmt, dialogue)


@pytest.mark.slow  # loading the real ones takes seconds each
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=5)
@given(dialogue=dialogues)
def test_so_it_is_with_the_real_tokenizers(name: str, dialogue: list[Message]) -> None:
    holds(read_format(real(name)), dialogue)


@lru_cache
def real(name: str) -> PreTrainedTokenizerBase:
    return tokenizer_of(name)


@pytest.mark.slow  # loading the real ones takes seconds each
@pytest.mark.parametrize("name", KINDS)
def test_real_messages_end_with_one_token_and_gold_has_slots_for_its_calls(name: str) -> None:
    tokenizer = real(name)
    fmt, encode = read_format(tokenizer), encoder(real(name))
    assert len(encode(fmt.end_of_message)) == 1
    tasks = make_tasks("bank", 4, 0, ("base",))
    bank = build_bank(tasks, fmt, encode)
    slots = [SLOTS[slot] for slot in bank.slots_N]
    calls = sum(bool(m.tool_calls) for task in tasks for m in task.gold)
    opening = len(encode(fmt.call_start))
    assert calls <= slots.count("start_call_due") <= calls * opening
    assert slots.count("after_call") == calls
    text = fmt.render([*tasks[0].prompt, *tasks[0].gold], tasks[0].tools)
    ids = dialogue_to_sample(tasks[0], fmt, encode).token_ids
    assert list(ids) == encode(text)[: len(ids)]  # what a server would encode as a whole


@pytest.mark.parametrize("thinking", [True, False])
def test_what_supervision_shows_of_qwen3_is_what_sampling_meets(thinking: bool) -> None:
    tokenizer = templated("qwen3")
    fmt, encode = read_format(tokenizer, thinking), encoder(tokenizer)
    task = make_tasks("train", 1, 0, ("base",))[0]
    sample = dialogue_to_sample(task, fmt, encode)
    sampled_from = encode(fmt.render(task.prompt, task.tools, generation_prompt=True))
    assert list(sample.token_ids[: sample.prompt_length]) == sampled_from
    learned = [i for i, own in zip(sample.token_ids, sample.loss_mask, strict=True) if own]
    given = [i for i, own in zip(sample.token_ids, sample.loss_mask, strict=True) if not own]
    opening = tokenizer.convert_tokens_to_ids("<think>")
    messages = sum(message.role == "assistant" for message in task.gold)
    # A block for each message: the model's own when it thinks, a part of its prompt when not.
    assert (learned if thinking else given).count(opening) == messages
    assert (given if thinking else learned).count(opening) == 0
    assert fmt.thinks is thinking


def test_a_thought_is_no_part_of_the_text_and_hides_no_call() -> None:
    fmt = read_format(templated("qwen3"), thinking=True)
    call = fmt.render_message(Message("assistant", "", (ToolCall("find", {"q": "a"}),)))
    parsed = fmt.parse(call.replace("<think>\n", "<think>\nI look it up."))
    assert (parsed.text, [c.name for c in parsed.calls], parsed.errors) == ("", ["find"], ())


def test_the_date_in_a_prompt_is_the_same_every_day() -> None:
    text = read_format(templated("llama3_2")).render([Message("user", "Go.")], (TOOL,))
    assert "Today Date: 26 Jul 2024" in text


def test_thinking_is_refused_where_there_is_no_switch() -> None:
    with pytest.raises(ConfigError, match=r"model.thinking = False: the chat template has no"):
        format_of("native", templated("llama3_2"), thinking=False)
    with pytest.raises(ConfigError, match=r"format 'hermes' has no thinking blocks"):
        format_of("hermes", templated("qwen3"), thinking=True)


def test_a_template_that_cannot_serve_is_refused_with_its_reason() -> None:
    tokenizer = build_tokenizer()
    reasons = {
        "no chat template": None,
        "leaves out tool calls": "{%- for m in messages -%}<|im_start|>{{ m.role + '\n' }}"
        "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>"
        "{{ 'assistant\n' }}{% endif %}",
        "needs one special token that ends it": "{%- for m in messages -%}{{ m.content }}\n"
        "{% endfor %}",
    }
    for reason, template in reasons.items():
        tokenizer.chat_template = template
        with pytest.raises(ModelError, match=reason):
            read_format(tokenizer)


def test_calls_that_no_dialect_reads_are_refused() -> None:
    tokenizer = templated("qwen2_5")
    odd = build_tokenizer()
    odd.chat_template = str(tokenizer.chat_template).replace("<tool_call>", "~~")
    with pytest.raises(ModelError, match="which no dialect reads back; known are: hermes"):
        read_format(odd)
    assert "hermes" in DIALECTS


def test_the_bank_finds_a_call_whose_opening_is_fused_with_what_follows() -> None:
    tokenizer = templated("llama3_2")
    fmt, encode = read_format(tokenizer), encoder(tokenizer)
    tasks = make_tasks("bank", 4, 0, ("base",))
    slots = [SLOTS[slot] for slot in build_bank(tasks, fmt, encode).slots_N]
    calls = sum(bool(m.tool_calls) for task in tasks for m in task.gold)
    assert calls <= slots.count("start_call_due")
    assert slots.count("after_call") == calls


def test_llama_has_no_grammar_and_says_so() -> None:
    with pytest.raises(ConfigError, match="no grammar of calls in dialect 'llama3'"):
        _ = read_format(templated("llama3_2")).grammar
    assert read_format(templated("qwen2_5")).grammar.start is not None


def test_gold_that_a_template_cannot_write_is_refused() -> None:
    fmt = read_format(templated("llama3_2"))
    calls = (ToolCall("a", {}), ToolCall("b", {}))
    with pytest.raises(DataError, match="only supports single tool-calls"):
        fmt.render_message(Message("assistant", "", calls))
