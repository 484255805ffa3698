"""Sorts an assistant message into one of four structural states, with the span that proves it.

Input: the message's text, what a tool format or dialect read in it, and optionally the tools.
Output: a ``Finding``. The states follow the collapse study that this package reproduces:

    healthy_call       well-formed, follows the tool's schema, closed, text only before it
    healthy_response   natural language without tool debris
    text_pollution     tags incomplete or misplaced in text, or a call that breaks its contract
    collapsed          degenerate: empty, only control pieces or punctuation, or a loop

A closed, well-formed call to an unknown tool or against the schema is by that definition not
healthy, and it is not degenerate: it counts as ``text_pollution`` under a kind of its own, so
that a study may count it apart. So does a message that the token limit cut (``truncated``), and
one that goes on as somebody else. ``docs/states.md`` has every kind with examples.

Degeneration goes before defects, and of several defects the first in the text decides. Left out:
whether a call is *right*, which is the reward's business, and any model: structure only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from toolrl_box import frames
from toolrl_box.probe.policies import DEFAULT, Policies
from toolrl_box.probe.schemas import follows_schema
from toolrl_box.types import Finding, Parsed, ParseError, State, ToolCall, ToolSpec

KINDS: Mapping[str, State] = {
    "call": "healthy_call",
    "response": "healthy_response",
    "unclosed_call": "text_pollution",
    "stray_tag": "text_pollution",
    "role_debris": "text_pollution",
    "untagged_call": "text_pollution",
    "bad_json": "text_pollution",  # any closed block that cannot be read
    "unknown_tool": "text_pollution",
    "schema_violation": "text_pollution",
    "debris_after_call": "text_pollution",
    "speaks_as_user": "text_pollution",
    "fabricated_result": "text_pollution",  # the model writes the observation itself
    "truncated": "text_pollution",
    # Only where a policy or (text_before_call) ICRL's mark-up says so:
    "text_before_call": "text_pollution",
    "several_calls": "text_pollution",
    "thinking": "text_pollution",
    "empty": "collapsed",
    "punctuation_only": "collapsed",
    "role_word_only": "collapsed",
    "bare_call_tag": "collapsed",  # nothing but control pieces, as in <tool_call><|im_end|>
    "repeated_fragments": "collapsed",
    "loop": "collapsed",
}
"""Every kind and the one state it belongs to."""

WELL_FORMED = ("unknown_tool", "schema_violation")
"""Defects that leave a message's structure intact: the call is wrong, not broken."""

# How a parser's errors are called here; every error not listed is an unreadable closed block.
_KIND_OF_ERROR = {
    "unclosed_call": "unclosed_call",
    "nested_open": "unclosed_call",
    "stray_close": "stray_tag",
    "stray_tag": "stray_tag",
    "role_debris": "role_debris",
    "untagged_call": "untagged_call",
    "fabricated_result": "fabricated_result",
}
_KIND_OF_VOICE = {
    "user": "speaks_as_user",
    "tool": "fabricated_result",
    "frame": "role_debris",
}

DEFAULT_CONTROL_TOKENS = ("<tool_call>", "</tool_call>", "<|im_end|>", "<|im_start|>")

SAME_CALLS = 8
"""So many calls, all alike, are a loop; a few alike may be meant (roll the dice three times)."""
LOOP_LENGTH = 60
"""Characters that a repetition must fill to count as a loop."""
LOOP_ROUNDS = 4
"""Times that a unit must come in a row to count as a loop."""
SIGN_LOOP_LENGTH = 200
"""The same for units without a letter: rules and tables are drawn with those."""
_PROBE = 24

