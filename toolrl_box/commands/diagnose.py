"""``toolrl diagnose`` and ``toolrl watch``: what became of a run, from its logs alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from toolrl_box.commands.terminal import console, say
from toolrl_box.errors import ConfigError, unknown

if TYPE_CHECKING:
    from toolrl_box.diagnose.outputs import Result
    from toolrl_box.diagnose.session import Session

FAILED = 3

Paths = Annotated[
    list[Path], typer.Argument(metavar="PATH…", help="Files or folders of logs, of one run.")
]
LogFormat = Annotated[
    str | None, typer.Option("--format", help="Of the log; default: found out for each file.")
]
ToolFormat = Annotated[
    str | None, typer.Option(help="How calls are written; default: found out from the messages.")
]
PolicyPairs = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME=allow|flag",
        help="Matters of taste, see docs/states.md: text_before_call, text_after_call, "
        "several_calls, thinking; may be repeated.",
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(metavar="VERDICT,…", help="Exit code 3 when the verdict is one of these."),
]


def diagnose(
    paths: Paths,
    log_format: LogFormat = None,
    tool_format: ToolFormat = None,
    policies: PolicyPairs = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON (docs/diagnosis.schema.json), else nothing.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Page, Markdown, CSV, pictures and failed prompts."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE.zip", help="For a bug report: ids and paths are hashed."),
    ] = None,
    drop_texts: Annotated[
        bool, typer.Option("--drop-texts", help="Leave every text out of the bundle.")
    ] = False,
    fail_on: FailOn = None,
    against: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Another run's log, side by side.")
    ] = None,
) -> None:
    """Say what became of a run, when and why, from its logs alone, whoever wrote them."""
    from toolrl_box.diagnose import bundle as zipped
    from toolrl_box.diagnose import outputs, sources, terminal
    from toolrl_box.diagnose.against import compare
    from toolrl_box.diagnose.judge import Judge
    from toolrl_box.diagnose.session import Session, name_of
    from toolrl_box.probe.policies import policies_of

    unwanted = verdicts(fail_on)
    if drop_texts and bundle is None:
        raise ConfigError("--drop-texts is for --bundle FILE.zip: give both or neither")
    if bundle is not None and not bundle.parent.is_dir():
        raise ConfigError(f"--bundle: there is no folder {bundle.parent}")
    if output is not None:
        outputs.check_folder(output)
    taste = policies_of(policies or ())
    alike = against is not None and name_of(paths) == name_of([against])
    session = partial(Session, tool_format, log_format=log_format, policies=taste)
    result = _result(session(), paths, 2 if alike else 1)
    other = None if against is None else _result(session(), [against], 2 if alike else 1)
    both = None if other is None else compare(result.diagnosis, other.diagnosis)
    told = []
    if output is not None:
        records = sources.detect(paths, log_format).records()
        prompts = outputs.write(
            output, result, records, Judge(tool_format, taste), against=other, comparison=both
        )
        told.append(f"page: {output / 'index.html'}")
        more = ", the first of more" if prompts.more else ""
        told.append(
            f"failed prompts: {prompts.prompts}{more}, {prompts.with_gold} with gold: "
            f"{output / 'failed_prompts.jsonl'}"
        )
    if bundle is not None:
        zipped.write_bundle(bundle, result.diagnosis, result.examples, drop_texts=drop_texts)
        told.append(f"bundle: {bundle}")
    if as_json:
        print(outputs.to_json(both or result.diagnosis), end="")
    else:
        terminal.show(result.diagnosis, console)
        if both is not None:
            terminal.show_differences(both, console)
        for line in told:
            say(line)
    if result.diagnosis.verdict.name in unwanted:
        raise typer.Exit(FAILED)


def watch(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A run that is going on.")],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 10.0,
    log_format: LogFormat = None,
    tool_format: ToolFormat = None,
    policies: PolicyPairs = None,
    fail_on: FailOn = None,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Follow a run: a line whenever the verdict or an alarm changes; Ctrl-C ends it."""
    from toolrl_box.diagnose.session import Session
    from toolrl_box.diagnose.watch import looks
    from toolrl_box.probe.policies import policies_of

    unwanted = verdicts(fail_on)
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    taste = policies_of(policies or ())
    session = Session(tool_format, log_format=log_format, policies=taste)
    with suppress(KeyboardInterrupt):
        for diagnosis in looks(session, [path], say):
            if diagnosis is not None and diagnosis.verdict.name in unwanted:
                raise typer.Exit(FAILED)
            if once:
                return
            time.sleep(interval)


def verdicts(names: str | None) -> frozenset[str]:
    """The verdicts of ``--fail-on``. Raises ConfigError for a name that is none."""
    from toolrl_box.verdicts import Name

    given = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in given:
        if name not in get_args(Name):
            raise unknown("verdict", name, get_args(Name))
    return frozenset(given)


def _result(session: Session, paths: Sequence[Path], parts: int) -> Result:
    """``parts``: of a path, that its name is made of."""
    from toolrl_box.diagnose.outputs import Result
    from toolrl_box.diagnose.session import name_of

    session.read(paths)
    return Result(
        session.diagnosis(name_of(paths, parts)),
        tuple(session.examples()),
        session.aggregate.reward.middle,
    )
