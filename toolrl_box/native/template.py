"""A tokenizer's chat template as a function of messages.

Input: a tokenizer, messages and tools of ours. Output: text. Two things that templates take from
elsewhere are fixed, so that a dialogue is written alike in every phase and on every day: whether
the model thinks (``enable_thinking``), and the date (Llama 3's template writes today's into the
system message; a run that is resumed tomorrow would train on other prompts).

Left out: templates for documents, images, or several templates by name (transformers takes the
one for tools).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolrl_box.formats import to_chat, to_tools
from toolrl_box.probe.render import apply_template
from toolrl_box.types import Message, ToolSpec

DATE = "26 Jul 2024"
"""The day that Llama 3's template itself falls back to."""
CALL_ID = "call{:05d}"  # Mistral's templates want nine letters and digits


@dataclass(frozen=True)
class Template:
    """``thinking``: the template's ``enable_thinking``; None leaves it to the template."""

    tokenizer: PreTrainedTokenizerBase
    thinking: bool | None = None

    def __call__(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        generation_prompt: bool = False,
    ) -> str:
        """Raises ModelError without a template, DataError when it refuses these messages."""
        switch = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return apply_template(
            "the dialogue",
            self.tokenizer,
            _with_ids(to_chat(messages)),
            to_tools(tools) or None,
            generation_prompt=generation_prompt,
            date_string=DATE,
            strftime_now=_no_clock,
            **switch,
        )


def _no_clock(layout: str) -> str:
    """In place of the function that tells a template the time."""
    return DATE


def _with_ids(chat: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the ids of calls and results that some templates demand: results answer the calls
    before them in order."""
    written, number = [], 0
    for message in chat:
        entry = dict(message)
        if "tool_calls" in entry:
            entry["tool_calls"] = [
                {**call, "id": CALL_ID.format(place)}
                for place, call in enumerate(entry["tool_calls"])
            ]
            number = 0
        elif entry["role"] == "tool":
            entry["tool_call_id"] = CALL_ID.format(number)
            number += 1
        written.append(entry)
    return written
