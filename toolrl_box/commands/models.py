"""``toolrl evaluate``, ``toolrl eval`` and ``toolrl probe``: models that are saved already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolrl_box.commands.terminal import say
from toolrl_box.errors import ConfigError


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

    for made in evaluate_run(run_dir, checkpoint or NAMES, tasks, say):
        for name, world in made["worlds"].items():
            greedy, sampled = (world[key]["success"] for key in ("greedy", "sampled"))
            where = f"{name.replace('_', ' ')} ({world['format']})"
            say(f"  {where:<28}greedy {greedy:.3f}   temperature 1 {sampled:.3f}")


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
    found = examine.examine(subject, wanted, tasks, model, say)
    for line in lines.lines(found):
        say(line)
    if output is not None:
        examine.write(found, output)
        say(f"written: {output}")


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

    table = probe_series(checkpoints, output, bank, tags, say)
    say(f"{'checkpoint':<24}{'bank NLL':>12}{'bank KL':>12}{'p(call)':>12}{'entropy':>12}")
    for row in table.to_dict("records"):
        figures = (row["bank_nll"], row["bank_kl"], row["p_call"], row["entropy"])
        say(f"{row['checkpoint']:<24}" + "".join(f"{value:>12.4g}" for value in figures))
    say(f"probe: {output / 'probe.csv'}, {output / 'probe.png'}")
