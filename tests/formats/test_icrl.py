"""The ICRL mark-up: written as its template writes it, read back exactly, whatever the tags."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from toolrl_box.envs.search_words import BRACKETS, SYSTEM, TAG_NAMES, USAGE
from toolrl_box.errors import DataError
from toolrl_box.formats import ALL_FORMATS, FORMATS, Icrl, to_chat, to_tools
from toolrl_box.markup import TAGS, Markup
from toolrl_box.probe.states import classify
from toolrl_box.samples import dialogue_to_sample
from toolrl_box.testing import ByteCodec
from toolrl_box.types import Message, Task, ToolCall, ToolFormat, ToolSpec

PAPER = Icrl()
OTHERS = [
    Icrl(Markup(*(names[-1] for names in TAG_NAMES.values()), brackets=brackets))
    for brackets in BRACKETS
]
every_markup = pytest.mark.parametrize(
    "fmt", [PAPER, *OTHERS], ids=lambda fmt: fmt.markup.open("search")
)

TOOLS = (ToolSpec("search", {"type": "object"}), ToolSpec("answer", {"type": "object"}))


def search(query: str, thought: str = "") -> Message:
    return Message("assistant", thought, (ToolCall("search", {"query": query}),))


def answer(text: str, thought: str = "") -> Message:
    return Message("assistant", thought, (ToolCall("answer", {"answer": text}),))


PROMPT = (Message("system", "Answer the question."), Message("user", "Who?"))
CALLING = search("who", "I need it.")
FOLLOWING = (Message("tool", "Anna."), Message("tool", "Boris."), Message("user", "And?"))
ANSWER = answer("Anna", "I know.")
DIALOGUE = (*PROMPT, CALLING, *FOLLOWING, ANSWER)

words = st.sampled_from(["kalo", "the river of mizo", "Größe", "1 < 2", '"quoted"', "\\n", "a  b"])
spoken = st.one_of(
    st.builds(search, words, st.one_of(st.just(""), words)),
    st.builds(answer, st.one_of(st.just(""), words), words),
    st.builds(Message, st.just("assistant"), words),
)


def scraps(fmt: Icrl) -> st.SearchStrategy[str]:
    """Pieces of broken messages in the format's own tags."""
    tags = [mark for tag in TAGS for mark in (fmt.markup.open(tag), fmt.markup.close(tag))]
    pieces = [*tags, *fmt.markup.brackets, "<|im_end|>", "<tool_call>", "q", " ", "\n", "search"]
    return st.lists(st.sampled_from(pieces), max_size=12).map("".join)


def test_it_is_a_tool_format_and_a_choice_of_a_run_beside_the_general_ones() -> None:
    conforming: ToolFormat = ALL_FORMATS["icrl"]
    assert conforming == PAPER
    assert [*FORMATS, "icrl"] == list(ALL_FORMATS)


def test_a_dialogue_looks_as_in_the_paper() -> None:
    assert PAPER.render([*PROMPT, CALLING, *FOLLOWING[:2], ANSWER], TOOLS) == (
        "<|im_start|>system\nAnswer the question. Use <think>, <search> and <answer>.<|im_end|>\n"
        "<|im_start|>user\nWho?<|im_end|>\n"
        "<|im_start|>assistant\n<think>I need it.</think>\n<search>who</search><|im_end|>\n"
        "<|im_start|>user\n<information>\nAnna.\n</information>\n<information>\nBoris.\n"
        "</information><|im_end|>\n"
        "<|im_start|>assistant\n<think>I know.</think>\n<answer>Anna</answer><|im_end|>\n"
    )


@every_markup
def test_the_instructions_go_on_after_the_system_text_as_the_tokenizer_expects(fmt: Icrl) -> None:
    tags = {tag: fmt.markup.open(tag) for tag in TAGS}
    usage = USAGE.format(**tags)
    assert f"system\n{SYSTEM}{usage}<|im_end|>" in fmt.render(PROMPT, TOOLS)
    assert f"system\n{SYSTEM}<|im_end|>" in fmt.render(PROMPT)


@every_markup
def test_a_dialogue_is_its_prompt_messages_and_what_follows_them(fmt: Icrl) -> None:
    pieced = (
        fmt.render(PROMPT, TOOLS, generation_prompt=True)
        + (fmt.render_message(CALLING) + "<|im_end|>" + fmt.render_following(FOLLOWING))
        + (fmt.render_message(ANSWER) + "<|im_end|>" + "\n")
    )
    assert pieced == fmt.render(DIALOGUE, TOOLS)


def by_template(
    fmt: Icrl, messages: Sequence[Message], tools: Sequence[ToolSpec], prompt: bool
) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"x": 0}, "x")))
    text = tokenizer.apply_chat_template(
        to_chat(messages),
        tools=list(to_tools(tools)) or None,
        chat_template=fmt.chat_template,
        add_generation_prompt=prompt,
        tokenize=False,
    )
    assert isinstance(text, str)
    return text


