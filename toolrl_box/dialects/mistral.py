"""Mistral: ``[TOOL_CALLS]`` and then a JSON list of calls, or a name and its arguments.

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}

The second form, of later tokenizers, repeats the tag for each call and may hold
``[CALL_ID]…`` before ``[ARGS]``, or no ``[ARGS]``. All these tags are special tokens; in a log
without them (``stripped``) the list, or ``get_weather{"city": "Oslo"}`` at the beginning of a
line, is the call.

Left out: what ``[THINK]`` holds; a thinking block is skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from toolrl_box.dialects._calls import UNTAGGED, read_arguments, take_calls, value_end
from toolrl_box.dialects._draft import NEVER, Draft
from toolrl_box.types import Parsed

TAG = "[TOOL_CALLS]"

_NAMED = re.compile(
    r"\s*(?P<name>[A-Za-z_][\w.\-]{0,127})\s{0,4}(?:\[CALL_ID\][\w\-]{0,64})?(?:\[ARGS\])?\s{0,4}(?=\{)"
)
_LIST = re.compile(r'\s*(?=\[\s*\{|\{\s*")')
_BARE = re.compile(
    r"(?P<list>\[\s{0,8}\{\s{0,8}\"name\"\s{0,8}:)"
    r"|^[ \t]{0,8}(?P<name>[A-Za-z_][\w.\-]{0,127})(?=\{[\s}\"])",
    re.MULTILINE,
)
_UNTAGGED = re.compile(rf"{UNTAGGED.pattern}|\A\s*[A-Za-z_][\w.\-]{{0,127}}\{{\s*\"")


@dataclass(frozen=True)
class Mistral:
    """Calls after ``[TOOL_CALLS]``, or bare when that was ``stripped``."""

    stripped: bool = False
    name = "mistral"
    control_tokens = (TAG, "</s>", "[ARGS]", "[CALL_ID]", "[TOOL_RESULTS]", "[INST]", "[/INST]")

    def parse(self, text: str) -> Parsed:
        """Read one assistant message (without stop token). Never raises; linear time."""
        bare = self.stripped and TAG not in text
        draft = Draft(text, NEVER if bare else _UNTAGGED)
        draft.skip_thought()
        if bare:
            while (found := _BARE.search(text, draft.position)) is not None:
                if found["list"] is not None:
                    take_calls(draft, found.start())
                else:
                    _named(draft, found.start("name"), found["name"], found.end())
        else:
            while (tag := text.find(TAG, draft.position)) >= 0:
                _tagged(draft, tag)
        return draft.finish()


def _tagged(draft: Draft, tag: int) -> None:
    text, body = draft.text, tag + len(TAG)
    values = _LIST.match(text, body)
    named = _NAMED.match(text, body)
    if values is not None:
        take_calls(draft, values.end(), tag)
    elif named is not None:
        _named(draft, tag, named["name"], named.end())
    else:
        end = text.find(TAG, body)
        if end < 0:
            draft.broken("unclosed_call", tag, len(text), "no call after the tag")
        else:
            draft.broken("nested_open", tag, end, "opened again before a call")


def _named(draft: Draft, start: int, name: str, opening: int) -> None:
    end = value_end(draft.text, opening)
    if end is None:
        draft.broken("unclosed_call", start, len(draft.text), "the JSON is not closed")
    else:
        draft.block(start, end, read_arguments(name, draft.text, opening, end))
