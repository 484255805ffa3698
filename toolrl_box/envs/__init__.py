"""The embedded worlds, by name. A new one is a new file and a line in ``ENVS``.

An entry is a frozen dataclass that conforms to :class:`~toolrl_box.types.World`; its fields are the
settings that only this world has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from toolrl_box.envs.pocket import PocketEnv
from toolrl_box.envs.python import PythonEnv
from toolrl_box.envs.search import SearchEnv
from toolrl_box.errors import ConfigError, did_you_mean, lookup
from toolrl_box.types import World

ENVS: Mapping[str, type[Any]] = {
    "pocket": PocketEnv,
    "search": SearchEnv,
    "python": PythonEnv,
}


def build_world(name: str, knobs: Mapping[str, Any]) -> World:
    """The world with its settings. Raises ConfigError for an unknown name, setting or value."""
    kind = lookup("environment", name, ENVS)
    known = [field.name for field in dataclasses.fields(kind)]
    for knob in knobs:
        if knob not in known:
            raise ConfigError(
                f"unknown key 'env.{knob}' for world '{name}'"
                f"{did_you_mean(knob, known) or ';'} one of: {', '.join(known)}"
            )
    try:
        world: World = TypeAdapter(kind).validate_python(dict(knobs))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"env.{where} = {first['input']!r}: {first['msg'].lower()}") from None
    return world
