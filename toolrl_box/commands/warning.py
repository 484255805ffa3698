"""``toolrl calibrate``, ``toolrl dataset`` and ``toolrl score-detector``: early warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from toolrl_box.commands.terminal import say


def calibrate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR…", help="Runs, or folders that hold runs.")
    ],
    false_alarms: Annotated[
        float, typer.Option(help="Share of healthy runs in which a detector may alarm.")
    ] = 0.05,
    candidates: Annotated[
        str, typer.Option(help="What is fitted: guard, field, or a detector file.")
    ] = "guard",
    output: Annotated[Path, typer.Option(help="The detector file.")] = Path("detector.json"),
) -> None:
    """Fit detectors' thresholds on your healthy runs: a file for --set guard.detector=FILE."""
    from toolrl_box import calibrate as work
    from toolrl_box.detector_file import dump, load

    work.check_output(output)
    made = work.calibrate(runs, false_alarms, load(candidates))
    for kind, names in made.runs.items():
        say(f"{kind:<12}{len(names)} runs")
    for name in made.unfinished:
        say(f"left out, not finished: {name}")
    for outcome in made.outcomes:
        say(work.describe(outcome, len(made.runs["collapsing"])))
    for limit in made.file.limits:
        say(limit)
    work.save(dump(made.file), output)
    say(f"detector file: {output}")


def dataset(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR…",
            help="Folders that hold runs; runs that lie in the same folder are one regime.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="New or empty folder.")],
    calibration_seeds: Annotated[
        str | None,
        typer.Option(metavar="A-B", help="Runs of these seeds fit thresholds; the others test."),
    ] = None,
    note: Annotated[str, typer.Option(help="What the runs are, for whoever reads it.")] = "",
) -> None:
    """Write the data set of your runs that detectors are scored on, onsets included."""
    from toolrl_box import warning_data as work
    from toolrl_box.seeds import parse_seeds

    chosen = calibration_seeds
    seeds = [] if chosen is None else parse_seeds(chosen, "--calibration-seeds")
    regimes, unfinished = work.by_regime(runs)
    for folder in unfinished:
        say(f"left out, not finished: {folder}")
    for line in work.describe(work.write_dataset(regimes, output, seeds, note)):
        say(line)
    say(f"data set: {output}")


def score_detector(
    detector: Annotated[str, typer.Argument(metavar="MODULE:CLASS", help="Your detector.")],
    dataset: Annotated[Path, typer.Argument(help="Folder of an early-warning data set.")],
    false_alarms: Annotated[
        float, typer.Option(help="Budget at which a detector with scores gets its threshold.")
    ] = 0.05,
    level: Annotated[
        Literal["warn", "act"],
        typer.Option(help="The least alarm that counts, for a detector without scores."),
    ] = "warn",
    output: Annotated[Path | None, typer.Option(help="The whole score as JSON.")] = None,
) -> None:
    """Score a detector on the test split of an early-warning data set, by the benchmark's rules."""
    from toolrl_box import scoring
    from toolrl_box.warning_data import load_dataset

    make = scoring.import_detector(detector)
    score = scoring.score_detector(make, load_dataset(dataset), false_alarms, level)
    for line in scoring.lines(score):
        say(line)
    if output is not None:
        output.write_text(json.dumps(score.to_json(), indent=1) + "\n")
