"""``toolrl ablate`` and ``toolrl compare``: many runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from toolrl_box.commands.terminal import RUNS, say

if TYPE_CHECKING:
    from toolrl_box.ablate import Cell


def ablate(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Default: runs/<experiment's name>.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="A-B", help="Instead of the experiment's own.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in an output folder: finished runs are kept.")
    ] = False,
    launcher: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Processes here, or a Ray cluster (RAY_ADDRESS, else one made here)."),
    ] = "local",
) -> None:
    """Run a study: every arm and grid point under every seed. Failed runs are listed."""
    from toolrl_box.ablate import cells, check_output, run_cells
    from toolrl_box.interrupts import Interrupts
    from toolrl_box.launchers import LAUNCHERS
    from toolrl_box.seeds import parse_seeds

    output = output_dir or RUNS / experiment.stem
    grid = cells(experiment, output, None if seeds is None else parse_seeds(seeds, "--seeds"))
    check_output(grid, output, resume=resume)
    launch = LAUNCHERS[launcher]()

    def told(cell: Cell, news: str) -> None:
        say(f"{cell.run_dir}: {news}")

    with Interrupts() as interrupts:
        failed = run_cells(grid, output, jobs, launch, told, interrupts.asked)
        stopped = interrupts.asked()
    say(f"{len(grid) - len(failed)} of {len(grid)} runs finished in {output}")
    if stopped:
        say("stopped; go on with the same command and --resume")
        raise typer.Exit(interrupts.exit_code)
    for cell, code in failed:
        say(f"failed with exit code {code}: {cell.run_dir}: {cell.cause} (see {cell.log_file})")
    say(f"compare them with: toolrl compare {output}")
    if failed:
        raise typer.Exit(1)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR…", help="Runs, or folders that hold runs.")
    ],
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Group by a setting such as scheme, grpo.lr, format; may be repeated. Default: "
            "the same settings apart from the seed.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("comparison"),
) -> None:
    """Compare runs: intervals over seeds, curves, cost; runs that failed are listed."""
    from toolrl_box.report import write_comparison

    comparison = write_comparison(runs, output, by or ())
    for arm in comparison.arms:
        say(f"{arm.arm.name}: {len(arm.arm.finished)} of {len(arm.arm.runs)} runs finished")
    say(f"comparison: {output / 'compare.html'}")
