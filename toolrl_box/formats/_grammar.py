"""Which assistant messages are structurally possible, read character by character.

Input: a state and the next character. Output: the next state, or None when no message in a healthy
structural state (``probe.states``: text without debris, or text and then well-formed, closed calls)
goes on like that; and whether a message may end here. A format describes itself as a table of
:class:`Mode`, the stretches between its tags:

* a call opens at the beginning of the message or of a line, never inside text or another call;
* an open call cannot end the message, and inside it stands what the format's parser reads;
* after a closed call comes the end, or another call where the format writes several;
* no tag stands anywhere else, and a message says something.

It errs on one side: whatever it refuses is broken, not everything broken is refused. It knows
nothing of tools, arguments or whether a call is due. Left out: tags as *content* (inside a text
argument they are refused, as the model's control tokens would be), fragments of tags, and calls
without their tags, which are text here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from toolrl_box.formats._literal import FIRST_CALL, SPACE, Literals, Reading, begins_name

TAGS = (
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"),
    *("<function=", "</function>", "<parameter=", "</parameter>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
)
"""Tags of the embedded formats and of the frame."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A stretch of a message. ``tags``: what ends it, and the name of the mode that follows.

    ``reads``: ``text`` is a message's text (tags begin a line there); ``free`` is anything that is
    no tag; ``blank`` white space; ``name`` one line up to ``>``; ``literal`` a literal that begins
    with ``literal``, then white space. ``ends``: whether the message may end in it.
    """

    reads: Literal["text", "free", "blank", "name", "literal"]
    tags: Mapping[str, str]
    ends: bool = False
    literal: Reading | None = None


class State(NamedTuple):
    """``tail``: what may become a tag; ``fresh``: whether it (or the next character) begins a
    line; ``said``: whether anything but white space was written; ``list_start``: of a list of
    calls that may begin, ``[`` or ``[a``, and after a ``!`` when it does not begin a line."""

    mode: str
    tail: str = ""
    fresh: bool = True
    said: bool = False
    reading: Reading | None = None
    list_start: str = ""


@dataclass(frozen=True)
class TagGrammar:
    """``modes`` by name, ``text`` first; ``foreign``: tags that may stand nowhere."""

    modes: Mapping[str, Mode]
    literals: Literals
    foreign: tuple[str, ...] = TAGS

    @property
    def start(self) -> State:
        return State("text")

    @cached_property
    def _tags(self) -> frozenset[str]:
        # The ">" that ends a name is no tag anywhere else.
        read = [mode for mode in self.modes.values() if mode.reads != "name"]
        return frozenset({*self.foreign, *(tag for mode in read for tag in mode.tags)})

    @cached_property
    def _prefixes(self) -> frozenset[str]:
        return frozenset(tag[:end] for tag in self._tags for end in range(1, len(tag)))

    def step(self, state: State, char: str) -> State | None:
        mode = self.modes[state.mode]
        if mode.reads == "name":
            if char == ">":
                return self._enter(mode.tags[">"]) if state.said else None
            return None if char in "<\n" else state._replace(said=True)
        if mode.reads == "blank" or (state.reading is not None and state.reading.done):
            return self._blank(mode, state, char)
        reading = state.reading
        if reading is not None:
            reading = self.literals.step(reading, char)
            if reading is None:
                return None
        word = state.tail + char
        if word in self._tags:
            fits = word in mode.tags and (state.fresh if mode.reads == "text" else reading is None)
            return self._enter(mode.tags[word]) if fits else None
        while word and word not in self._prefixes:
            word = word[1:]
        before = (state.tail + char).removesuffix(word)
        return State(
            state.mode,
            tail=word,
            fresh=before[-1] == "\n" if before else state.fresh,
            said=state.said or char not in SPACE,
            reading=reading,
        )

    def may_end(self, state: State) -> bool:
        mode = self.modes[state.mode]
        if not mode.ends:
            return False
        if mode.reads == "text":
            return state.said
        return not state.tail and (state.reading is None or state.reading.done)

    def _enter(self, name: str) -> State:
        return State(name, reading=self.modes[name].literal)

    def _blank(self, mode: Mode, state: State, char: str) -> State | None:
        word = state.tail + char
        if word in mode.tags:
            return self._enter(mode.tags[word])
        if any(tag.startswith(word) for tag in mode.tags):
            return state._replace(tail=word)
        return state if char in SPACE and not state.tail else None


@dataclass(frozen=True)
class ListGrammar(TagGrammar):
    """Calls as one list that has no tag: ``[name(`` at the beginning of a line opens it."""

    def step(self, state: State, char: str) -> State | None:
        after = super().step(state, char)
        if after is None or after.mode != "text":
            return after
        elsewhere, seen = state.list_start.startswith("!"), state.list_start.lstrip("!")
        if char == "[":
            begins_line = state.fresh and not state.tail
            return after._replace(list_start="[" if begins_line else "![")
        if seen == "[a" and char == "(":
            return None if elsewhere else State("list", reading=FIRST_CALL)
        goes_on = (seen == "[" and char in SPACE) or (
            seen == "[a" and (begins_name(char) or char in "0123456789.-")
        )
        if seen == "[" and begins_name(char):
            return after._replace(list_start=state.list_start + "a")
        return after._replace(list_start=state.list_start if goes_on else "")
