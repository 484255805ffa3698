"""``toolrl list`` and ``toolrl doctor``: what there is, and what can run here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

import typer

from toolrl_box.commands.terminal import say


def list_(
    what: Annotated[
        Literal["schemes", "envs", "formats", "models"],
        typer.Argument(metavar="schemes|envs|formats|models"),
    ],
) -> None:
    """Name what can be chosen, a line each."""
    if what == "models":
        from toolrl_box.models import MODELS

        lines = {name: description for name, (description, _) in MODELS.items()}
    else:
        name = "ALL_FORMATS" if what == "formats" else what.upper()
        table: Mapping[str, Any] = getattr(import_module(f"toolrl_box.{what}"), name)
        lines = {name: _first_line(entry) for name, entry in table.items()}
    for name, line in lines.items():
        say(f"{name:<16}{line}")


def doctor() -> None:
    """Show versions, machine, models and extras, and what cannot run here."""
    from toolrl_box.doctor import examine

    section = ""
    for group, name, finding in examine():
        if group != section:
            say(f"{group}:")
            section = group
        say(f"  {name:<18}{finding}")


def _first_line(entry: Any) -> str:
    """Of the documentation of the module that defines ``entry`` (or its class)."""
    module = inspect.getmodule(entry if isinstance(entry, type) else type(entry))
    return (inspect.getdoc(module) or "").split("\n", 1)[0]
