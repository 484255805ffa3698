"""The tools of one BFCL episode: calls in, what they answer out.

Job: run :class:`~toolrl_box.types.ToolCall` on instances that belong to this episode alone and keep
their state across turns, and compare states. Nothing is evaluated: a call's name is looked up
among the documented functions of the task's tool classes. Answers are written as the package's
executor writes them, because its checker compares them as text.

A call that a tool class does not survive is answered, never raised. Its time is bounded by a
profile function, which unlike a signal also works outside the main thread; it is looked at when
functions are called, and the only long work inside one C function (large numbers) is bounded in
``bfcl_isolated``.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator

from toolrl_box.envs.bfcl_package import documents
from toolrl_box.types import ToolCall

FAILED = "Error during execution: "
"""Begins the answer to a call that was not carried out, as the package words it."""
STATELESS = "MathAPI"


class Toolbox:
    """Fresh instances of ``classes``, each loaded with its part of ``config``."""

    def __init__(
        self,
        classes: Sequence[str],
        config: Mapping[str, Any],
        *,
        long_context: bool,
        seconds: float,
        check_types: bool,
    ) -> None:
        # Imports the package.
        from toolrl_box.envs.bfcl_isolated import KINDS

        self._seconds = seconds
        self._check_types = check_types
        self._instances: dict[str, Any] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        for name in classes:
            instance = self._instances[name] = KINDS[name]()
            if name != STATELESS:
                own = copy.deepcopy(config.get(name, {}))
                instance._load_scenario(own, long_context=long_context)
            for function in documents()[name]:
                self._functions[function] = getattr(instance, function)

    def run(self, call: ToolCall) -> str:
        """The answer to ``call``; one that begins with :data:`FAILED` was not carried out."""
        if call.name not in self._functions:
            return f"{FAILED}name '{call.name}' is not defined"
        fault = argument_fault(call.name, call.arguments, self._check_types)
        if fault is not None:
            return f"{FAILED}{fault}"
        try:
            with time_limit(self._seconds):
                # A copy: tools keep what they are given, and the call is part of a record.
                function = self._functions[call.name]
                return _written(function(**copy.deepcopy(dict(call.arguments))))
        except OutOfTime:
            return f"{FAILED}{call.name} took longer than {self._seconds:g} s"
        except Exception as error:
            return f"{FAILED}{error}"

    def same_state(self, other: Toolbox) -> bool:
        """Whether every public attribute of ``other``'s instances is equal here."""
        try:
            with time_limit(self._seconds):
                return all(
                    _public(self._instances[name]) == _public(instance)
                    for name, instance in other._instances.items()
                )
        except (OutOfTime, RecursionError):
            # A directory copied into itself has no end; nothing else has neither.
            return False


def _public(instance: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(instance).items() if not name.startswith("_")}


def _written(result: Any) -> str:
    """As the package's executor writes a result."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError, RecursionError):
            return str(result)
    return str(result)


# --- arguments ------------------------------------------------------------------------------


def argument_fault(function: str, arguments: Mapping[str, Any], types: bool) -> str | None:
    """What is wrong with the arguments by the function's document, or None: names, and unless told
    otherwise types (a whole number written ``5.0`` is an integer)."""
    strict, names_only = _validators(function)
    validator = strict if types else names_only
    if validator.is_valid(arguments):
        return None
    error = next(validator.iter_errors(arguments))
    where = ".".join(str(part) for part in error.absolute_path)
    return f"{function}({where}): {error.message}" if where else f"{function}: {error.message}"


@lru_cache(maxsize=None)
def _validators(function: str) -> tuple[Draft202012Validator, Draft202012Validator]:
    """Of names and types, and of names alone."""
    schema = next(specs[function] for specs in documents().values() if function in specs).parameters
    closed = {**schema, "additionalProperties": False}
    untyped = {**closed, "properties": dict.fromkeys(schema["properties"], True)}
    return Draft202012Validator(closed), Draft202012Validator(untyped)


# --- time -----------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """Not an ``Exception``: tool classes catch those."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises :class:`OutOfTime` in the body after ``seconds`` of this thread's processor time.

    A profiler that is at work already is left to it: then there is no limit.
    """
    if sys.getprofile() is not None:
        yield
        return
    deadline = time.thread_time() + seconds
    events = 0

    def look(frame: Any, event: str, argument: Any) -> None:
        nonlocal events
        events += 1
        if events % 256 == 0 and time.thread_time() > deadline:
            raise OutOfTime

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
