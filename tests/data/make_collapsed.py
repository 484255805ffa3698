"""Makes ``collapsed.json``: a diagnosis and messages of a run of ours that really collapsed.

    python tests/data/make_collapsed.py RUN_DIR [--each 7] [--output tests/data/collapsed.json]

States, spans, rewards and scalars are what the run logged; onset and verdict are those of the
report's rules. The file keeps the messages of the first ``each`` of every step; the counts of the
steps are of all. Shares before and after the onset are counted here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from toolrl_box.diagnose.diagnosis import (
    Action,
    Affected,
    Diagnosis,
    InputFile,
    Involved,
    LastHealthy,
    Onset,
    Place,
    StepRow,
    ToolFormatSeen,
    Totals,
    Unjudged,
    Verdict,
)
from toolrl_box.diagnose.records import Judged, Origin
from toolrl_box.report.summary import summarise
from toolrl_box.runlog import RunLog, RunView

SCALARS = {
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "clip_fraction": "clip_fraction",
    "completion_tokens": "response_length",
    "lr": "learning_rate",
    "eval_sampled": "success",
}
HEALTHY = ("healthy_call", "healthy_response")


def judged(run: RunView) -> Iterator[Judged]:
    """Every assistant message that the run logged."""
    for step in run.rollout_steps():
        for line, row in enumerate(run.rollouts(step).to_dict("records"), start=1):
            written = [one for one in row["messages"] if one["role"] == "assistant"]
            for index, message in enumerate(written):
                yield Judged(
                    origin=Origin(Path(f"rollouts/step_{step:06d}.parquet"), line),
                    rollout=f"{row['group']}.{row['member']}",
                    step=step,
                    index=index,
                    text=message["content"],
                    state=message["state"],
                    kind=message["kind"],
                    start=message["start"],
                    end=message["end"],
                    reward=float(row["reward"]),
                    category=row["category"],
                )


def step_rows(
    metrics: pd.DataFrame, messages: list[Judged], rollouts: Counter[int]
) -> list[StepRow]:
    states: dict[int, Counter[str]] = {}
    kinds: dict[int, Counter[str]] = {}
    for message in messages:
        assert message.step is not None
        states.setdefault(message.step, Counter())[message.state] += 1
        kinds.setdefault(message.step, Counter())[message.kind] += 1
    rows = []
    for row in metrics.to_dict("records"):
        step = int(row["step"])
        known = {new: float(row[old]) for old, new in SCALARS.items() if math.isfinite(row[old])}
        rows.append(
            StepRow(
                step=step,
                rollouts=rollouts[step],
                messages=sum(states.get(step, Counter()).values()),
                reward=_finite(row["reward"]),
                reward_std=_finite(row["reward_spread"]),
                length=_finite(row["completion_tokens"]),
                states=states.get(step, Counter()),
                kinds=kinds.get(step, Counter()),
                scalars=known,
            )
        )
    return rows


def diagnose(run: RunView, messages: list[Judged]) -> Diagnosis:
    """The report's verdict in the form of a diagnosis."""
    summary = summarise(run)
    rollouts = Counter({step: len(run.rollouts(step)) for step in run.rollout_steps()})
    rows = step_rows(run.metrics(), messages, rollouts)
    onset = summary["onset_step"]
    both = [x for x in (summary["reward_onset"], summary["structural_onset"]) if x is not None]
    inputs = [
        InputFile(
            path="metrics.parquet", format="toolrl", rollouts=0, scalars=len(rows), damaged=0
        ),
        InputFile(
            path="rollouts/",
            format="toolrl",
            rollouts=sum(rollouts.values()),
            scalars=0,
            damaged=0,
        ),
    ]
    return Diagnosis(
        written_by="toolrl-box (fixture)",
        name=run.path.name,
        inputs=tuple(inputs),
        tool_format=ToolFormatSeen(
            name=run.config["format"], forced=False, stripped=False, evidence={}
        ),
        totals=Totals(
            rollouts=sum(rollouts.values()),
            messages=len(messages),
            steps=len(rollouts),
            first_step=min(rollouts),
            last_step=max(rollouts),
        ),
        verdict=Verdict(
            name=summary["verdict"], headline=summary["headline"], reason=summary["reason"]
        ),
        onsets=()
        if onset is None
        else (
            Onset(
                signal="reward",
                step=onset,
                low=min(both) - 2,
                high=max(both) + 2,
                method="report rules",
                checked_by=None,
                agree=None,
            ),
        ),
        first_wrong=_first_wrong(messages),
        involved=tuple(_involved(messages, onset)),
        affected=tuple(_affected(messages, onset)),
        last_healthy=None
        if onset is None
        else LastHealthy(
            step=onset - 1, checkpoint=f"checkpoints/step_{(onset - 1) // 5 * 5:06d}", why="rules"
        ),
        actions=()
        if onset is None
        else (
            Action(
                do="Go back to the checkpoint before the onset.",
                why="What came after it only made calls worse.",
                command=f"toolrl run --from checkpoints/step_{(onset - 1) // 5 * 5:06d}",
            ),
            Action(do="Lower the learning rate.", why="The run used 1.2e-3."),
        ),
        unjudged=(Unjudged(what="KL to the reference", why="beta is 0, so it was not logged."),),
        damaged=0,
        damage=(),
        steps=tuple(rows),
    )


