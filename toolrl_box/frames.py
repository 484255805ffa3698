"""The chat frame and what a message does that breaks out of it: it writes somebody else's turn.

Input: an assistant message and a position. Output: spans. Frames are the tags with which chat
templates separate turns (ChatML, Llama 3, Mistral, DeepSeek, harmony, Gemma). A message holds none
of them; where one stands, this module tells whether the model merely wrote debris or went on as
the user or as the tool. The same is found where the tags are gone, because a log was decoded
without special tokens (a line ``user``) or because a model learned labels (``User: …``).

Every search goes forward only: hostile text costs linear time.

Left out: languages other than English for labels, and any judgement of what the turn says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

FRAME = re.compile(
    r"<\|[a-z_]{2,24}\|>"
    r"|<｜[^｜<>\s]{2,32}｜>"
    r"|<(?:start|end)_of_turn>|</s>|\[/?INST\]"
    r"|\[/?(?:TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT)\]"
    r"|</?(?:tool_response|tool_result|function_results?)>"
)
"""A tag that only a chat template or an environment may write, in any family."""

STOPS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    *("</s>", "<｜end▁of▁sentence｜>", "<|return|>", "<|call|>", "<|end|>", "<end_of_turn>"),
)
"""What may end a message when a log keeps its stop token."""

Voice = Literal["user", "tool", "frame"]


class Turn(NamedTuple):
    """``text[start:end]`` opens a turn that is not the assistant's to write (``frame``: a role is
    named, but it is the assistant's own or the system's)."""

    voice: Voice
    start: int
    end: int


_CLOSERS = (
    r"(?:\s|<\|(?:im_end|eot_id|eom_id|end|call|endoftext|end_of_text)\|>|</s>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>)*+"
)
_OPENS_TURN = re.compile(
    _CLOSERS + r"(?:(?P<tool>(?:<\|im_start\|>\s*(?:user|tool)\s*)?"
    r"<(?:tool_response|tool_result|function_results?|information)>"
    r"|<\|im_start\|>\s*tool\b"
    r"|<\|start_header_id\|>\s*(?:ipython|tool)\s*<\|end_header_id\|>"
    r"|<\|start\|>functions\.[\w.]{1,64}(?:\s+to=assistant)?(?:<\|channel\|>\w+)?(?:<\|message\|>)?"
    r"|<\|observation\|>|\[TOOL_RESULTS\]|<｜tool▁outputs?▁begin｜>(?:<｜tool▁output▁begin｜>)?)"
    r"|(?P<user><\|im_start\|>\s*user\b|<\|start_header_id\|>\s*user\s*<\|end_header_id\|>"
    r"|<\|start\|>user(?:<\|message\|>)?|<\|user\|>|<｜User｜>|<start_of_turn>user\b|\[INST\]))"
)
_SAID = re.compile(r"[^<]*?\w")

ROLES = ("assistant", "user", "system", "tool", "ipython", "developer")
_ROLE_ONLY = re.compile(r"\s*(?:(?:assistant|user|system|tool|ipython)[\s:]*+)++", re.IGNORECASE)

# A role on a line of its own, or right after a sentence, then a line that is no role: what is left
# of a frame whose tags were dropped.
_ROLE_LINE = re.compile(
    r"(?:^|(?<=[.!?\"')\]}>]))(?P<role>assistant|user|system|tool|ipython)\n\s{0,8}"
    r"(?=[\w{<\[*(\"'])(?!(?:assistant|user|system|tool|ipython)\b)",
    re.MULTILINE,
)
# "User: …" begins a paragraph and says three words or more, so that "User: alice" in a list of
# details is none; "Human:" is rarely anything else. A paragraph that a colon announces is quoted.
_LABEL = re.compile(
    r"(?:\A|(?<![:：])\n[ \t]*\n)[ \t]*(?:\*\*|#{1,4} )?"
    r"(?:(?:(?P<user>User|USER|Human|HUMAN)|(?P<frame>Assistant|ASSISTANT))"
    r"(?:\*\*)?:(?:\*\*)?[ \t]*\n?(?:[^\s:]+[ \t]+){2}\S"
    r"|(?P<user_zh>用户)[:：]\s{0,2}\S|(?P<frame_zh>助手)[:：]\s{0,2}\S)"
    r"|^[ \t]*(?:\*\*)?(?P<human>Human|HUMAN)(?:\*\*)?:[ \t]*\S+[ \t]+\S",
    re.MULTILINE,
)
# JSON must end its line (or go on below): before more prose it is an example.
_RESULT_LABEL = re.compile(
    r"^[ \t]*(?:\*\*)?(?:(?:Tool|Function|API)[ _](?:call )?(?:result|response|output)s?"
    r"|Observation|(?P<after>Results?))(?:\*\*)?[ \t]*:(?:\*\*)?\s{0,4}"
    r"(?P<json>[{\[](?:[^\n]*[}\]])?[ \t]*$)?"
    r"|^[ \t]*\[Tool[ _](?:result|response|output)s?\](?P<bracket>)",
    re.MULTILINE | re.IGNORECASE,
)
_BARE_RESULT = re.compile(r"\s*(?P<json>\[?\s*\{\s*\")")


def without_stop(text: str) -> str:
    """The message without stop and padding tokens at its end (a log may keep them)."""
    end = len(text)
    cut = True
    while cut:
        cut = False
        for stop in STOPS:
            if text.endswith(stop, 0, end):
                end -= len(stop)
                cut = True
    return text[:end] if end < len(text) else text


def only_roles(text: str) -> bool:
    """Whether a message says nothing but names of roles (``assistant``)."""
    return _ROLE_ONLY.fullmatch(text) is not None


def opened_turn(text: str, start: int) -> Turn | None:
    """The turn of a user or tool that the frame tag at ``start`` opens, if something is said."""
    match = _OPENS_TURN.match(text, start)
    if match is None or _SAID.match(text, match.end()) is None:
        return None
    return Turn("tool" if match["tool"] is not None else "user", start, match.end())


def foreign_turn(text: str, start: int, end: int, *, after_call: bool = False) -> Turn | None:
    """The first turn in ``text[start:end]`` that is somebody else's, told by role lines or labels.

    ``after_call``: the model has just called a tool, so that a label, or a JSON object, is enough
    to tell an invented result; elsewhere the label must be followed by JSON.
    """
    turns: list[Turn] = []
    line = _ROLE_LINE.search(text, start, end) if _has(text, _ROLE_HINTS) else None
    if line is not None:
        turns.append(Turn(_voice(line["role"]), *line.span("role")))
    label = _LABEL.search(text, start, end) if _has(text, _LABEL_HINTS) else None
    if label is not None:
        name = next(name for name in _LABELS if label[name] is not None)
        turns.append(Turn("frame" if name.startswith("frame") else "user", *label.span(name)))
    for result in _RESULT_LABEL.finditer(text, start, end) if _has(text, _RESULT_HINTS) else ():
        plain = after_call or result["after"] is None
        if plain and (after_call or result["json"] is not None or result["bracket"] is not None):
            turns.append(Turn("tool", *result.span()))
            break
    bare = _BARE_RESULT.match(text, start, end) if after_call else None
    if bare is not None and text[:end].rstrip().endswith(("}", "]")):
        turns.append(Turn("tool", bare.start("json"), end))
    return min(turns, key=lambda turn: turn.start, default=None)


_LABELS = ("user", "frame", "user_zh", "frame_zh", "human")

# Most messages hold none of these words, and looking for words is ten times as fast.
_ROLE_HINTS = tuple(f"{role}\n" for role in ("assistant", "user", "system", "tool", "ipython"))
_LABEL_HINTS = ("User", "USER", "Human", "HUMAN", "Assistant", "ASSISTANT", "用户", "助手")
_RESULT_HINTS = (
    *("bservation", "esult", "esponse", "utput"),
    *("BSERVATION", "ESULT", "ESPONSE", "UTPUT"),
)


def _has(text: str, words: Sequence[str]) -> bool:
    return any(map(text.__contains__, words))


def _voice(role: str) -> Voice:
    if role == "user":
        return "user"
    return "tool" if role in ("tool", "ipython") else "frame"


THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
)
"""Opening and closing tags of thinking blocks."""
_THOUGHT_TAG = re.compile(r"</?think(?:ing)?>|\[/?THINK\]")


def leading_thought(text: str) -> tuple[int, int] | None:
    """The span of a closed thinking block that opens the message, or None.

    Its opening tag may be missing, as many templates put it into the prompt.
    """
    if "hink" not in text and "HINK" not in text:
        return None
    first = _THOUGHT_TAG.search(text)
    if first is None:
        return None
    for opening, closing in THOUGHTS:
        if first[0] == closing:
            return 0, first.end()
        if first[0] == opening:
            if text[: first.start()].strip():
                return None
            end = text.find(closing, first.end())
            return None if end < 0 else (first.start(), end + len(closing))
    return None


def thought_tag(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The first thinking tag in ``text[start:end]``."""
    if "hink" not in text and "HINK" not in text:
        return None
    match = _THOUGHT_TAG.search(text, start, end)
    return None if match is None else match.span()