@every_markup
@pytest.mark.parametrize("messages", [PROMPT, PROMPT[1:], DIALOGUE])
@pytest.mark.parametrize("tools", [(), TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_chat_template_renders_the_same_text(
    fmt: Icrl, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...], prompt: bool
) -> None:
    expected = fmt.render(messages, tools, generation_prompt=prompt)
    assert by_template(fmt, messages, tools, prompt) == expected


@given(message=spoken)
def test_the_chat_template_writes_any_message_the_same(message: Message) -> None:
    assert by_template(PAPER, [message], (), False) == PAPER.render([message])


@every_markup
@given(message=spoken)
def test_reading_what_was_written_gives_the_same_calls(fmt: Icrl, message: Message) -> None:
    parsed = fmt.parse(fmt.render_message(message))
    assert parsed.calls == message.tool_calls
    assert parsed.errors == ()
    assert parsed.blocks == len(message.tool_calls)
    assert parsed.text == ("" if message.tool_calls else message.content)
    thought = ("think", "/think") if message.tool_calls and message.content else ()
    own = [(call.name, f"/{call.name}") for call in message.tool_calls]
    assert parsed.tags == (*thought, *(tag for pair in own for tag in pair))


@every_markup
@given(data=st.data())
def test_any_text_is_read_and_every_defect_points_into_it(fmt: Icrl, data: st.DataObject) -> None:
    text = data.draw(st.one_of(scraps(fmt), st.text(max_size=20)))
    parsed = fmt.parse(text)
    assert all(0 <= e.start < e.end <= len(text) and e.detail for e in parsed.errors)
    assert list(parsed.errors) == sorted(parsed.errors, key=lambda e: (e.start, e.end))
    assert len(parsed.calls) <= parsed.blocks


@every_markup
@given(data=st.data(), cuts=st.lists(st.integers(0, 80), max_size=6))
def test_a_message_may_arrive_in_any_chunks(
    fmt: Icrl, data: st.DataObject, cuts: list[int]
) -> None:
    text = data.draw(scraps(fmt))
    parser = fmt.parser()
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        parser.feed(text[start:end])
        assert parser.closed == fmt.parse(text[:end]).blocks
    assert parser.finish() == fmt.parse(text)


# text, closed blocks, calls, then each defect with the span that proves it
DEFECTS: list[tuple[str, int, list[tuple[str, str]], list[tuple[str, str]]]] = [
    ("<search>q", 0, [], [("unclosed_call", "<search>q")]),
    ("q</search>", 0, [], [("stray_close", "</search>")]),
    ("<search> </search>", 1, [], [("empty_call", "<search> </search>")]),
    ("<answer></answer>", 1, [("answer", "")], []),
    ("<think>a<search>q</search>", 1, [("search", "q")], [("stray_tag", "<think>")]),
    ("<think>a", 0, [], [("stray_tag", "<think>")]),
    ("a</think>", 0, [], [("stray_close", "</think>")]),
    (
        "<search>q<answer>b</answer>",
        1,
        [("answer", "b")],
        [("nested_open", "<search>q<answer>")],
    ),
    ("<information>x</information>", 0, [],
     [("stray_tag", "<information>"), ("stray_tag", "</information>")]),
    ("<search>a</answer>b</search>", 1, [],
     [("bad_syntax", "a</answer>b"), ("stray_close", "</answer>")]),
    ("hi<|im_start|>", 0, [], [("role_debris", "<|im_start|>")]),
    ("<tool_call>", 0, [], [("stray_tag", "<tool_call>")]),
    ("<search>q</search><|im_end|>", 1, [("search", "q")], [("role_debris", "<|im_end|>")]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "blocks", "calls", "defects"), DEFECTS, ids=lambda x: str(x)[:30])
def test_each_defect_is_named_and_shown(
    text: str, blocks: int, calls: list[tuple[str, str]], defects: list[tuple[str, str]]
) -> None:
    parsed = PAPER.parse(text)
    assert [(e.kind, text[e.start : e.end]) for e in parsed.errors] == defects
    assert parsed.blocks == blocks
    said = [
        (call.name, *(str(value) for value in call.arguments.values())) for call in parsed.calls
    ]
    assert said == calls


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message("assistant", "", (ToolCall("python", {"code": "1"}),)), "no tag for a call of"),
        (Message("assistant", "", (ToolCall("search", {}),)), "one text argument 'query'"),
        (Message("assistant", "", (ToolCall("answer", {"answer": 3}),)), "one text argument"),
        (search("a</search>b"), "it holds a tag"),
        (search("a<|im_end|>"), "it holds a tag"),
    ],
)
def test_what_the_tags_cannot_say_is_refused(message: Message, says: str) -> None:
    with pytest.raises(DataError, match=says):
        PAPER.render_message(message)


def test_messages_of_the_wrong_role_are_refused() -> None:
    with pytest.raises(DataError, match="not a user's"):
        PAPER.render_message(PROMPT[1])
    with pytest.raises(DataError, match="render_following"):
        PAPER.render_following([ANSWER])


@every_markup
def test_searches_and_answers_are_healthy_calls(fmt: Icrl) -> None:
    for message in (CALLING, ANSWER, search("q"), answer("a")):
        text = fmt.render_message(message)
        finding = classify(text, fmt.parse(text), tools=TOOLS, control_tokens=fmt.control_tokens)
        assert finding.state == "healthy_call", text
    text = fmt.render_message(CALLING) + " and so on"
    finding = classify(text, fmt.parse(text), control_tokens=fmt.control_tokens)
    assert finding.kind == "debris_after_call"


def test_only_what_the_assistant_writes_is_learned_retrieved_text_is_not() -> None:
    codec = ByteCodec()
    task = Task("t", "c", TOOLS, PROMPT, (CALLING, *FOLLOWING[:2], ANSWER))
    sample = dialogue_to_sample(task, PAPER, codec.encode)
    learned = [i for i, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m]
    assert codec.decode(learned) == (
        "<think>I need it.</think>\n<search>who</search><|im_end|>"
        "<think>I know.</think>\n<answer>Anna</answer><|im_end|>"
    )


@every_markup
@pytest.mark.parametrize("unit", ["<search>", "</search>", "<", "|", "<think>a</think>", "[", "#"])
def test_time_grows_with_the_length_only(fmt: Icrl, unit: str) -> None:
    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            fmt.parse(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(64_000) < 32 * seconds(8_000) + 0.05
