"""A bank is made from anybody's dialogues: the template itself says how calls are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from itertools import groupby
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import AddedToken
from transformers import Qwen2Tokenizer

from toolrl_box.envs.pocket import CATEGORIES, make_tasks
from toolrl_box.errors import DataError, ModelError
from toolrl_box.formats import FORMATS, to_chat, to_tools
from toolrl_box.models.pocket_tokenizer import build_tokenizer
from toolrl_box.probe.bank import SLOTS, Bank, build_bank
from toolrl_box.probe.chat import bank_of_chats, without_none
from toolrl_box.probe.markup import given_markup, read_markup
from toolrl_box.types import ToolFormat

TASKS = make_tasks("bank", 12, 0, CATEGORIES)
ROWS = [
    {"messages": to_chat([*task.prompt, *task.gold]), "tools": to_tools(task.tools)}
    for task in TASKS
]
CALL = {"type": "function", "function": {"name": "book_room", "arguments": {"city": "oslo"}}}
ROW: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Book a room."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "That is done."},
    ],
    "tools": to_tools(TASKS[0].tools),
}

# In the style of Mistral's: a tag opens a call, a bracket closes it, no generation prompt.
MISTRAL = """
{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}[INST] {{ m.content }}[/INST]
{%- elif m.role == 'tool' -%}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]
{%- elif m.tool_calls -%}[TOOL_CALLS] [
{%- for c in m.tool_calls -%}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments
| tojson }}, "id": "{{ c.id }}"}{{ ", " if not loop.last }}{%- endfor -%}]<|im_end|>
{%- else %} {{ m.content }}<|im_end|>{%- endif -%}
{%- endfor -%}
"""
# In the style of Llama 3: no tag at all, a call is bare JSON.
LLAMA = """
{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>{% endif -%}
{%- for m in messages -%}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n
{%- if m.tool_calls -%}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{
m.tool_calls[0].function.arguments | tojson }}}
{%- else -%}{{ m.content }}{%- endif -%}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}
"""
HERMES = FORMATS["hermes"].chat_template
# As Qwen3's: an empty thinking block in front of every message.
THINKING = HERMES.replace(
    "{{- '<|im_start|>' + message.role + '\\n' -}}",
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.role == 'assistant' -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}",
)
PLAIN = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def real_template(file: str) -> str:
    """Of a released model, as TRL ships it."""
    return (files("trl") / "chat_templates" / f"{file}.jinja").read_text(encoding="utf-8")


def tokenizer_with(template: str | None) -> Qwen2Tokenizer:
    tokenizer = build_tokenizer()
    tags = ("[TOOL_CALLS]", "[INST]", "[/INST]", "<think>", "</think>", "<|eot_id|>")
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    tokenizer.chat_template = template
    return tokenizer


def bank_with(template: str | None, *rows: Any) -> tuple[Bank, Qwen2Tokenizer]:
    tokenizer = tokenizer_with(template)
    named = [(f"dialogue {number}", row) for number, row in enumerate(rows)]
    return bank_of_chats(named, tokenizer, read_markup(tokenizer)), tokenizer


def told(bank: Bank, tokenizer: Qwen2Tokenizer, row: int = 0) -> list[tuple[str, str]]:
    """Each slot of a dialogue in order, and the text in it."""
    places = zip(bank.rows_N, bank.columns_N, bank.slots_N, strict=True)
    named = [(SLOTS[s], bank.sequences[r][c]) for r, c, s in places if r == row]
    return [
        (slot, tokenizer.decode([token for _, token in group]))
        for slot, group in groupby(named, key=lambda pair: pair[0])
    ]


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_the_bank_of_rendered_dialogues_is_the_one_that_our_formats_write(
    fmt: ToolFormat, encode: Callable[[str], list[int]]
) -> None:
    ours = build_bank(TASKS, fmt, encode)
    bank, _ = bank_with(fmt.chat_template, *ROWS)
    assert bank.sequences == ours.sequences
    assert (bank.rows_N, bank.columns_N) == (ours.rows_N, ours.columns_N)
    assert bank.slots_N == ours.slots_N
    assert bank.first_calls == ours.first_calls


def test_a_template_shows_its_mark_up() -> None:
    shown = {
        name: read_markup(tokenizer_with(template))
        for name, template in {
            **{name: fmt.chat_template for name, fmt in FORMATS.items()},
            **{"mistral": MISTRAL, "llama": LLAMA, "thinking": THINKING},
        }.items()
    }
    assert {name: (m.opening, m.closing) for name, m in shown.items()} == {
        "hermes": ("<tool_call>", "</tool_call>"),
        "xml": ("<tool_call>", "</tool_call>"),
        "pythonic": ("[", "]"),
        "mistral": ("[TOOL_CALLS]", "]"),
        "llama": ("{", "}"),
        "thinking": ("<tool_call>", "</tool_call>"),
    }
    assert [name for name, markup in shown.items() if not markup.tagged] == ["pythonic", "llama"]
    assert list(shown["hermes"].control)[:3] == ["<tool_call>", "</tool_call>", "<|im_end|>"]
    assert {"<|im_start|>", "<tool_response>"} < shown["hermes"].control.keys()
    assert {"<function=", "</parameter>"} < shown["xml"].control.keys()
    assert "[TOOL_CALLS]" in shown["mistral"].control


@pytest.mark.parametrize(
    ("file", "opening", "closing"),
    [
        ("qwen2_5", "<tool_call>", "</tool_call>"),
        ("qwen3_training", "<tool_call>", "</tool_call>"),
        ("qwen3_5_nothink", "<tool_call>", "</tool_call>"),
        ("llama3_1", "{", "}"),
    ],
)
def test_real_templates_show_their_mark_up(file: str, opening: str, closing: str) -> None:
    tokenizer = tokenizer_with(real_template(file))
    markup = read_markup(tokenizer)
    assert (markup.opening, markup.closing) == (opening, closing)
    # After a word of thought, where the template lets one stand there, the call begins.
    bank = bank_of_chats([("it", ROW)], tokenizer, markup)
    slots = [slot for slot, _ in told(bank, tokenizer) if "text" not in slot]
    assert slots == ["start_call_due", "after_open", "inside_call", "closing_call", "after_call"]


def test_a_template_that_drops_earlier_thoughts_is_refused() -> None:
    with pytest.raises(ModelError, match="is not prefix-preserving: with message 4"):
        read_markup(tokenizer_with(real_template("qwen3")))


def test_a_call_in_mistrals_style_goes_from_its_tag_to_its_bracket() -> None:
    assert told(*bank_with(MISTRAL, ROW)) == [
        ("start_call_due", "[TOOL_CALLS]"),
        ("after_open", " "),
        ("inside_call", '[{"name": "book_room", "arguments": {"city": "oslo"}, "id": ""}'),
        ("closing_call", "]"),
        ("after_call", "<|im_end|>"),
        ("start_text_due", " "),
        ("inside_text", "That is done."),
        ("end_text", "<|im_end|>"),
    ]


def test_a_call_in_llamas_style_opens_with_the_token_that_holds_its_brace() -> None:
    assert told(*bank_with(LLAMA, ROW))[:5] == [
        ("start_call_due", '{"name": "'),
        ("after_open", "book_room"),
        ("inside_call", '", "parameters": {"city": "oslo"'),
        ("closing_call", "}}"),
        ("after_call", "<|im_end|>"),
    ]


def test_text_and_thinking_before_a_call_are_text() -> None:
    said = {**ROW["messages"][1], "content": "I will [see] to it."}
    row = {**ROW, "messages": [ROW["messages"][0], said]}
    assert told(*bank_with(FORMATS["pythonic"].chat_template, row))[:3] == [
        ("start_text_due", "I"),
        ("inside_text", " will [see] to it.\n"),
        ("start_call_due", "["),
    ]
    assert told(*bank_with(THINKING, ROW))[:3] == [
        ("start_text_due", "<think>"),
        ("inside_text", "\n\n</think>\n\n"),
        ("start_call_due", "<tool_call>"),
    ]


def test_arguments_and_tools_may_be_json_text() -> None:
    call = {"type": "function", "function": {"name": "book_room", "arguments": '{"city": "oslo"}'}}
    messages = [ROW["messages"][0], {"role": "assistant", "tool_calls": [call]}]
    texts = {"messages": messages, "tools": json.dumps(ROW["tools"])}
    values = {**ROW, "messages": ROW["messages"][:2]}
    assert bank_with(HERMES, texts)[0] == bank_with(HERMES, values)[0]


def test_a_datasets_unlike_rows_are_read_as_they_were_written() -> None:
    calls = [{"name": "f", "arguments": {key: "oslo"}} for key in ("city", "day")]
    rows = [
        {
            **ROW,
            "messages": [
                ROW["messages"][0],
                {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
            ],
        }
        for call in calls
    ]
    dataset = Dataset.from_list(rows)
    assert '"day": null' in json.dumps(dataset[0])
    assert bank_with(HERMES, *map(without_none, dataset))[0] == bank_with(HERMES, *rows)[0]


def test_calls_that_stand_in_the_content_count_when_they_are_tagged() -> None:
    written = '<tool_call>\n{"name": "book_room", "arguments": {"city": "oslo"}}\n</tool_call>'
    messages = [ROW["messages"][0], {"role": "assistant", "content": written}]
    as_text = {**ROW, "messages": messages}
    assert (
        bank_with(HERMES, as_text)[0]
        == bank_with(HERMES, {**ROW, "messages": ROW["messages"][:2]})[0]
    )


def test_tags_that_the_user_names_need_no_tools_in_the_template() -> None:
    tokenizer = tokenizer_with(PLAIN)
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Hm. <search>oslo</search>"},
    ]
    markup = given_markup(tokenizer, ("<search>", "</search>"))
    bank = bank_of_chats([("it", {"messages": messages})], tokenizer, markup)
    assert [pair for pair in told(bank, tokenizer) if "call" in pair[0] or "open" in pair[0]] == [
        ("start_call_due", "<search>"),
        ("after_open", "oslo"),
        ("closing_call", "</search>"),
        ("after_call", "<|im_end|>"),
    ]
    assert list(markup.control) == ["<|im_end|>", "<|im_start|>"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "the tokenizer has no chat template"),
        (PLAIN, "leaves out tools or tool calls"),
        (HERMES.replace("'<tool_call>", "'<call>"), r"no token '<call>', it writes \d pieces"),
        (
            HERMES.replace("'<tool_call>", "'to=<tool_call>"),
            "a call with 'to=<tool_call>.*is no tag",
        ),
        (HERMES.replace("<|im_end|>", "###"), "ends a message with .*###'"),
        (
            "{%- if messages[0].role == 'user' and messages | length > 2 -%}"
            "{{- raise_exception('roles must alternate') -}}{%- endif -%}" + HERMES,
            "not made for tool use: the probe dialogue: .* roles must alternate",
        ),
        (HERMES + "{{ messages | length }}", "is not prefix-preserving: with message 2"),
    ],
)
def test_a_template_that_cannot_serve_is_told(template: str | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        read_markup(tokenizer_with(template))


def test_a_token_across_the_beginning_of_a_message_is_told() -> None:
    # The pocket tokenizer has a token "assistant\n".
    tokenizer = tokenizer_with(HERMES.replace("<|im_start|>assistant\\n", "<|im_start|>assistant"))
    with pytest.raises(ModelError, match="joins the beginning of an assistant message"):
        read_markup(tokenizer)


NO_CALL = [ROW["messages"][0], ROW["messages"][3]]
BAD_CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
BARE_CALL = {"role": "assistant", "tool_calls": [{"name": "f"}]}
NAMELESS = {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": NO_CALL}, "the probe's bank holds no tool call"),
        ({"prompt": "x"}, "dialogue 0 has no list 'messages'"),
        ({"messages": [{"content": "x"}]}, "dialogue 0 holds a message without a 'role'"),
        ({"messages": ROW["messages"][:1]}, "dialogue 0 has no assistant message"),
        ({"messages": [NO_CALL[0], BAD_CALL]}, "dialogue 0: arguments that are no JSON: '{'"),
        ({"messages": [NO_CALL[0], BARE_CALL]}, "dialogue 0 holds a tool call without a 'func"),
        ({"messages": [NO_CALL[0], NAMELESS]}, "dialogue 0 holds a tool call without a 'name'"),
        ({**ROW, "tools": "[{"}, "dialogue 0: tools that are no JSON"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        bank_with(HERMES, row)
