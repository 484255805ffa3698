"""``toolrl list`` and ``toolrl doctor``: what there is, and what can run here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from toolrl_box.commands.terminal import USER_ERROR, console, say
from toolrl_box.errors import ConfigError

STYLES = {"ok": "green", "note": "yellow", "error": "bold red"}


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
        if what == "formats":
            lines["native"] = "What the model's own chat template writes (docs/models.md)."
    for name, line in lines.items():
        say(f"{name:<16}{line}")


def doctor(
    model: Annotated[
        str | None, typer.Option(metavar="DIR|NAME|ID", help="Check this model instead.")
    ] = None,
    fmt: Annotated[
        str | None,
        typer.Option("--format", help="Its tool format; default: hermes if it fits, else native."),
    ] = None,
    env: Annotated[str | None, typer.Option(help="The world whose limits are checked.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for `toolrl run`.")
    ] = None,
) -> None:
    """Show versions, machine, models and extras, and what cannot run here; or check a model: exit
    code 2 when it cannot be trained."""
    from toolrl_box.doctor import examine, examine_model

    if model is not None:
        from toolrl_box.config import load
        from toolrl_box.progress import silence

        silence()
        options = {"model.name": model, "env.name": env, "format": fmt}
        found = examine_model(load(None, sets or (), options), fmt)
        table = Table("check", "", "finding", title=Text(model), title_justify="left")
        for check in found:
            verdict = Text(check.verdict, STYLES[check.verdict])
            table.add_row(check.name, verdict, Text(check.finding))
        console.print(table)
        if any(check.verdict == "error" for check in found):
            raise typer.Exit(USER_ERROR)
        return
    if fmt is not None or env is not None or sets:
        raise ConfigError("--format, --env and --set belong to a model: give --model, too")
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
