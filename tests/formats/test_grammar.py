"""The structural grammar of each format: all gold passes, and what it lets end is sound."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrl_box.envs import ENVS, build_world
from toolrl_box.envs.search_words import BRACKETS, TAG_NAMES
from toolrl_box.formats import ALL_FORMATS, FORMATS, Icrl
from toolrl_box.markup import Markup
from toolrl_box.types import Message, ToolCall, ToolFormat

HERMES, PYTHONIC, XML, ICRL = (ALL_FORMATS[name] for name in ("hermes", "pythonic", "xml", "icrl"))
every_format = pytest.mark.parametrize("fmt", ALL_FORMATS.values(), ids=lambda fmt: fmt.name)
every_tool_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)


def walk(fmt: ToolFormat, text: str) -> Hashable | None:
    """The state after ``text``, or None when some character of it was refused."""
    state: Hashable | None = fmt.grammar.start
    for char in text:
        if state is None:
            return None
        state = fmt.grammar.step(state, char)
    return state


def possible(fmt: ToolFormat, text: str) -> bool:
    """Whether ``text`` may be a whole message."""
    state = walk(fmt, text)
    return state is not None and fmt.grammar.may_end(state)


@pytest.mark.parametrize(
    ("world", "name"), [(w, f) for w in ENVS for f in build_world(w, {}).formats]
)
def test_every_gold_message_of_every_world_is_possible(world: str, name: str) -> None:
    env, fmt = build_world(world, {}), ALL_FORMATS[name]
    told = 0
    for split in set(env.splits) & {"train", "heldout", "bank", "ood"}:
        for task in env.tasks(split, 24, 5, env.categories):
            for message in task.gold:
                if message.role == "assistant":
                    text = fmt.render_message(message)
                    assert possible(fmt, text), text
                    told += 1
    assert told > 48


# "<" now and then, but no tag: those are refused as content.
plain = st.lists(
    st.one_of(
        st.sampled_from(["a", "<", "</", " ", "\n", "\\", '"', "'", "{", "}", "[", ")]", "(", "é"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=3),
    ),
    max_size=6,
).map("".join)
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
        plain,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(plain, inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
calls = st.builds(
    ToolCall,
    name=st.sampled_from(["get_weather", "math.add", "a-b", "_x1"]),
    arguments=st.dictionaries(st.one_of(st.sampled_from(["city", "x"]), plain), values, max_size=3),
)
gold = st.builds(
    Message,
    role=st.just("assistant"),
    content=st.sampled_from(["", "Let me look.", "Two\nlines [1], 3 < 4: (a) f(x).", "[note"]),
    tool_calls=st.lists(calls, min_size=1, max_size=3).map(tuple),
)


@every_tool_format
@given(message=gold)
def test_any_call_that_a_format_can_write_is_possible(fmt: ToolFormat, message: Message) -> None:
    assert possible(fmt, fmt.render_message(message))


@every_format
def test_prose_is_possible(fmt: ToolFormat) -> None:
    for text in ("It is [mostly] fine (see below); 3 < 4 and f(x) holds.", "  Hm\n\n ok", "[a"):
        assert possible(fmt, text), text


@pytest.mark.parametrize("brackets", BRACKETS)
def test_the_in_context_format_has_its_grammar_in_any_markup(
    brackets: tuple[str, str, str],
) -> None:
    fmt = Icrl(Markup(*(names[-1] for names in TAG_NAMES.values()), brackets=brackets))
    searching = Message("assistant", "Hm.", (ToolCall("search", {"query": "1 < 2"}),) * 2)
    assert possible(fmt, fmt.render_message(searching))
    assert not possible(fmt, fmt.markup.open("search"))
    assert walk(fmt, fmt.markup.open("search") + fmt.markup.open("answer")) is None


CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
XML_CALL = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
IMPOSSIBLE: list[tuple[ToolFormat, str]] = [
    # a second opening tag, and one inside text
    (HERMES, "<tool_call><tool_call>"),
    (HERMES, '<tool_call>\n{"name": "<tool_call>'),
    (HERMES, '<tool_call>\n{"name": "</tool_call>'),
    (HERMES, "Look: <tool_call>"),
    (XML, "<tool_call>\n<tool_call>"),
    (XML, "Look: <tool_call>"),
    (PYTHONIC, "Look: [f("),
    (PYTHONIC, "[f(x=[f("),
    (ICRL, "<search>a<search>"),
    (ICRL, "Look: <search>"),
    # after a closed call
    (HERMES, CALL + "."),
    (HERMES, CALL + "</tool_call>"),
    (XML, XML_CALL + "."),
    (PYTHONIC, "[f()]."),
    (PYTHONIC, "[f()]\n[f("),
    (ICRL, "<search>a</search>b"),
    (ICRL, "<search>a</search><think>"),
    # tags of the frame, of other formats and closing ones without an opening one
    (HERMES, "hi<|im_start|>"),
    (HERMES, "</tool_call>"),
    (HERMES, "<function="),
    (PYTHONIC, "<tool_call>"),
    (XML, "<function="),
    (ICRL, "<tool_call>"),
    (ICRL, "<information>"),
    # calls that no parser reads
    (HERMES, "<tool_call>\n["),
    (HERMES, "<tool_call>{}}"),
    (HERMES, "<tool_call>{} x"),
    (HERMES, '<tool_call>{"a" "'),
    (HERMES, '<tool_call>{"a": NaN'),
    (HERMES, '<tool_call>{"a": tru}'),
    (HERMES, '<tool_call>{"a": -}'),
    (HERMES, '<tool_call>{"a": 1,}'),
    (HERMES, '<tool_call>{"a": "\n'),
    (HERMES, '<tool_call>{"a": ' + "[" * 100),
    (PYTHONIC, "[f(1"),
    (PYTHONIC, "[f(x=g("),
    (PYTHONIC, "[f(x=1] "),
    (PYTHONIC, "[f(x=1), 2"),
    (PYTHONIC, "[f(*x"),
    (XML, "<tool_call>f"),
    (XML, "<tool_call><function=>"),
    (XML, "<tool_call><function=f></tool_call>"),
    (XML, "<tool_call><function=f><parameter=x>1</function>"),
    (ICRL, "<think>a</search>"),
    (ICRL, "<think>a</think> b"),
]


@pytest.mark.parametrize(("fmt", "text"), IMPOSSIBLE, ids=lambda x: str(x)[:30])
def test_what_no_sound_message_begins_with_is_refused(fmt: ToolFormat, text: str) -> None:
    assert walk(fmt, text) is None


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        *((fmt, text) for fmt in ALL_FORMATS.values() for text in ("", " \n")),
        (HERMES, "<tool_call>"),
        (HERMES, "<tool_call>\n{}"),
        (HERMES, CALL + "\n<tool_call>"),
        (HERMES, CALL + "\n<tool"),
        (XML, "<tool_call>\n<function=f>\n</function>\n"),
        (PYTHONIC, "[f()"),
        (PYTHONIC, "[f(), "),
        (ICRL, "<think>a</think>"),
        (ICRL, "<answer>a"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_an_open_call_or_nothing_at_all_cannot_be_the_whole_message(
    fmt: ToolFormat, text: str
) -> None:
    assert walk(fmt, text) is not None
    assert not possible(fmt, text)


def test_python_spellings_that_the_parser_reads_are_possible() -> None:
    assert possible(
        PYTHONIC, "[ f( a='it\\'s \"so\"', b={'k': [True,],}, **{\"c d\": -1.5e3}), g()\n]"
    )


PIECES = (
    *("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>"),
    *("<search>", "</search>", "<answer>", "</answer>", "<think>", "</think>", "<information>"),
    *("<|im_start|>", "<|endoftext|>", "<tool_response>", "\n", ">", "f", "x", "name", " ", "word"),
    *('{"name": "', '", "arguments": {"', '": "', '"}}', "}}", "}", "{", '"', "1", ": ", ", ", "["),
    *("[f(", "(", ")", ")]", "]", 'x="', "=", "**", "true", "None", "-", "\\", "'", '"}}', '")]'),
    *"alseru",  # whatever begins like a word can be spelled to its end
)
CLOSING = (
    "}}",
    '"}}',
    "</tool_call>",
    ")]",
    '")]',
    "</parameter>",
    "</function>",
    ">",
    "</search>",
)
OPENINGS = {
    "hermes": '<tool_call>{"name": "f", "arguments": {',
    "pythonic": "[f(",
    "xml": "<tool_call><function=f>",
    "icrl": "<think>a</think><search>",
}
BROKEN = {"unclosed_call", "nested_open", "stray_close", "stray_tag", "role_debris", "bad_syntax"}


@every_format
def test_whatever_it_lets_end_has_its_tags_in_order(fmt: ToolFormat) -> None:
    """Random messages, piece by piece of what is allowed and rather a closing one; what ends is
    read without a defect of structure. A tag's fragment, a call without tags and the keys of a
    call are not the grammar's business."""
    rng = random.Random(0)
    calls, ended = 0, 0
    for number in range(200):
        text = OPENINGS[fmt.name] if number % 2 else ""
        state = on(fmt, fmt.grammar.start, text)
        assert state is not None
        for _ in range(rng.randint(1, 20)):
            fitting = {p: after for p in PIECES if (after := on(fmt, state, p)) is not None}
            assert fitting, f"a dead end after {text!r}"
            closing = [piece for piece in CLOSING if piece in fitting]
            piece = rng.choice(closing if closing and rng.random() < 0.5 else list(fitting))
            text, state = text + piece, fitting[piece]
        if fmt.grammar.may_end(state):
            parsed = fmt.parse(text)
            assert not BROKEN & {e.kind for e in parsed.errors}, (text, parsed.errors)
            calls += parsed.blocks
            ended += 1
    assert ended > 20
    assert calls > 5


def on(fmt: ToolFormat, state: Hashable, piece: str) -> Hashable | None:
    for char in piece:
        following = fmt.grammar.step(state, char)
        if following is None:
            return None
        state = following
    return state
