"""Whether a call's arguments follow its tool's JSON schema, at the cost of a few microseconds.

Input: a ``ToolSpec`` and arguments as JSON values. Output: a bool. Validators are compiled once per
schema; plain schemas (typed properties, lists of those, enum, bounds) take a short way that agrees
with the full validator wherever it accepts.

Left out: which rule was broken, and remote references: a schema refers to nothing outside itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jsonschema
import referencing
import referencing.exceptions

from toolrl_box.errors import DataError
from toolrl_box.types import ToolSpec

Check = Callable[[Mapping[str, Any]], bool]
Accept = Callable[[Any], bool]
"""True only for values that the schema accepts; False says nothing."""

_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_NOTES = {"title", "description", "default", "examples"}
_PLAIN_OBJECT = _NOTES | {"type", "properties", "required", "additionalProperties"}
_PLAIN_VALUE = _NOTES | {"type", "enum", "minimum", "maximum", "items"}


def _plain_value(rule: Any) -> Accept | None:
    """A quick test for one property, or None when its rule is not plain."""
    if not isinstance(rule, dict) or not rule.keys() <= _PLAIN_VALUE:
        return None
    if rule.get("type") == "array" and not rule.keys() - _NOTES - {"type", "items"}:
        item = _plain_value(rule["items"]) if "items" in rule else lambda _: True
        if item is None:
            return None
        return lambda value: type(value) is list and all(map(item, value))
    types = _PLAIN_TYPES.get(rule["type"]) if isinstance(rule.get("type"), str) else None
    if types is None or "items" in rule:
        return None
    if "enum" in rule:
        if types != (str,):
            return None
        allowed = frozenset(item for item in rule["enum"] if isinstance(item, str))
        return lambda value: type(value) is str and value in allowed
    if "minimum" in rule or "maximum" in rule:
        if str in types or bool in types:
            return None
        least, most = rule.get("minimum", -math.inf), rule.get("maximum", math.inf)
        return lambda value: type(value) in types and least <= value <= most
    return lambda value: type(value) in types


def _plain_plan(schema: Any) -> dict[str, Accept] | None:
    """A quick test per property when the schema says nothing else; otherwise None."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return None
    if not schema.keys() <= _PLAIN_OBJECT:
        return None
    plan: dict[str, Accept] = {}
    for key, rule in schema.get("properties", {}).items():
        accept = _plain_value(rule)
        if accept is None:
            return None
        plan[key] = accept
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
            accept = plan.get(key)
            if accept is None or not accept(value):
                return full.is_valid(arguments)
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
