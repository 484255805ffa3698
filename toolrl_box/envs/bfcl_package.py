"""What the world takes from the package ``bfcl-eval``: tasks, ground truths, tool documents.

Input: the installed package, one version only, because verdicts depend on it. Output: the records
of a category, calls instead of code, documents as JSON schemas. Ground truths are source text of
calls; they are parsed to literals, never run.

Left out: the package's other categories, its executor, and its model handlers, whose dependencies
are what cannot be installed beside ours.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toolrl_box.errors import DataError, MissingExtraError
from toolrl_box.types import ToolCall, ToolSpec

VERSION = "2026.3.23"
INSTALL = f"pip install --no-deps bfcl-eval=={VERSION} mpmath"
DOCUMENTS: Mapping[str, str] = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
"""Tool class -> its file of documents. These simulate; the package's other classes (web search,
memory) reach the network or the disk and are refused."""
SCHEMA_TYPES = {"dict": "object", "float": "number"}


@dataclass(frozen=True, slots=True)
class Record:
    """One task as the package has it.

    ``questions``: the user's text of each turn, None where it only supplies documents. ``calls``:
    the ground truth of each turn. ``supplied``: turn -> names of the functions whose documents
    arrive with it.
    """

    id: str
    questions: tuple[str | None, ...]
    calls: tuple[tuple[ToolCall, ...], ...]
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    supplied: Mapping[int, tuple[str, ...]]


def check_installed() -> None:
    """Raises MissingExtraError with the command when the package is absent or another version."""
    for package, wanted in (("bfcl-eval", VERSION), ("mpmath", None)):
        try:
            found = version(package)
        except PackageNotFoundError:
            found = None
        if found is None or wanted not in (None, found):
            have = "is not installed" if found is None else f"is version {found}"
            needed = package if wanted is None else f"{package} {wanted}"
            raise MissingExtraError(f"env 'bfcl' needs {needed}, which {have}: {INSTALL}")


def _data() -> Path:
    check_installed()
    return Path(str(importlib.import_module("bfcl_eval").__file__)).parent / "data"


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} of bfcl-eval cannot be read ({error}): {INSTALL}") from error


@lru_cache(maxsize=1)
def documents() -> Mapping[str, Mapping[str, ToolSpec]]:
    """Tool class -> function -> its document, in the package's order.

    The schemas of results are left out: no tool format here has a place for them, and they would
    lengthen prompts.
    """
    folder = _data() / "multi_turn_func_doc"
    return {
        name: {
            row["name"]: ToolSpec(row["name"], _schema(row["parameters"]), row["description"])
            for row in _lines(folder / f"{file}.json")
        }
        for name, file in DOCUMENTS.items()
    }


def _schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """The package's document of a value as JSON schema."""
    schema = dict(document)
    schema["type"] = SCHEMA_TYPES.get(document["type"], document["type"])
    if "properties" in document:
        schema["properties"] = {
            name: _schema(inner) for name, inner in document["properties"].items()
        }
    if "items" in document:
        schema["items"] = _schema(document["items"])
    return schema


@lru_cache(maxsize=4)
def records(category: str) -> tuple[Record, ...]:
    """The 200 tasks of a category, in the package's order. They are shared: never change one."""
    name = f"BFCL_v4_multi_turn_{category}.json"
    tasks, answers = _lines(_data() / name), _lines(_data() / "possible_answer" / name)
    return tuple(_record(task, answer) for task, answer in zip(tasks, answers, strict=True))


def _record(task: Mapping[str, Any], answer: Mapping[str, Any]) -> Record:
    truth: list[list[str]] = answer["ground_truth"]
    if task["id"] != answer["id"] or len(task["question"]) != len(truth):
        raise DataError(f"ground truth {answer['id']} does not fit task {task['id']}: {INSTALL}")
    classes = tuple(task["involved_classes"])
    for name in classes:
        if name not in DOCUMENTS:
            raise DataError(f"{task['id']}: tool class '{name}' is not one that only simulates")
    parameters = {
        spec.name: tuple(spec.parameters["properties"])
        for name in classes
        for spec in documents()[name].values()
    }
    return Record(
        id=task["id"],
        questions=tuple(turn[0]["content"] if turn else None for turn in task["question"]),
        calls=tuple(tuple(read_call(text, parameters) for text in turn) for turn in truth),
        classes=classes,
        config=task["initial_config"],
        supplied={
            int(turn): tuple(names) for turn, names in task.get("missed_function", {}).items()
        },
    )


def read_call(text: str, parameters: Mapping[str, tuple[str, ...]]) -> ToolCall:
    """``sort('a.txt')`` as a call with named arguments; ``parameters`` gives their order.

    Raises DataError unless it is one call of a documented function with literal arguments.
    """
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not a call by name")  # noqa: TRY004 - read like what parsing raises
        known = parameters[call.func.id]
        names = [*known[: len(call.args)], *(k.arg for k in call.keywords)]
        values = [
            ast.literal_eval(node) for node in (*call.args, *(k.value for k in call.keywords))
        ]
        arguments = {name: value for name, value in zip(names, values, strict=True) if name}
        if len(arguments) != len(values) or not arguments.keys() <= set(known):
            raise ValueError(f"its arguments are not each one of {', '.join(known)}")
        json.dumps(arguments)
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"ground truth call {text!r} cannot be read: {error}") from error
    return ToolCall(call.func.id, arguments)
