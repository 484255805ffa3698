"""The ``toolrl`` command: resolves names, wires, prints. No logic lives here.

Input: arguments. Output: text on stdout, ``error: …`` on stderr, and the exit code: 0 done, 2 a
mistake that the user can mend, 130 or 143 stopped by SIGINT or SIGTERM with everything saved.

Whatever imports torch is imported inside the commands, so that ``--help`` and ``list`` are quick.
"""

from __future__ import annotations

import inspect
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolrl_box.errors import ConfigError, ToolRLError, lookup

if TYPE_CHECKING:
    from toolrl_box.ablate import Cell
    from toolrl_box.config import RunConfig
    from toolrl_box.team import Team

USER_ERROR = 2
RUNS = Path("runs")
STYLES = {"ok": "green", "note": "yellow", "error": "bold red"}

app = typer.Typer(
    name="toolrl",
    help="Collapse diagnostics and supervision mixing for multi-turn tool-use RL.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
base = typer.Typer(no_args_is_help=True, help="Base models of the laboratory.")
app.add_typer(base, name="base")
console = Console()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; raises SystemExit."""
    try:
        app(args=None if arguments is None else list(arguments))
    except (ToolRLError, OSError) as error:  # OSError: a full disk or a missing permission
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(USER_ERROR)


@app.command()
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
    if resume is not None:
        settings = parse(RunLog.open(resume).config)
    _check_names(settings)
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
        _say(f"{ended}; go on with: toolrl run --resume {run_dir}")
        raise typer.Exit(interrupts.exit_code)
    if parse(RunLog.open(run_dir).config).eval.ood:
        from toolrl_box.ood import AT_THE_END, evaluate_run

        evaluate_run(run_dir, AT_THE_END, told=_say)
    if no_report:
        _say(f"run: {run_dir}")
    else:
        report(run_dir)


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


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run, finished or not.")],
) -> None:
    """Write the collapse report of a run to RUN_DIR/report."""
    from toolrl_box.report import write_report

    summary = write_report(run_dir)
    _say(f"{summary['verdict']}: {summary['headline']}")
    _say(f"report: {run_dir / 'report' / 'index.html'}")


@app.command()
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
        _say(f"{arm.arm.name}: {len(arm.arm.finished)} of {len(arm.arm.runs)} runs finished")
    _say(f"comparison: {output / 'compare.html'}")


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run, finished or not.")],
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="base|best|final|STEP", help="May be repeated; default: base, best and final."
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Tasks of each world; default: eval.ood_tasks.")
    ] = None,
) -> None:
    """Try a run's checkpoints on fresh and foreign tasks: RUN_DIR/evaluation.json, its report."""
    from toolrl_box.progress import silence

    silence()
    from toolrl_box.ood import NAMES, evaluate_run

    for made in evaluate_run(run_dir, checkpoint or NAMES, tasks, _say):
        for name, world in made["worlds"].items():
            greedy, sampled = (world[key]["success"] for key in ("greedy", "sampled"))
            where = f"{name.replace('_', ' ')} ({world['format']})"
            _say(f"  {where:<28}greedy {greedy:.3f}   temperature 1 {sampled:.3f}")


@app.command("eval")
def eval_(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A model folder, or RUN_DIR/checkpoints/step_NNNNNN."
        ),
    ],
    suite: Annotated[
        str | None,
        typer.Option(metavar="id,format,content,both", help="Some of these; default: all."),
    ] = None,
    counterfactual: Annotated[
        bool, typer.Option("--counterfactual", help="Test whether capability is intact.")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="base|FOLDER", help="The model it was, or last healthy. [default: base]"
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Tasks of each suite; default: eval.ood_tasks.")
    ] = None,
    env: Annotated[str | None, typer.Option(help="Default: the run's own.")] = None,
    fmt: Annotated[str | None, typer.Option("--format", help="Default: the run's own.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file with everything.")] = None,
) -> None:
    """Try one checkpoint; with --counterfactual, tell capability that is obscured from lost."""
    from toolrl_box.progress import silence

    silence()
    from toolrl_box.capability import examine, lines

    if reference is not None and not counterfactual:
        raise ConfigError("--reference is for --counterfactual: give both or neither")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output: there is no folder {output.parent}")
    subject = examine.subject_of(checkpoint, env, fmt)
    model = examine.reference_of(subject, reference or examine.BASE) if counterfactual else None
    wanted = None if suite is None else suite.split(",")
    found = examine.examine(subject, wanted, tasks, model, _say)
    for line in lines.lines(found):
        _say(line)
    if output is not None:
        examine.write(found, output)
        _say(f"written: {output}")


