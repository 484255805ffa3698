"""Splits a rendered dialogue into messages, with its markers present or stripped.

Input: the prompt's text, which ends where the model took over, and the completion's, which begins
there and may hold several turns. Output: messages, texts as they are between the markers.

Frames: ChatML, Llama 3, Gemma and Mistral with their markers; ChatML and Llama 3 as a tokenizer
leaves them when it drops special tokens (bare ``\\nuser\\n`` lines, or ``user\\n\\n`` glued to what
stands before). Layouts: the chat templates of Qwen2.5-Instruct, Llama-3.1-Instruct,
gemma-2-it and Mistral-7B-Instruct-v0.3.

The role is the one that the log shows: Qwen's template writes tool results as *user*. Where
markers are stripped, a model that wrote ``\\nuser\\n`` itself cannot be told from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from toolrl_box.diagnose.readers._messages import ROLES
from toolrl_box.diagnose.records import LoggedMessage
from toolrl_box.types import Role

_ROLE = r"(system|developer|user|assistant|tool|ipython|model|function|observation)"


@dataclass(frozen=True, slots=True)
class Frame:
    """``header`` begins a message and captures its role; ``mark``: a part of it that no other text
    has (empty when markers are stripped); ``ends``: what ends a message; ``pad``: what may stand
    after a text's end."""

    header: re.Pattern[str]
    mark: str = ""
    ends: tuple[str, ...] = ()
    pad: str = ""

    def seen_in(self, text: str) -> bool:
        return self.mark in text and self.header.search(text) is not None


CHATML = Frame(
    re.compile(rf"<\|im_start\|>{_ROLE}\n?"),
    mark="<|im_start|>",
    ends=("<|im_end|>",),
    pad="<|endoftext|>",
)
LLAMA = Frame(
    re.compile(
        rf"(?:<\|begin_of_text\|>)?<\|start_header_id\|>{_ROLE}<\|end_header_id\|>\n{{0,2}}"
    ),
    mark="<|start_header_id|>",
    ends=("<|eot_id|>", "<|eom_id|>"),
    pad="<|end_of_text|>",
)
GEMMA = Frame(
    re.compile(rf"(?:<bos>)?<start_of_turn>{_ROLE}\n?"),
    mark="<start_of_turn>",
    ends=("<end_of_turn>",),
    pad="<eos>",
)
MISTRAL = Frame(
    re.compile(
        r"(?:<s>)?(\[INST\] ?|\[/INST\] ?|\[SYSTEM_PROMPT\]|\[/SYSTEM_PROMPT\]|\[TOOL_RESULTS\] ?"
        r"|\[/TOOL_RESULTS\]|\[AVAILABLE_TOOLS\] ?|\[/AVAILABLE_TOOLS\])"
    ),
    mark="[INST]",
    ends=("</s>",),
)
CHATML_STRIPPED = Frame(re.compile(rf"(?:\A|\n){_ROLE}\n"))
LLAMA_STRIPPED = Frame(
    re.compile(r"(?:\A|(?<=\S))(system|user|assistant|tool|ipython)\n\n"),
)
MARKED = (CHATML, LLAMA, GEMMA, MISTRAL)

# What a template may write after the assistant's header: nothing, or an opened or empty thought.
_PREFIX = re.compile(r"\s*(?:<think>\s*(?:</think>\s*)?)?")
_BEGINNINGS = ("<s>", "<|begin_of_text|>", "<bos>")
_MISTRAL_ROLES: dict[str, Role] = {
    "[INST]": "user",
    "[SYSTEM_PROMPT]": "system",
    "[AVAILABLE_TOOLS]": "system",
    "[TOOL_RESULTS]": "tool",
}


def prompt_frame(prompt: str) -> Frame | None:
    """The frame in which a prompt is written, None when no header is seen.

    A stripped frame is only believed when the prompt begins with a role's header, or ends with the
    assistant's.
    """
    for frame in MARKED:
        if frame.seen_in(prompt):
            return frame
    if re.match(r"\s*(system|user)\n\n\S", prompt) and prompt.endswith("assistant\n\n"):
        return LLAMA_STRIPPED
    if re.match(rf"\s*{_ROLE}\n", prompt) or re.search(r"\nassistant\n?\Z", prompt):
        return CHATML_STRIPPED
    return None


