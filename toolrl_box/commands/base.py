"""``toolrl base``: base models of the laboratory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolrl_box.commands.terminal import console, say


def build(
    output: Annotated[Path, typer.Option(help="New or empty folder.")],
    world: Annotated[str, typer.Option(help="pocket or search.")] = "pocket",
    noise: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="pocket: share of broken messages at the end. [0.1]"),
    ] = None,
    gate: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="search: share that searches without examples. [0.01]"),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=8, help="Hidden size; twice that between layers. [128]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a base of an embedded model by its recipe (minutes) and measure it."""
    from toolrl_box.progress import UpdateBar, silence

    silence()
    from toolrl_box.base import build, recipe_for

    recipe = recipe_for(world, seed, noise=noise, gate=gate, width=width)
    with UpdateBar(console) as bar:
        success = build(recipe, output, bar.show)
    for name, share in success.items():
        say(f"{name:<20}{share:.3g}")
    say(f"base: {output}")