@app.command()
def probe(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT… | RUN_DIR",
            help="Hugging Face model folders in the order of the training, the base first; or a "
            "run.",
        ),
    ],
    bank: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Gold dialogues: messages and tools on each line. Default: the run's own bank.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of table and figure.")] = Path("probe"),
    tags: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="OPEN CLOSE",
            help="What a call begins and ends with, if the chat template does not show it.",
        ),
    ] = None,
) -> None:
    """Probe saved checkpoints again on gold dialogues: damage, KL to the first, odds by slot."""
    from toolrl_box.progress import silence

    silence()
    from toolrl_box.reprobe import probe_series

    table = probe_series(checkpoints, output, bank, tags, _say)
    _say(f"{'checkpoint':<24}{'bank NLL':>12}{'bank KL':>12}{'p(call)':>12}{'entropy':>12}")
    for row in table.to_dict("records"):
        figures = (row["bank_nll"], row["bank_kl"], row["p_call"], row["entropy"])
        _say(f"{row['checkpoint']:<24}" + "".join(f"{value:>12.4g}" for value in figures))
    _say(f"probe: {output / 'probe.csv'}, {output / 'probe.png'}")


@app.command()
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
    from toolrl_box.ablate import cells, check_output, parse_seeds, run_cells
    from toolrl_box.interrupts import Interrupts
    from toolrl_box.launchers import LAUNCHERS

    output = output_dir or RUNS / experiment.stem
    grid = cells(experiment, output, None if seeds is None else parse_seeds(seeds))
    check_output(grid, output, resume=resume)
    launch = LAUNCHERS[launcher]()

    def told(cell: Cell, news: str) -> None:
        _say(f"{cell.run_dir}: {news}")

    with Interrupts() as interrupts:
        failed = run_cells(grid, output, jobs, launch, told, interrupts.asked)
        stopped = interrupts.asked()
    _say(f"{len(grid) - len(failed)} of {len(grid)} runs finished in {output}")
    if stopped:
        _say("stopped; go on with the same command and --resume")
        raise typer.Exit(interrupts.exit_code)
    for cell, code in failed:
        _say(f"failed with exit code {code}: {cell.run_dir}: {cell.cause} (see {cell.log_file})")
    _say(f"compare them with: toolrl compare {output}")
    if failed:
        raise typer.Exit(1)


@app.command()
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
        _say(f"{kind:<12}{len(names)} runs")
    for name in made.unfinished:
        _say(f"left out, not finished: {name}")
    for outcome in made.outcomes:
        _say(work.describe(outcome, len(made.runs["collapsing"])))
    for limit in made.file.limits:
        _say(limit)
    work.save(dump(made.file), output)
    _say(f"detector file: {output}")


@app.command("score-detector")
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
        _say(line)
    if output is not None:
        output.write_text(json.dumps(score.to_json(), indent=1) + "\n")


@app.command("list")
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
        _say(f"{name:<16}{line}")


@base.command("build")
def base_build(
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
        _say(f"{name:<20}{share:.3g}")
    _say(f"base: {output}")


@app.command()
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
            _say(f"{group}:")
            section = group
        _say(f"  {name:<18}{finding}")


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


def _first_line(entry: Any) -> str:
    """Of the documentation of the module that defines ``entry`` (or its class)."""
    module = inspect.getmodule(entry if isinstance(entry, type) else type(entry))
    return (inspect.getdoc(module) or "").split("\n", 1)[0]


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