def completion_frame(framed: Frame | None, completion: str) -> Frame | None:
    """The frame of a completion whose prompt is ``framed``.

    Some trainers strip the special tokens of completions only (TRL). Where the prompt's are
    stripped, marks in a completion are text that the model wrote: evidence, and no frame. A
    stripped frame is only believed when a user's or tool's line leads back to the assistant's.
    """
    if framed in (CHATML_STRIPPED, LLAMA_STRIPPED):
        return framed
    for frame in MARKED if framed is None else (framed,):
        if frame.seen_in(completion):
            return frame
    if framed in (None, CHATML) and _returns(completion, "\n{}\n"):
        return CHATML_STRIPPED
    if framed is LLAMA and _returns(completion, "{}\n\n"):
        return LLAMA_STRIPPED
    return framed


def _returns(completion: str, header: str) -> bool:
    """Whether there is a header of the environment, and behind it one of the assistant."""
    roles = ("user", "tool", "ipython")
    places = [at for role in roles if (at := completion.find(header.format(role))) >= 0]
    return bool(places) and header.format("assistant") in f"{completion[min(places) :]}\n"


def dialogue(prompt: str, completion: str) -> tuple[tuple[LoggedMessage, ...], int]:
    """The messages of both texts and how many are the prompt's.

    A prompt without any header is the user's. The completion begins with an assistant's message,
    which is there even when it is empty: nothing may be what a collapsed model wrote.
    """
    framed = prompt_frame(prompt)
    if framed is None:
        before = [LoggedMessage("user", prompt)] if prompt else []
    else:
        before = list(split(prompt, framed, first="user"))
        if before and before[-1].role == "assistant" and _PREFIX.fullmatch(before[-1].text):
            del before[-1]  # the generation prompt
    frame = completion_frame(framed, completion)
    if frame is None:
        return (*before, LoggedMessage("assistant", completion)), len(before)
    after = list(split(completion, frame, first="assistant", keep_first=True))
    if len(after) > 1 and after[-1].role == "assistant" and not after[-1].text:
        del after[-1]  # the episode ended before the model's turn
    return (*before, *after), len(before)


def split(
    text: str, frame: Frame, *, first: Role, keep_first: bool = False
) -> Iterator[LoggedMessage]:
    """The messages of a text that begins inside one of role ``first`` (dropped when it is empty,
    unless ``keep_first``)."""
    role, start, is_first = first, 0, True
    for header in frame.header.finditer(text):
        body = _body(text[start : header.start()], frame)
        if is_first and not keep_first:
            if body.strip() and body.strip() not in _BEGINNINGS:
                yield LoggedMessage(role, body)
        elif is_first or frame is not MISTRAL or body:
            yield LoggedMessage(role, body)
        role, start, is_first = _role(header, frame), header.end(), False
    body = _body(text[start:], frame)
    if not is_first or keep_first or body.strip():
        yield LoggedMessage(role, body)


def begins(line: str, frame: Frame) -> bool:
    """Whether a line begins a dialogue: with the text's first token or a system message."""
    header = frame.header.match(line)
    if header is None:
        return False
    return line.startswith(_BEGINNINGS) or _role(header, frame) == "system"


def _role(header: re.Match[str], frame: Frame) -> Role:
    if frame is MISTRAL:
        return _MISTRAL_ROLES.get(header[1].strip(), "assistant")
    return ROLES[header[1]]


def _body(text: str, frame: Frame) -> str:
    """A message without what the frame puts after it."""
    while frame.pad and text.endswith(frame.pad):
        text = text.removesuffix(frame.pad)
    for end in frame.ends:
        for tail in (end, f"{end}\n"):
            if text.endswith(tail):
                return text.removesuffix(tail)
    return text


def ended_fact(prompt: str, completion: str) -> dict[str, float]:
    """The fact ``ended_with_eos``, where the completion's own text shows it: it holds end markers,
    so a last message without one was not ended by the model."""
    frame = completion_frame(prompt_frame(prompt), completion)
    if frame is None:
        return {}
    ends = (*frame.ends, frame.pad) if frame.pad else frame.ends
    if not any(end in completion for end in ends):
        return {}
    return {"ended_with_eos": float(completion.rstrip("\n").endswith(ends))}
