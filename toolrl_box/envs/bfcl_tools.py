"""The tools of one BFCL episode: calls in, what they answer out.

Job: run :class:`~toolrl_box.types.ToolCall` on instances that belong to this episode alone and keep
their state across turns, and compare states. Nothing is evaluated: a call's name is looked up
among the documented functions of the task's tool classes. Answers are written as the package's
executor writes them, because its checker compares them as text.

A call that a tool class does not survive is answered, never raised. Its time is bounded by a trace
function, which unlike a signal also works outside the main thread; it is asked when functions are
called, and the only long work inside one function (large numbers) is bounded in ``bfcl_isolated``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

from pydantic_core import SchemaValidator, ValidationError, core_schema

from toolrl_box.envs.bfcl_package import documents
from toolrl_box.types import ToolCall

FAILED = "Error during execution: "
"""Begins the answer to a call that was not carried out, as the package words it."""
STATELESS = "MathAPI"


class Answer(NamedTuple):
    """What a call got to read; whether it was ``carried_out``, and its arguments were ``typed``
    as documented."""

    text: str
    carried_out: bool
    typed: bool


class Toolbox:
    """Fresh instances of ``classes``, each loaded with its part of ``config``.

    ``seconds``: processor time of one call, None for calls that are trusted. ``strict_types``: a
    call with arguments of other types than documented is not carried out.
    """

    def __init__(
        self,
        classes: Sequence[str],
        config: Mapping[str, Any],
        *,
        long_context: bool,
        seconds: float | None,
        strict_types: bool,
    ) -> None:
        # Imports the package.
        from toolrl_box.envs.bfcl_isolated import KINDS

        self._seconds = seconds
        self._strict_types = strict_types
        self._instances: dict[str, Any] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        for name in classes:
            instance = self._instances[name] = KINDS[name]()
            if name != STATELESS:
                own = _copied(config.get(name, {}))
                instance._load_scenario(own, long_context=long_context)
            for function in documents()[name]:
                self._functions[function] = getattr(instance, function)

    def run(self, call: ToolCall) -> Answer:
        """Carry out ``call`` if that can be done."""
        function = self._functions.get(call.name)
        if function is None:
            return Answer(f"{FAILED}name '{call.name}' is not defined", False, True)
        fault = type_fault(call.name, call.arguments)
        typed = fault is None
        if fault is not None and self._strict_types:
            return Answer(f"{FAILED}{fault}", False, False)
        try:
            with TimeLimit(self._seconds):
                # A copy: tools keep what they are given, and the call is part of a record.
                return Answer(_written(function(**_copied(call.arguments))), True, typed)
        except OutOfTime:
            text = f"{call.name} took longer than {self._seconds} s"
        except Exception as error:
            text = str(error)
        return Answer(FAILED + text, False, typed)

    def same_state(self, other: Toolbox) -> bool:
        """Whether every public attribute of ``other``'s instances is equal here."""
        try:
            with TimeLimit(self._seconds):
                return all(
                    _public(self._instances[name]) == _public(instance)
                    for name, instance in other._instances.items()
                )
        except (OutOfTime, RecursionError):
            # A directory copied into itself has no end; gold never does that.
            return False


def _copied(value: Any) -> Any:
    """A copy of JSON values; ``copy.deepcopy`` takes five times longer."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(inner) for inner in value]
    return value


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


def type_fault(function: str, arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with the types of ``arguments`` by the function's document, or None. Which
    arguments there must be is for Python to say."""
    validator = _validator(function)
    if validator.isinstance_python(arguments):
        return None
    try:
        validator.validate_python(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{function}: {where} = {first['input']!r}: {first['msg'].lower()}"
    raise AssertionError("what is no instance does not validate")


@cache
def _validator(function: str) -> SchemaValidator:
    # pydantic's core: jsonschema takes 50 times longer, a third of an episode.
    document = next(specs[function] for specs in documents().values() if function in specs)
    return SchemaValidator(_typed(document.parameters))


def _typed(document: Mapping[str, Any]) -> core_schema.CoreSchema:
    match document["type"]:
        case "string":
            return core_schema.str_schema(strict=True)
        case "integer":
            return core_schema.int_schema(strict=True)
        case "number":
            return core_schema.float_schema(strict=True)  # whole numbers, too
        case "boolean":
            return core_schema.bool_schema(strict=True)
        case "array":
            return core_schema.list_schema(_typed(document["items"]), strict=True)
    assert document["type"] == "object", document
    fields = {
        name: core_schema.typed_dict_field(_typed(inner), required=False)
        for name, inner in document["properties"].items()
    }
    return core_schema.typed_dict_schema(fields, extra_behavior="ignore", strict=True)


# --- time -----------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """Not an ``Exception``: tool classes catch those."""


class TimeLimit:
    """Raises :class:`OutOfTime` in its body after ``seconds`` of this thread's processor time; None
    is no limit. A debugger or tracer that is at work already is left alone: no limit then."""

    __slots__ = ("_calls", "_deadline", "_off")

    def __init__(self, seconds: float | None) -> None:
        self._off = seconds is None or sys.gettrace() is not None
        self._deadline = time.thread_time() + (seconds or 0.0)
        self._calls = 0

    def __enter__(self) -> None:
        if not self._off:
            sys.settrace(self._look)

    def __exit__(self, *error: object) -> None:
        if not self._off:
            sys.settrace(None)

    def _look(self, frame: FrameType, event: str, argument: Any) -> None:
        self._calls += 1
        if self._calls % 256 == 0 and time.thread_time() > self._deadline:
            raise OutOfTime