_WORD = re.compile(r"\w+")
# Calls in syntaxes that no dialect here has: ReAct's labels, and JSON under other keys.
_FOREIGN_CALL = re.compile(
    r"^Action:[ \t]*\S[^\n]{0,200}\n{1,2}Action Input:[^\n]*"
    r'|\{\s{0,8}"(?:tool|tool_name|action)"\s{0,8}:\s{0,8}"[^"\n]{0,200}"\s{0,8},'
    r'\s{0,8}"(?:parameters|arguments|args|tool_input|action_input)"',
    re.MULTILINE,
)
_TAG_RUN = re.compile(r"(<[^<>\s]{1,24}>)(?:\s{0,8}\1){2,}")
# Tokens like '"' or "[" are control tokens too, but no misplaced ones when prose holds them.
_TAG = re.compile(r"<.*[>=]|\[[A-Z_/]{3,}\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What the control tokens of a format say about it."""

    call_start: str
    call_end: str
    tags: tuple[str, ...]
    words: frozenset[str]
    thinks: bool
    untyped: bool
    """Arguments are written without types, as elements: a number may be meant as text."""


@lru_cache(maxsize=64)
def _pieces(control_tokens: tuple[str, ...]) -> _Pieces:
    tokens = control_tokens or DEFAULT_CONTROL_TOKENS
    words = {word for token in (*tokens, *DEFAULT_CONTROL_TOKENS) for word in _WORD.findall(token)}
    tags = tuple(token for token in tokens if _TAG.fullmatch(token) is not None)
    thinks, untyped = "<think>" in tokens, '<invoke name="' in tokens
    return _Pieces(tokens[0], tokens[1], tags, frozenset(words), thinks, untyped)


def _finding(kind: str, start: int, end: int) -> Finding:
    return Finding(KINDS[kind], kind, start, end)


def _bounds(text: str) -> tuple[int, int]:
    """Where the text without outer white space begins and ends."""
    start = len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def find_loop(text: str) -> tuple[int, int] | None:
    """The span of a loop, or None: the same unit over and over at the end of the text, or a long
    text made of very few words."""
    if len(text) < LOOP_LENGTH:
        return None
    end = len(text.rstrip())
    previous = text.rfind(text[end - _PROBE : end], 0, end - 1)
    if previous >= 0:
        period = end - _PROBE - previous
        unit = text[end - period : end]
        start = end - period
        while start >= period and text.startswith(unit, start - period):
            start -= period
        signs_only = not any(character.isalnum() for character in unit)
        least = SIGN_LOOP_LENGTH if signs_only else LOOP_LENGTH
        if end - start >= max(least, LOOP_ROUNDS * period):
            return start, end
    if len(text) >= 3 * LOOP_LENGTH:
        words = text.split()
        if len(words) >= 40 and 6 * len(set(words)) < len(words):
            return _bounds(text)
    return None


def _only_control(text: str, pieces: _Pieces) -> Finding | None:
    words = _WORD.findall(text)
    if not pieces.words.issuperset(words):
        return None
    repeated = max(Counter(words).values(), default=0) >= 3
    return _finding("repeated_fragments" if repeated else "bare_call_tag", *_bounds(text))


def _same(calls: Sequence[ToolCall]) -> bool:
    return len(calls) >= SAME_CALLS and all(call == calls[0] for call in calls)


def _named(text: str, parsed: Parsed, index: int) -> tuple[int, int]:
    """The span of the name of call ``index``; all the calls when it is written with escapes."""
    start = position = parsed.spans[0][0] if parsed.spans else 0
    for call in parsed.calls[: index + 1]:
        position = text.find(call.name, position)
        if position < 0:
            return start, len(text)
        position += len(call.name)
    return position - len(parsed.calls[index].name), position


def _as_texts(tool: ToolSpec, call: ToolCall) -> dict[str, Any]:
    """The arguments, as text where the schema wants text."""
    properties = tool.parameters.get("properties", {})
    wanted = {key for key, rule in properties.items() if _wants_text(rule)}
    return {
        key: json.dumps(value, ensure_ascii=False)
        if key in wanted and not isinstance(value, str)
        else value
        for key, value in call.arguments.items()
    }


def _wants_text(rule: Any) -> bool:
    return isinstance(rule, Mapping) and rule.get("type") == "string"


def _judge_tools(
    text: str, parsed: Parsed, tools: Sequence[ToolSpec], pieces: _Pieces
) -> Finding | None:
    for index, call in enumerate(parsed.calls):
        for tool in tools:
            if tool.name == call.name:
                break
        else:
            return _finding("unknown_tool", *_named(text, parsed, index))
        if not follows_schema(tool, call.arguments) and not (
            pieces.untyped and follows_schema(tool, _as_texts(tool, call))
        ):
            start, end = _named(text, parsed, index)
            close = text.find(pieces.call_end, end)
            end = len(text) if close < 0 else close + len(pieces.call_end)
            return _finding("schema_violation", start, end)
    return None


def _after_call(text: str, parsed: Parsed) -> tuple[int, int] | None:
    """The first text after or between the calls."""
    ends = [*(start for start, _ in parsed.spans[1:]), len(text)]
    for (_, start), end in zip(parsed.spans, ends, strict=False):
        if text[start:end].strip():
            return start, start + len(text[start:end].rstrip())
    return None


def _around_calls(text: str, parsed: Parsed, pieces: _Pieces, policies: Policies) -> Finding | None:
    """What is wrong with the text beside the calls."""
    start = len(text) - len(text.lstrip())
    first = parsed.spans[0][0] if parsed.spans else start
    if start < first:
        thought = None if pieces.thinks else frames.leading_thought(text[:first])
        if thought is not None:
            if policies.thinking == "flag":
                return _finding("thinking", *thought)
            start = thought[1]
        tag = None if pieces.thinks else frames.thought_tag(text, start, first)
        if tag is not None:
            return _finding("stray_tag", *tag)
        turn = frames.foreign_turn(text, start, first + 1)
        if turn is not None:
            return _finding(_KIND_OF_VOICE[turn.voice], turn.start, first)
        # In ICRL's mark-up only a search may follow plain text, not an answer nor a thought.
        flagged = policies.text_before_call == "flag" or (
            pieces.thinks and not text.startswith(pieces.call_start, first)
        )
        if flagged and text[start:first].strip():
            return _finding("text_before_call", start, first)
    after = _after_call(text, parsed)
    if after is None:
        return None
    start, end = after
    turn = frames.foreign_turn(text, start, end, after_call=True)
    if turn is not None:
        return _finding(_KIND_OF_VOICE[turn.voice], turn.start, end)
    return _finding("debris_after_call", *after) if policies.text_after_call == "flag" else None


def _judge_calls(
    text: str, parsed: Parsed, tools: Sequence[ToolSpec], pieces: _Pieces, policies: Policies
) -> Finding:
    if _same(parsed.calls):
        return _finding("loop", *_bounds(text))
    finding = _judge_tools(text, parsed, tools, pieces) if tools else None
    if finding is None and parsed.text:
        finding = _around_calls(text, parsed, pieces, policies)
    if finding is None and policies.several_calls == "flag" and len(parsed.calls) > 1:
        finding = _finding("several_calls", *_named(text, parsed, 1))
    return finding or _finding("call", *_bounds(text))


def _judge_rest(text: str, start: int, pieces: _Pieces) -> Finding | None:
    """What makes a message without calls no natural language; ``start``: after the thought."""
    loop = find_loop(text)
    if loop is not None:
        return _finding("loop", *loop)
    for tag in pieces.tags if "<" in text or "[" in text else ():
        at = text.find(tag)
        if at >= 0:
            return _finding("role_debris" if "<|" in tag else "stray_tag", at, at + len(tag))
    if not pieces.thinks:
        misplaced = frames.thought_tag(text, start, len(text))
        if misplaced is not None:
            return _finding("stray_tag", *misplaced)
    turn = frames.foreign_turn(text, start, len(text))
    if turn is not None:
        return _finding(_KIND_OF_VOICE[turn.voice], turn.start, len(text.rstrip()))
    if "Action" in text or '"tool' in text or '"action' in text:
        call = _FOREIGN_CALL.search(text, start)
        if call is not None:
            return _finding("untagged_call", *call.span())
    return None


def _judge_response(text: str, truncated: bool, pieces: _Pieces, policies: Policies) -> Finding:
    start, end = _bounds(text)
    thought = None if pieces.thinks else frames.leading_thought(text)
    said = text if thought is None else text[thought[1] :]
    if thought is not None and not said.strip():
        return _thought_only(text, truncated, pieces)
    if not any(character.isalnum() for character in said):
        bare = text[start:end] == pieces.call_start
        return _finding("bare_call_tag" if bare else "punctuation_only", start, end)
    if text[start] in "<{[(|/":
        control = _only_control(text, pieces)
        if control is not None:
            return control
    finding = _judge_rest(text, 0 if thought is None else thought[1], pieces)
    cut = finding is None or (not pieces.thinks and _opens_thought(text, finding))
    if truncated and cut:
        return _finding("truncated", start, end)
    if finding is None and thought is not None and policies.thinking == "flag":
        finding = _finding("thinking", *thought)
    return finding or _finding("response", start, end)


def _opens_thought(text: str, finding: Finding) -> bool:
    """Whether the only defect is a thought that was not closed: the token limit explains it."""
    if finding.kind != "stray_tag" or text[: finding.start].strip():
        return False
    return any(text.startswith(opening, finding.start) for opening, _ in frames.THOUGHTS)


def _thought_only(text: str, truncated: bool, pieces: _Pieces) -> Finding:
    control = _only_control(text, pieces)
    if control is not None:
        return control
    loop = find_loop(text)
    if loop is not None:
        return _finding("loop", *loop)
    return _finding("truncated" if truncated else "empty", *_bounds(text))


def _judge_debris(
    text: str, errors: Sequence[ParseError], truncated: bool, pieces: _Pieces
) -> Finding:
    control = _only_control(text, pieces)
    if control is not None:
        return control
    run = _TAG_RUN.search(text)
    if run is not None:
        return _finding("repeated_fragments", *run.span())
    loop = find_loop(text)
    if loop is not None:
        return _finding("loop", *loop)
    first = errors[0]
    kind = _KIND_OF_ERROR.get(first.kind, "bad_json")
    if kind in ("role_debris", "stray_tag"):
        turn = frames.opened_turn(text, first.start)
        if turn is not None:
            return _finding(_KIND_OF_VOICE[turn.voice], turn.start, len(text.rstrip()))
    if truncated and len(errors) == 1 and first.kind == "unclosed_call":
        kind = "truncated"
    return _finding(kind, first.start, first.end)


def _without(text: str, asides: Sequence[tuple[int, int]]) -> str:
    """The text with spaces for what is neither language nor call; places stay what they are."""
    pieces: list[str] = []
    position = 0
    for start, end in asides:
        pieces += (text[position:start], " " * (end - start))
        position = end
    return "".join((*pieces, text[position:]))


def classify(
    text: str,
    parsed: Parsed,
    *,
    tools: Sequence[ToolSpec] = (),
    truncated: bool = False,
    control_tokens: Sequence[str] = (),
    policies: Policies = DEFAULT,
) -> Finding:
    """The structural state of one assistant message.

    ``text`` is the message without its stop token and ``parsed`` what its format or dialect read
    in it. Without ``tools`` names and schemas are not checked. ``truncated``: the token limit
    ended the message; a call that was closed all the same stays healthy. ``control_tokens`` are
    the format's, its call's start and end first; without them Hermes tags are assumed.
    ``policies`` decide what is a matter of taste.

    Raises DataError when a tool's parameters are no JSON schema.
    """
    pieces = _pieces(tuple(control_tokens))
    if not text or text.isspace():
        return _finding("empty", 0, len(text))
    if frames.only_roles(text):
        return _finding("role_word_only", *_bounds(text))
    if parsed.errors:
        return _judge_debris(text, parsed.errors, truncated, pieces)
    if parsed.asides:
        said = _without(text, parsed.asides)
        if not parsed.calls and not said.strip():
            return _thought_only(text, truncated, pieces)
        text = said
    if parsed.calls:
        return _judge_calls(text, parsed, tools, pieces, policies)
    return _judge_response(text, truncated, pieces, policies)
