"""What an answer is worth: normalised exact match, and the score of the mark-up around it.

Input: texts, or the messages of one episode as their format read them. Output: figures in [0, 1].
Environments and rewards both need them, so they stand below both.

Left out: partial credit for words in common (F1).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

from toolrl_box.types import Parsed

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous space (SQuAD's normalisation)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def matches(said: str, answers: Iterable[str]) -> bool:
    """Whether ``said`` is one of ``answers`` after normalisation."""
    said = normalised(said)
    return any(said == normalised(answer) for answer in answers)


def format_score(messages: Sequence[Parsed]) -> float:
    """The format part of ICRL's reward (arXiv 2603.08068, published code), in [0, 1].

    Over all messages of the episode together, from 1.0: no opening answer tag −0.5, as many
    closing as opening answer tags not −0.2, no opening think tag −0.15, think tags unbalanced
    −0.1, no opening search tag −0.1, last answer empty −0.2. The deductions add up.
    """
    tags = [tag for message in messages for tag in message.tags]
    said = [
        str(call.arguments["answer"])
        for message in messages
        for call in message.calls
        if call.name == "answer" and "answer" in call.arguments
    ]
    score = 1.0
    if "answer" not in tags:
        score -= 0.5
    if tags.count("answer") != tags.count("/answer"):
        score -= 0.2
    if "think" not in tags:
        score -= 0.15
    if tags.count("think") != tags.count("/think"):
        score -= 0.1
    if "search" not in tags:
        score -= 0.1
    if said and not said[-1].strip():
        score -= 0.2
    return min(1.0, max(0.0, score))
