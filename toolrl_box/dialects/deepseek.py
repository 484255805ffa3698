"""DeepSeek V3, R1 and V3.1: tags with full-width bars around each call and around all calls.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
    ```json
    {"city": "Oslo"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1 writes ``get_weather<｜tool▁sep｜>{"city": "Oslo"}`` between the inner tags. A call without the
outer tags is ``untagged_call``. In a log without these tags (``stripped``) ``functionget_weather``
and a fenced object, or ``get_weather{"city": "Oslo"}``, each at the beginning of a line, are calls.

Left out: V3.2's ``DSML`` elements.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from re import Match

from toolrl_box.dialects._calls import UNTAGGED, read_arguments, value_end
from toolrl_box.dialects._draft import NEVER, Draft
from toolrl_box.types import Parsed, ParseError, ToolCall

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"

_TAG = re.compile("|".join((BEGIN, END, CALL, CALL_END)))
_NAME = re.compile(r"\s*([A-Za-z_][\w.\-]{0,127})\s*")
_FENCE = re.compile(r"\s*```(?:json)?\s*")
_FENCE_END = re.compile(r"\s*```")
_BARE = re.compile(
    r"^[ \t]{0,8}(?:function(?P<fenced>[A-Za-z_][\w.\-]{0,127})[ \t]{0,8}\n"
    r"```(?:json)?\s{0,8}(?=\{)"
    r"|(?P<name>[A-Za-z_][\w.\-]{0,127})(?=\{[\s}\"]))",
    re.MULTILINE,
)


@dataclass(frozen=True)
class DeepSeek:
    """Calls between DeepSeek's tags, or bare when those were ``stripped``."""

    stripped: bool = False
    name = "deepseek"
    control_tokens = (
        *(
            BEGIN,
            END,
            CALL,
            CALL_END,
            SEP,
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
        ),
        *("<｜tool▁outputs▁begin｜>", "<｜tool▁output▁begin｜>"),
    )

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        tagged = "<｜tool▁call" in text
        draft = Draft(text, NEVER if self.stripped and not tagged else UNTAGGED)
        draft.skip_thought()
        if tagged:
            _tagged(draft)
        elif self.stripped:
            while (found := _BARE.search(text, draft.position)) is not None:
                _bare(draft, found)
        return draft.finish()


def _tagged(draft: Draft) -> None:
    """The outer tags open and close; between them calls, each with both of its own."""
    text = draft.text
    marks = list(_TAG.finditer(text, draft.position))
    outer: int | None = None
    index = 0
    while index < len(marks):
        mark = marks[index]
        following = marks[index + 1] if index + 1 < len(marks) else None
        index += 1
        if mark[0] == BEGIN and outer is None:
            draft.say(mark.start())
            outer, draft.position = mark.start(), mark.end()
            if following is not None and following[0] == END:
                draft.broken("empty_call", mark.start(), following.end(), "no call inside")
        elif mark[0] == CALL and (following is None or following[0] in (BEGIN, CALL)):
            end = len(text) if following is None else following.start()
            draft.broken("unclosed_call", mark.start(), end, "no closing tag")
            outer = None if following is None else outer
        elif mark[0] == CALL and following is not None and following[0] == CALL_END:
            _block(draft, outer, mark, following)
            index += 1
        elif mark[0] == END and outer is not None:
            draft.say(mark.start())
            outer, draft.position = None, mark.end()
            if draft.spans:
                draft.spans[-1] = (draft.spans[-1][0], mark.end())
        elif mark[0] == CALL:
            draft.broken("unclosed_call", mark.start(), mark.end(), "no closing tag")
        # Any other tag is left to the text, where it is a stray one.
    if outer is not None:
        draft.say(len(text))
        draft.error("unclosed_call", outer, len(text), f"no {END}")


def _block(draft: Draft, outer: int | None, opening: Match[str], closing: Match[str]) -> None:
    result = _read(draft.text, opening.end(), closing.start())
    if outer is None and isinstance(result, ToolCall):
        draft.broken("untagged_call", opening.start(), closing.end(), f"no {BEGIN} before it")
        return
    start = opening.start()
    if not draft.text[draft.position : start].strip():
        first = outer is not None and draft.position == outer + len(BEGIN)
        draft.position = start
        start = outer if first and outer is not None else start
    draft.block(start, closing.end(), result)


def _read(text: str, start: int, end: int) -> ToolCall | ParseError:
    if not text[start:end].strip():
        return ParseError("empty_call", start, end, "nothing inside")
    separator = text.find(SEP, start, end)
    if separator < 0:
        return ParseError("bad_syntax", start, end, f"no {SEP}")
    before, after = text[start:separator].strip(), separator + len(SEP)
    if text.find("```", after, end) < 0:
        return read_arguments(before, text, after, end) if before else _nameless(start, end)
    name = _NAME.match(text, after, end)
    if name is None:
        return _nameless(start, end)
    fence = _FENCE.match(text, name.end(), end)
    close = text.rfind("```", name.end(), end)
    if fence is None or close < fence.end():
        return ParseError("bad_syntax", start, end, "the code fence is not closed")
    if text[close + 3 : end].strip():
        return ParseError("trailing_debris", close + 3, end, "text after the arguments")
    return read_arguments(name[1], text, fence.end(), close)


def _nameless(start: int, end: int) -> ParseError:
    return ParseError("missing_name", start, end, "the call has no name")


def _bare(draft: Draft, found: Match[str]) -> None:
    text, start = draft.text, found.start() + len(found[0]) - len(found[0].lstrip())
    end = value_end(text, found.end())
    if end is None:
        draft.broken("unclosed_call", start, len(text), "the JSON is not closed")
        return
    name = found["fenced"] or found["name"]
    call = read_arguments(name, text, found.end(), end)
    fence = _FENCE_END.match(text, end) if found["fenced"] is not None else None
    draft.block(start, end if fence is None else fence.end(), call)
