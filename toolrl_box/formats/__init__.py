"""Tool formats: how tools, calls and results are written as text, and read back.

A new format is one new file and one line in ``FORMATS``, or in ``IN_CONTEXT`` when it can only
write certain calls; ``ALL_FORMATS`` is every choice of a run.
"""

from __future__ import annotations

from toolrl_box.formats._chatml import DEFAULT_SYSTEM, TOOLS_HEADER, to_chat, to_tools
from toolrl_box.formats._json import read_json_object, too_deep
from toolrl_box.formats._scan import StreamParser
from toolrl_box.formats.hermes import Hermes
from toolrl_box.formats.icrl import Icrl
from toolrl_box.formats.pythonic import Pythonic
from toolrl_box.formats.xml import Xml
from toolrl_box.types import ToolFormat

FORMATS: dict[str, ToolFormat] = {
    "hermes": Hermes(),
    "pythonic": Pythonic(),
    "xml": Xml(),
}

IN_CONTEXT: dict[str, ToolFormat] = {"icrl": Icrl()}
ALL_FORMATS: dict[str, ToolFormat] = {**FORMATS, **IN_CONTEXT}

NATIVE = "native"
"""The format that a model's own chat template writes; it is made from a tokenizer (``native``)."""

INSTRUCTIONS: dict[str, str] = {
    Hermes.name: Hermes.instructions,
    Pythonic.name: Pythonic.instructions,
    Xml.name: Xml.instructions,
}
"""What closes the tool documents in each format; a tokenizer may make each one token."""

__all__ = [
    "ALL_FORMATS",
    "DEFAULT_SYSTEM",
    "FORMATS",
    "INSTRUCTIONS",
    "IN_CONTEXT",
    "NATIVE",
    "TOOLS_HEADER",
    "Hermes",
    "Icrl",
    "Pythonic",
    "StreamParser",
    "Xml",
    "read_json_object",
    "to_chat",
    "to_tools",
    "too_deep",
]
