"""Words, tools, intents and replies of the pocket world: the data beside ``pocket.py``.

Values are lower-case words that the tokenizer knows as single tokens, or *composites* of two
syllables. Content-OOD uses only composites and plugin tools that no other split ever draws.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Split = str
Effect = Literal["set", "add", "get", "new", "drop", "arrival"]

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
KINDS: Mapping[str, tuple[str, ...]] = {
    "file": ("report", "budget", "photo", "draft", "thesis", "recipe", "invoice", "map"),
    "folder": ("work", "archive", "home", "shared", "music", "backup", "desk", "inbox"),
    "person": ("anna", "boris", "clara", "david", "emma", "felix", "greta", "hugo"),
    "text": ("hello", "thanks", "later", "sorry", "urgent", "great", "maybe", "welcome"),
    "city": ("rome", "paris", "berlin", "oslo", "madrid", "vienna", "dublin", "athens"),
    "day": DAYS,
    "title": ("plans", "ideas", "goals", "tasks", "songs", "books", "games", "trips"),
    "item": ("apples", "bread", "lamps", "pens", "shoes", "chairs", "cups", "towels"),
    "room": ("kitchen", "hall", "garage", "attic", "office", "cellar", "bedroom", "porch"),
    "color": ("red", "blue", "green", "white", "amber", "violet", "pink", "teal"),
    "event": ("party", "meeting", "concert", "dinner", "exam", "wedding", "lunch", "match"),
}
SYLLABLES = (
    "ba", "du", "fi", "go", "ka", "lo", "mi", "nu", "pe", "ri", "sa", "to",
    "vu", "wa", "xi", "yo", "ze", "che", "dra", "fle", "gru", "kli", "plo", "sto",
)  # fmt: skip

# A composite belongs to one side for good: a third of the pairs is never used outside "ood" and a
# sixth never outside "other" (supervision from another domain).
SIDES: Mapping[str, tuple[int, ...]] = {"train": (2, 4, 5), "ood": (0, 3), "other": (1,)}
COMPOSITES: Mapping[str, tuple[str, ...]] = {
    side: tuple(
        a + b
        for i, a in enumerate(SYLLABLES)
        for j, b in enumerate(SYLLABLES)
        if i != j and (i + j) % 6 in residues
    )
    for side, residues in SIDES.items()
}


def side_of(split: Split) -> str:
    """Which side's words and plugins a split draws."""
    return split if split in SIDES else "train"


@dataclass(frozen=True, slots=True)
class ToolRow:
    """A tool: parameter names (they name the kind of word, too), what it does to which table, and
    the field it returns when it reads."""

    name: str
    params: tuple[str, ...]
    effect: Effect
    table: str
    field: str = ""


TOOLS = (
    ToolRow("move_file", ("file", "folder"), "set", "files"),
    ToolRow("find_file", ("file",), "get", "files", "folder"),
    ToolRow("send_message", ("person", "text"), "add", "outbox"),
    ToolRow("read_message", ("person",), "get", "mailbox", "text"),
    ToolRow("book_room", ("city", "day"), "new", "bookings"),
    ToolRow("cancel_booking", ("code",), "drop", "bookings"),
    ToolRow("write_note", ("title", "text"), "set", "notes"),
    ToolRow("read_note", ("title",), "get", "notes", "text"),
    ToolRow("order_item", ("item", "count"), "new", "orders"),
    ToolRow("track_order", ("code",), "arrival", "orders"),
    ToolRow("set_light", ("room", "color"), "set", "lights"),
    ToolRow("check_light", ("room",), "get", "lights", "color"),
    ToolRow("add_event", ("event", "day"), "set", "events"),
    ToolRow("find_event", ("event",), "get", "events", "day"),
)
PLUGIN_KINDS = ("file", "folder", "person", "city", "day", "item", "room", "color")


@lru_cache(maxsize=len(SIDES))
def plugin_names(side: str) -> tuple[str, ...]:
    """Names such as ``kalo_tool``; the sides share none."""
    return tuple(f"{composite}_tool" for composite in COMPOSITES[side])


def tool_rows(rng: random.Random, split: Split, *, plugins_only: bool = False) -> list[ToolRow]:
    """The tools that an episode of this split may list: in-domain tools and a few plugins;
    only plugins for splits ``ood`` and ``other``."""
    side = side_of(split)
    plugins = []
    for name in rng.sample(plugin_names(side), 2 if side == "train" else 10):
        # The name fixes the signature, so that two draws of one plugin can never disagree.
        first, second = random.Random(name).sample(PLUGIN_KINDS, 2)
        plugins.append(ToolRow(name, (first, second), "add", name))
    return plugins if plugins_only or side != "train" else [*TOOLS, *plugins]


