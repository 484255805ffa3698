"""The tool format that a model brings along: frame and calls as its own chat template writes them.

:func:`format_of` gives any format of a run by name, ``native`` included; that one needs the
model's tokenizer.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from toolrl_box.errors import ConfigError, lookup
from toolrl_box.formats import ALL_FORMATS, NATIVE
from toolrl_box.native.format import Native, read_format
from toolrl_box.native.template import Template
from toolrl_box.types import ToolFormat


def format_of(
    name: str, tokenizer: PreTrainedTokenizerBase, thinking: bool | None = None
) -> ToolFormat:
    """The tool format of that name for this tokenizer. Raises ConfigError for an unknown name and
    for ``thinking`` where the format or the template has no such switch, ModelError for a template
    that cannot serve."""
    if name == NATIVE:
        return read_format(tokenizer, thinking)
    if thinking is not None:
        raise ConfigError(
            f"model.thinking = {thinking}: format '{name}' has no thinking blocks; leave it out, "
            f"or use --format {NATIVE}"
        )
    return lookup("format", name, ALL_FORMATS)


__all__ = ["Native", "Template", "format_of", "read_format"]
