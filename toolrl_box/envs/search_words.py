"""Words and mark-up of the search world: the data beside ``search.py``.

Entities are the pocket world's two-syllable composites, so that one tokenizer serves both worlds.
The mark-up is made of plain pieces (bracket, name, bracket), none of them a control token of the
pocket world: a model may follow tags that it sees in its context without ever having met them.
"""

from __future__ import annotations

from collections.abc import Mapping

# The first twelve occur in pre-training and training, the last four in neither (held out).
RELATIONS = (
    "capital", "river", "mayor", "founder", "flower", "language", "animal", "metal",
    "dish", "anthem", "rival", "patron", "harbor", "festival", "emblem", "dance",
)  # fmt: skip
TRAINED_RELATIONS, HELDOUT_RELATIONS = RELATIONS[:12], RELATIONS[12:]

# Names of the four tags. The first of each is the paper's (arXiv 2603.08068) and the target of
# training; pre-training draws from all, but never the first of search and answer and brackets.
TAG_NAMES: Mapping[str, tuple[str, ...]] = {
    "think": ("think", "plan", "reason", "thought", "idea", "note"),
    "search": (
        "search", "find", "lookup", "query", "seek", "fetch", "ask", "retrieve", "browse",
        "check", "explore",
    ),
    "information": ("information", "result", "facts", "docs", "found", "source"),
    "answer": ("answer", "final", "reply", "output", "solution", "finish", "response", "verdict"),
}  # fmt: skip
BRACKETS = (("<", "</", ">"), ("[", "[/", "]"), ("{", "{/", "}"), ("(", "(/", ")"),
            ("|", "|/", "|"), ("#", "#/", "#"))  # fmt: skip


FACT = "the {relation} of {subject} is {object}."
ONE_HOP = ("what is the {relation} of {subject}?", "name the {relation} of {subject}.")
TWO_HOP = (
    "what is the {second} of the {relation} of {subject}?",
    "name the {second} of the {relation} of {subject}.",
)
THOUGHTS = {"search": "I need the {relation} of {subject}.", "answer": "I know the {relation}."}
QUERY = "{relation} of {subject}"
GUESSES = ("It is {object}.", "I think it is {object}.")
SYSTEM = "Answer the question."
# How formats/icrl.py goes on after it (formats and worlds do not know each other).
USAGE = " Use {think}, {search} and {answer}."
DEMONSTRATION = "Example:\n"
# Thoughts of a gold dialogue about a user's own question.
LOOK_UP = {"search": "I need to look this up.", "answer": "I know the answer."}
NOTHING, BAD_CALL = "nothing found.", "bad call."
TEXTS = (
    FACT,
    *ONE_HOP,
    *TWO_HOP,
    *THOUGHTS.values(),
    QUERY,
    *GUESSES,
    SYSTEM + USAGE,
    DEMONSTRATION,
)