@dataclass(frozen=True, slots=True)
class Intent:
    """What a user may ask.

    ``says``: templates over the drawn words; ``steps``: gold calls, each parameter bound to a word
    or to a field of an earlier result; ``partial``: (left-out word, shortened template);
    ``after``: the tool that an earlier turn must have called; ``plugin``: drawn at random.
    """

    name: str
    says: tuple[str, ...]
    steps: tuple[tuple[str, Mapping[str, str]], ...] = ()
    partial: tuple[str, str] | None = None
    after: str = ""
    plugin: bool = False

    @property
    def tools(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.steps)

    @property
    def draws(self) -> tuple[str, ...]:
        """Words to draw: those that the templates name."""
        names = dict.fromkeys(
            part.split("}")[0] for say in self.says for part in say.split("{")[1:]
        )
        return tuple(names)


def _simple(tool: str, *says: str, partial: tuple[str, str] | None = None) -> Intent:
    params = next(row.params for row in TOOLS if row.name == tool)
    return Intent(tool, says, ((tool, {p: p for p in params}),), partial)


PLUGIN = Intent(
    "plugin",
    ("use TOOL with A {a} and B {b}.", "run TOOL for A {a} and B {b}."),
    partial=("b", "use TOOL with A {a}."),
    plugin=True,
)
INTENTS: Mapping[str, tuple[Intent, ...]] = {
    "train": (
        _simple(
            "move_file",
            "move file {file} to {folder}.",
            "put file {file} in {folder}.",
            partial=("folder", "move file {file}."),
        ),
        _simple("find_file", "where is file {file}?", "find file {file}."),
        _simple(
            "send_message",
            "send {text} to {person}.",
            "tell {person} {text}.",
            partial=("text", "send a message to {person}."),
        ),
        _simple("read_message", "what does {person} say?", "read the message of {person}."),
        _simple(
            "book_room",
            "book a room in {city} on {day}.",
            "on {day} i need a room in {city}.",
            partial=("day", "book a room in {city}."),
        ),
        _simple(
            "write_note",
            "write {text} in note {title}.",
            "set note {title} to {text}.",
            partial=("text", "write in note {title}."),
        ),
        _simple("read_note", "what is in note {title}?", "read note {title}."),
        _simple(
            "order_item",
            "order {count} {item}.",
            "i need {count} {item}.",
            partial=("count", "order {item}."),
        ),
        _simple(
            "set_light",
            "set the light in {room} to {color}.",
            "make the {room} light {color}.",
            partial=("color", "set the light in {room}."),
        ),
        _simple("check_light", "what light is in {room}?", "check the {room} light."),
        _simple(
            "add_event",
            "add {event} on {day}.",
            "on {day} there is {event}.",
            partial=("day", "add {event}."),
        ),
        _simple("find_event", "when is {event}?", "find the day of {event}."),
        Intent(
            "cancel",
            ("cancel that booking.",),
            (("cancel_booking", {"code": "code"}),),
            after="book_room",
        ),
        Intent(
            "track",
            ("track that order.",),
            (("track_order", {"code": "code"}),),
            after="order_item",
        ),
        Intent(
            "send_note",
            ("send note {title} to {person}.",),
            (
                ("read_note", {"title": "title"}),
                ("send_message", {"person": "person", "text": "text"}),
            ),
        ),
        Intent(
            "book_event",
            ("book a room in {city} for {event}.",),
            (("find_event", {"event": "event"}), ("book_room", {"city": "city", "day": "day"})),
        ),
        Intent(
            "same_light",
            ("make the {room2} light like {room}.",),
            (("check_light", {"room": "room"}), ("set_light", {"room": "room2", "color": "color"})),
        ),
        Intent(
            "same_folder",
            ("put file {file2} where {file} is.",),
            (("find_file", {"file": "file"}), ("move_file", {"file": "file2", "folder": "folder"})),
        ),
        PLUGIN,
        PLUGIN,
        PLUGIN,
    ),
    "ood": (PLUGIN,),
    "other": (PLUGIN,),
}
REPLIES: Mapping[str, tuple[str, ...]] = {
    "done": ("Done.", "That is done.", "All set now."),
    "told": ("It is {answer}.", "The answer is {answer}."),
    "no_tool": ("I have no tool for that.", "No tool here can do that."),
}
