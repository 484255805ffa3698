"""The dialects by name. A new one is one new file and one line here."""

from __future__ import annotations

from dataclasses import replace

from toolrl_box.dialects.anthropic import Anthropic
from toolrl_box.dialects.deepseek import DeepSeek
from toolrl_box.dialects.embedded import Embedded
from toolrl_box.dialects.harmony import Harmony
from toolrl_box.dialects.hermes import HermesDialect
from toolrl_box.dialects.llama3 import Llama3
from toolrl_box.dialects.mistral import Mistral
from toolrl_box.dialects.plain import Plain
from toolrl_box.errors import ConfigError, did_you_mean
from toolrl_box.formats import Icrl, Pythonic, Xml

Dialect = HermesDialect | Embedded | Llama3 | Mistral | DeepSeek | Harmony | Anthropic | Plain
"""``name``, ``control_tokens`` (the call's start and end first), ``stripped``, ``parse(text)``."""

DIALECTS: dict[str, Dialect] = {
    "hermes": HermesDialect(),
    "xml": Embedded(Xml()),
    "llama3": Llama3(),
    "mistral": Mistral(),
    "deepseek": DeepSeek(),
    "harmony": Harmony(),
    "anthropic": Anthropic(),
    "pythonic": Embedded(Pythonic()),
    "icrl": Embedded(Icrl()),
    "plain": Plain(),
}
"""In the order in which ties of :func:`dialects.detect` are decided."""


def dialect(name: str, *, stripped: bool = False) -> Dialect:
    """The dialect of that name; ``stripped``: the log dropped special tokens.

    Raises ConfigError for a name that is none.
    """
    if name not in DIALECTS:
        raise ConfigError(
            f"unknown tool format '{name}'{did_you_mean(name, DIALECTS) or ';'} one of: "
            + ", ".join(DIALECTS)
        )
    return replace(DIALECTS[name], stripped=stripped)