def _first_wrong(messages: list[Judged]) -> Place | None:
    for one in messages:
        if one.state not in HEALTHY:
            return Place(
                file=str(one.origin.file),
                line=one.origin.line,
                rollout=one.rollout,
                step=one.step,
                message=one.index,
                kind=one.kind,
                excerpt=one.text[:400],
            )
    return None


def _involved(messages: list[Judged], onset: int | None) -> Iterator[Involved]:
    if onset is None:
        return
    before = [m for m in messages if (m.step or 0) < onset]
    after = [m for m in messages if (m.step or 0) >= onset]
    for kind, token, slot in (
        ("unclosed_call", "</tool_call>", "end of a call"),
        ("stray_tag", "</tool_call>", "in text"),
    ):
        shares = [sum(m.kind == kind for m in part) / len(part) for part in (before, after)]
        yield Involved(token=token, slot=slot, share_before=shares[0], share_after=shares[1])


def _affected(messages: list[Judged], onset: int | None) -> Iterator[Affected]:
    frame = pd.DataFrame(
        {
            "category": [m.category for m in messages],
            "rollout": [(m.step, m.rollout) for m in messages],
            "late": [onset is not None and (m.step or 0) >= onset for m in messages],
            "reward": [m.reward for m in messages],
            "healthy": [m.state in HEALTHY for m in messages],
        }
    )
    for category, part in frame.groupby("category"):
        early, late = part[~part["late"]], part[part["late"]]
        rewards = [x.drop_duplicates("rollout")["reward"].mean() for x in (early, late)]
        yield Affected(
            category=str(category),
            rollouts=part["rollout"].nunique(),
            reward_before=_finite(rewards[0]),
            reward_after=_finite(rewards[1]),
            healthy_before=_finite(early["healthy"].mean()),
            healthy_after=_finite(late["healthy"].mean()),
        )


def _finite(value: Any) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _row(message: Judged) -> dict[str, Any]:
    row = dataclasses.asdict(message) | {"file": str(message.origin.file)}
    return row | {"line": row.pop("origin")["line"]}


def load(path: Path) -> tuple[Diagnosis, list[Judged]]:
    """What the file holds."""
    data = json.loads(path.read_text(encoding="utf-8"))
    messages = [
        Judged(origin=Origin(Path(row.pop("file")), row.pop("line")), **row)
        for row in data["messages"]
    ]
    return Diagnosis.model_validate(data["diagnosis"]), messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--each", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("tests/data/collapsed.json"))
    arguments = parser.parse_args()
    run = RunLog.open(arguments.run)
    messages = list(judged(run))
    diagnosis = diagnose(run, messages)
    kept: list[Judged] = []
    counts: Counter[int | None] = Counter()
    for message in messages:
        counts[message.step] += 1
        if counts[message.step] <= arguments.each:
            kept.append(message)
    lines = ",\n".join(json.dumps(_row(m), ensure_ascii=False, separators=(",", ":")) for m in kept)
    text = f'{{"diagnosis": {diagnosis.model_dump_json()},\n"messages": [\n{lines}\n]}}\n'
    arguments.output.write_text(text, encoding="utf-8")
    print(f"{arguments.output}: {len(kept)} of {len(messages)} messages, {len(text)} characters")


if __name__ == "__main__":
    main()
