"""Every error a user can cause. The command line prints it on one line and exits with 2.

    ToolRLError
    ├── ConfigError        a setting, name or combination that cannot be
    ├── DataError          a task, corpus or log that cannot be read
    ├── ModelError         a model or tokenizer that does not fit
    ├── RunFolderError     a run folder that is taken, missing, locked or not ours
    │   └── CheckpointError    a checkpoint that is incomplete or damaged
    ├── JudgeError         an LLM judge that is down, refuses or answers nonsense
    ├── TeamError          another process of the same run that is gone
    └── MissingExtraError  an optional package that is not installed

A message names the value, the rule and the choices. Bugs are not in this tree: they are asserts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class ToolRLError(Exception):
    """Base of every error that a user can mend; its text is one line."""


class ConfigError(ToolRLError):
    pass


class DataError(ToolRLError):
    pass


class ModelError(ToolRLError):
    pass


class RunFolderError(ToolRLError):
    pass


class CheckpointError(RunFolderError):
    pass


class JudgeError(ToolRLError):
    pass


class TeamError(ToolRLError):
    pass


class MissingExtraError(ToolRLError):
    pass


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` when something close exists, else an empty string."""
    close = difflib.get_close_matches(value, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(what: str, value: str, choices: Iterable[str]) -> ConfigError:
    """``unknown scheme 'interleavd'; did you mean 'interleaved'? one of: …``"""
    names = sorted(choices)
    hint = did_you_mean(value, names)
    return ConfigError(f"unknown {what} '{value}'{hint or ';'} one of: {', '.join(names)}")


def lookup(what: str, value: str, table: Mapping[str, T]) -> T:
    """``table[value]`` or a :class:`ConfigError` with a did-you-mean."""
    if value not in table:
        raise unknown(what, value, table)
    return table[value]
