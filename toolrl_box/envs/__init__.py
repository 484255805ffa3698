"""The embedded worlds, by name. A new one is a new file and a line in ``ENVS``.

An entry is a frozen dataclass that conforms to :class:`~toolrl_box.types.World`; its fields are the
settings that only this world has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolrl_box.envs.bfcl import BfclEnv
from toolrl_box.envs.pocket import PocketEnv
from toolrl_box.envs.python import PythonEnv
from toolrl_box.envs.search import SearchEnv
from toolrl_box.errors import lookup
from toolrl_box.knobs import build
from toolrl_box.types import World

ENVS: Mapping[str, type[Any]] = {
    "pocket": PocketEnv,
    "search": SearchEnv,
    "python": PythonEnv,
    "bfcl": BfclEnv,
}


def build_world(name: str, knobs: Mapping[str, Any]) -> World:
    """The world with its settings. Raises ConfigError for an unknown name, setting or value."""
    kind = lookup("environment", name, ENVS)
    world: World = build(kind, knobs, "env", f"world '{name}'")
    return world
