"""Whether a call's arguments follow its tool's JSON schema, at the cost of a few microseconds.

Input: a ``ToolSpec`` and arguments as JSON values. Output: a bool. Validators are compiled once per
schema; plain schemas (typed properties, required, enum) take a short way that agrees with the full
validator wherever it accepts.

Left out: which rule was broken, and remote references: a schema refers to nothing outside itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jsonschema
import referencing
import referencing.exceptions

from toolrl_box.errors import DataError
from toolrl_box.types import ToolSpec

Check = Callable[[Mapping[str, Any]], bool]

_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_NOTES = {"title", "description", "default", "examples"}


def _plain_plan(schema: Any) -> dict[str, tuple[tuple[type, ...], frozenset[str] | None]] | None:
    """Types and allowed texts per property when the schema says nothing else; otherwise None."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return None
    if not schema.keys() <= _NOTES | {"type", "properties", "required", "additionalProperties"}:
        return None
    plan: dict[str, tuple[tuple[type, ...], frozenset[str] | None]] = {}
    for key, rule in schema.get("properties", {}).items():
        if not isinstance(rule, dict) or not rule.keys() <= _NOTES | {"type", "enum"}:
            return None
        kind = rule.get("type")
        if not isinstance(kind, str) or kind not in _PLAIN_TYPES:
            return None
        allowed = None
        if "enum" in rule:
            if kind != "string":
                return None
            allowed = frozenset(item for item in rule["enum"] if isinstance(item, str))
        plan[key] = (_PLAIN_TYPES[kind], allowed)
    return plan


@lru_cache(maxsize=4096)
def _check(schema_json: str) -> Check:
    schema = json.loads(schema_json)
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    # An empty registry: a "$ref" to elsewhere is an error, never a download.
    full = validator(schema, registry=referencing.Registry())
    plan = _plain_plan(schema)
    if plan is None:
        return full.is_valid
    required = schema.get("required", [])

    # Plain arguments are accepted at once, ten times as fast; all else goes the whole way.
    def check(arguments: Mapping[str, Any]) -> bool:
        for key in required:
            if key not in arguments:
                return False
        for key, value in arguments.items():
            rule = plan.get(key)
            if rule is None or type(value) not in rule[0]:
                return full.is_valid(arguments)
            if rule[1] is not None and value not in rule[1]:
                return False
        return True

    return check


# By identity, as a tool's schema is a plain dict; the tool is kept, so no id is given out twice.
_CHECKS: dict[int, tuple[ToolSpec, Check]] = {}


def follows_schema(tool: ToolSpec, arguments: Mapping[str, Any]) -> bool:
    """Whether ``arguments`` follow the tool's JSON schema (draft 2020-12).

    Raises DataError when the schema itself is none, or refers to something outside itself.
    """
    known = _CHECKS.get(id(tool))
    try:
        if known is None:
            if len(_CHECKS) >= 4096:
                _CHECKS.clear()
            known = _CHECKS[id(tool)] = (tool, _check(json.dumps(dict(tool.parameters))))
        return known[1](arguments)
    except jsonschema.SchemaError as error:
        raise DataError(
            f"the parameters of tool '{tool.name}' are no JSON schema: {error.message}"
        ) from error
    except (referencing.exceptions.Unresolvable, RecursionError) as error:
        raise DataError(
            f"the schema of tool '{tool.name}' has a '$ref' that cannot be resolved: {error}"
        ) from error
