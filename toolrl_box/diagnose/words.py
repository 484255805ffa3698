"""What states, kinds and verdicts are called for people who have not read the paper.

Input: nothing. Output: tables from the names in a :class:`Diagnosis` to (short name, one-sentence
meaning). A name that is not listed is shown as it is, with its underscores as blanks.
"""

from __future__ import annotations

from collections.abc import Mapping

Tone = str

TONES: Mapping[str, tuple[Tone, str]] = {
    "healthy": ("good", "Healthy"),
    "drifting": ("warn", "Drifting"),
    "text_pollution": ("bad", "Text pollution"),
    "structural_collapse": ("bad", "Structural collapse"),
    "capability_loss": ("bad", "Loss of capability"),
    "reward_collapse": ("bad", "Reward collapse"),
    "entropy_collapse": ("bad", "Entropy collapse"),
    "length_explosion": ("bad", "Length explosion"),
    "suspected_bug": ("warn", "Suspected bug"),
    "insufficient_data": ("none", "Not enough data"),
}
"""Verdict -> (tone, name). The tone chooses colour and sign."""

STATES: Mapping[str, tuple[str, str]] = {
    "healthy_call": ("healthy call", "A complete tool call that follows its tool's schema."),
    "healthy_response": ("healthy response", "Plain language without debris of tool calls."),
    "text_pollution": (
        "text pollution",
        "Tags stand where they do not belong or are missing, or a call breaks its contract.",
    ),
    "collapsed": (
        "collapsed",
        "Nothing left to use: empty, only tags or punctuation, or one fragment over and over.",
    ),
}

KINDS: Mapping[str, tuple[str, str]] = {
    "call": ("sound call", "A complete call of a known tool."),
    "response": ("sound response", "Plain language."),
    "unclosed_call": ("call never closed", "A call begins and its closing tag never comes."),
    "stray_tag": ("stray tag", "A tag stands where none belongs."),
    "role_debris": ("role marker in text", "The model writes the markers between the speakers."),
    "untagged_call": ("call without tags", "A call is written as plain text."),
    "bad_json": ("unreadable call", "What stands between the tags cannot be read as a call."),
    "unknown_tool": ("unknown tool", "A well-formed call of a tool that does not exist."),
    "schema_violation": ("wrong arguments", "A well-formed call against its tool's schema."),
    "speaks_as_user": ("speaks as the user", "The model goes on as somebody else."),
    "fabricated_result": ("invented result", "The model writes the tool's answer itself."),
    "text_before_call": ("text before a call", "Words where only a call is allowed."),
    "several_calls": ("several calls", "More than one call where one is allowed."),
    "thinking": ("thinking", "A thinking block where none is allowed."),
    "role_word_only": ("only a role's name", "Nothing but the name of a speaker."),
    "debris_after_call": ("text after a call", "Something follows a call that should end it."),
    "truncated": ("cut by the length limit", "The token limit ended the message."),
    "empty": ("empty", "The message holds nothing."),
    "punctuation_only": ("punctuation only", "No letter and no digit."),
    "bare_call_tag": ("only tags", "Tags with nothing in them."),
    "repeated_fragments": ("repeated fragments", "The same piece of a call over and over."),
    "loop": ("loop", "The same text over and over."),
}

SIGNALS: Mapping[str, str] = {
    "reward": "Reward",
    "healthy": "Healthy messages",
    "evaluation": "Success in evaluation",
    "reward_std": "Spread of reward",
    "success": "Success in evaluation",
    "entropy": "Entropy",
    "kl": "KL to the reference",
    "grad_norm": "Gradient norm",
    "response_length": "Response length",
    "length": "Response length",
    "clip_fraction": "Clipped ratios",
    "truncated": "Cut responses",
    "learning_rate": "Learning rate",
    "loss": "Loss",
}


def plain(name: str) -> str:
    """A name of ours without its underscores."""
    return name.replace("_", " ")


def state_name(state: str) -> str:
    return STATES[state][0] if state in STATES else plain(state)


def kind_name(kind: str) -> str:
    return KINDS[kind][0] if kind in KINDS else plain(kind)


def signal_name(signal: str) -> str:
    return SIGNALS.get(signal, plain(signal))
