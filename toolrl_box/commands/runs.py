"""``toolrl run`` and ``toolrl report``: one run and what it tells."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolrl_box.commands.terminal import RUNS, console, say
from toolrl_box.errors import ConfigError, lookup

if TYPE_CHECKING:
    from toolrl_box.config import RunConfig
    from toolrl_box.team import Team


def run(
    scheme: Annotated[str | None, typer.Option(help="See `toolrl list schemes`.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; may be repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="See `toolrl list models`; or a Hugging Face folder or id.")
    ] = None,
    env: Annotated[str | None, typer.Option(help="See `toolrl list envs`.")] = None,
    fmt: Annotated[str | None, typer.Option("--format", help="See `toolrl list formats`.")] = None,
    steps: Annotated[int | None, typer.Option(help="RL steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="New folder; default: runs/<scheme>-<format>-seed<seed>.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Go on with a run that was stopped.")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
) -> None:
    """Train, probe, log and report; or go on with a stopped run."""
    options = {
        "scheme.name": scheme,
        "model.name": model,
        "env.name": env,
        "format": fmt,
        "steps": steps,
        "seed": seed,
    }
    if resume is not None:
        given = [config, sets, output_dir, *options.values()]
        if any(value is not None for value in given):
            raise ConfigError("--resume goes on with the run's own settings: give no others")
    from toolrl_box.config import load, parse
    from toolrl_box.interrupts import Interrupts
    from toolrl_box.progress import Display, silence
    from toolrl_box.runlog import RunLog
    from toolrl_box.team import join

    settings = load(config, sets or (), options)
    if resume is None:
        _check_names(settings)
    else:  # its names were checked when it began; its detector file may be gone since
        settings = parse(RunLog.open(resume).config)
    team = join(settings.processes)
    if not team.main:
        _follow(settings, team)
        return
    run_dir = resume or output_dir or _free_folder(settings)
    ended = "aborted"
    with Interrupts() as interrupts, Display(console) as display, suppress(KeyboardInterrupt):
        silence()
        from toolrl_box import lab

        watch = lab.Watch(display.begin, display.show, interrupts.asked, display.note)
        if resume is None:
            ended = lab.start(settings, run_dir, watch, team)
        else:
            ended = lab.resume(run_dir, watch, team)
    team.leave()
    if ended != "done":
        say(f"{ended}; go on with: toolrl run --resume {run_dir}")
        raise typer.Exit(interrupts.exit_code)
    if parse(RunLog.open(run_dir).config).eval.ood:
        from toolrl_box.ood import AT_THE_END, evaluate_run

        evaluate_run(run_dir, AT_THE_END, told=say)
    if no_report:
        say(f"run: {run_dir}")
    else:
        report(run_dir)


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run, finished or not.")],
) -> None:
    """Write the collapse report of a run to RUN_DIR/report."""
    from toolrl_box.report import write_report

    summary = write_report(run_dir)
    say(f"{summary['verdict']}: {summary['headline']}")
    say(f"report: {run_dir / 'report' / 'index.html'}")


def _follow(settings: RunConfig, team: Team) -> None:
    """One of several processes that is not the main one: it says nothing, and leaves signals,
    which torchrun sends to all, to that one."""
    from toolrl_box.interrupts import SIGNALS
    from toolrl_box.progress import silence

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    silence()
    from toolrl_box import lab

    lab.follow(settings, team)
    team.leave()


def _free_folder(settings: RunConfig) -> Path:
    """``runs/<scheme>-<format>-seed<seed>``, with ``-2``, ``-3`` … when that is taken."""
    name = f"{settings.scheme.name}-{settings.format}-seed{settings.seed}"
    names = (name, *(f"{name}-{number}" for number in range(2, 10_000)))
    return next(path for path in (RUNS / name for name in names) if not path.exists())


def _check_names(settings: RunConfig) -> None:
    """Refuse a wrong name at once; ``lab`` would, after seconds of imports."""
    from toolrl_box import detector_file
    from toolrl_box.envs import build_world
    from toolrl_box.formats import ALL_FORMATS, NATIVE
    from toolrl_box.schemes import build_scheme

    build_scheme(settings.scheme.name, settings.scheme.knobs)
    build_world(settings.env.name, settings.env.knobs)
    lookup("format", settings.format, dict.fromkeys((*ALL_FORMATS, NATIVE)))
    detector_file.make(detector_file.load(settings.guard.detector))
