"""How often is the capability of a collapsed run intact, partly there, or lost?

    python analysis/capability.py runs/schemes runs/early_warning    # examine, then the table
    python analysis/capability.py                                    # the table alone

Input: studies, whose collapsing runs (``toolrl_box.onsets``) are examined at their final checkpoint
as ``toolrl eval --counterfactual`` does, one JSON file each below ``--files``; those that are there
already are skipped, so it can be stopped and called again. Output beside that folder, from all
files: ``capability.md`` and ``capability.json``, with exact (Clopper-Pearson) 95% intervals over
runs, by regime. A run with several checkpoints counts once, by
its last.

Left out: healthy and ambiguous runs, and rules of its own (``toolrl_box.capability.verdict`` has
them). The intervals over all regimes treat runs of different settings as alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from study import RESULTS, share

from toolrl_box import checkpoints
from toolrl_box.capability import examine
from toolrl_box.capability.verdict import Name
from toolrl_box.progress import silence
from toolrl_box.runlog import RunLog
from toolrl_box.scoring import Share
from toolrl_box.warning_data import by_regime, judged

VERDICTS: tuple[Name, ...] = get_args(Name)
ALL = "all regimes"


@dataclass(frozen=True)
class Examined:
    """One file. ``run`` is ``<study>/<arm>/<seed>``, as in the path of its checkpoint."""

    run: str
    step: int
    found: Mapping[str, Any]

    @property
    def regime(self) -> str:
        return self.run.rsplit("/", 1)[0]

    @classmethod
    def read(cls, path: Path) -> Examined:
        found = json.loads(path.read_text())
        checkpoint = Path(found["checkpoint"])
        run = "/".join(checkpoint.parents[1].parts[-3:])
        return cls(run, int(checkpoint.name.removeprefix("step_")), found)


def final_checkpoints(studies: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Name and checkpoint of every collapsing run; what is left out is told."""
    regimes, unfinished = by_regime(studies)
    for run in unfinished:
        print(f"left out, not finished: {run}")
    for regime, runs in regimes.items():
        for run_dir in runs:
            run = RunLog.open(run_dir)
            if judged(run).kind != "collapsing":
                continue
            last = run.journal()[-1]["step"]
            if last not in checkpoints.complete_steps(run_dir):
                print(f"left out, its last checkpoint is gone: {run_dir}")
                continue
            yield f"{regime}/{run_dir.name}-step{last}", checkpoints.path_of(run_dir, last)


def examine_all(studies: Sequence[Path], files: Path, tasks: int) -> None:
    """Every checkpoint that has no file yet."""
    silence()
    torch.set_num_threads(1)
    for name, checkpoint in final_checkpoints(studies):
        path = files / f"{name}.json"
        if path.exists():
            print(f"there already: {path}")
            continue
        print(f"examining {checkpoint}")
        subject = examine.subject_of(checkpoint)
        reference = examine.reference_of(subject, examine.BASE)
        found = examine.examine(subject, count=tasks, reference=reference)
        path.parent.mkdir(parents=True, exist_ok=True)
        examine.write(found, path)


def last_of_each_run(examined: Sequence[Examined]) -> list[Examined]:
    found: dict[str, Examined] = {}
    for one in sorted(examined, key=lambda one: (one.run, one.step)):
        found[one.run] = one
    return list(found.values())


def shares(examined: Sequence[Examined]) -> dict[str, dict[str, Share]]:
    """Regime -> verdict -> how often."""
    groups: dict[str, list[Examined]] = {}
    for one in examined:
        for group in (one.regime, ALL):
            groups.setdefault(group, []).append(one)
    return {
        regime: {
            name: Share.of([one.found["verdict"]["name"] == name for one in groups[regime]])
            for name in VERDICTS
        }
        for regime in (*sorted(groups.keys() - {ALL}), ALL)
    }


def tables(examined: Sequence[Examined]) -> str:
    counted = last_of_each_run(examined)
    lines = [f"| regime | {' | '.join(VERDICTS)} |", "|---|" + "---|" * len(VERDICTS)]
    for regime, row in shares(counted).items():
        lines.append(f"| {regime} | {' | '.join(map(share, row.values()))} |")
    lines += [
        "",
        "| run | step | verdict | reference | checkpoint | best counterfactual | share recovered | "
        "tool names | arguments |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(examined, key=lambda one: (one.run, one.step)):
        verdict, own = one.found["verdict"], one.found["accuracy"]["checkpoint"]
        recovered, told = verdict["recovered"], "–"
        if recovered is not None:
            told = f"{recovered['share']:.2f} [{recovered['low']:.2f}, {recovered['high']:.2f}]"
        lines.append(
            f"| {one.run} | {one.step} | {verdict['name']} | {verdict['reference']:.3f} "
            f"| {verdict['checkpoint']:.3f} | {verdict['best'] or '–'} | {told} "
            f"| {own['name']:.2f} | {own['arguments']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", type=Path, nargs="*", help="folders of runs to examine")
    parser.add_argument("--files", type=Path, default=RESULTS / "capability" / "checkpoints")
    parser.add_argument("--tasks", type=int, default=32, help="of each suite")
    arguments = parser.parse_args()
    if arguments.studies:
        examine_all(arguments.studies, arguments.files, arguments.tasks)
    examined = [Examined.read(path) for path in sorted(arguments.files.rglob("*.json"))]
    if not examined:
        parser.exit(2, f"error: no files in {arguments.files}: name studies to examine\n")
    text = tables(examined)
    plain = {
        regime: {name: [one.hits, one.total, one.interval] for name, one in row.items()}
        for regime, row in shares(last_of_each_run(examined)).items()
    }
    folder = arguments.files.parent
    (folder / "capability.md").write_text(text)
    (folder / "capability.json").write_text(json.dumps(plain, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
