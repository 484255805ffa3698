"""Three public monitors on our logs, scored by the rules that our own detectors are scored by.

    make monitors ARGS=results/first_looks/data      # makes .venv-monitors first

Input: a warning data set, and the Python of an environment that holds the monitors
(``monitors_env/requirements.txt``; never ours). Output beside the data set: ``monitors.json`` and
``monitors.md``. The monitors run in their environment (``monitors_env/ask.py``) with their default
thresholds and see what our detectors see, under their own names; what they raise is held against
the onsets of the test split (``toolrl_box.scoring``), at both levels. The prototype's detectors,
with their own thresholds too, stand beside them.

Left out: what no detector may see (evaluations define the onsets), so rldoctor's comparison of
reward with a held-out score has no data; fitting the monitors' thresholds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study import share, spread

from toolrl_box.detectors.damage import Damage
from toolrl_box.detectors.unhealthy import Unhealthy
from toolrl_box.scoring import Judged, Level, Score, score_alarms, score_detector, scored_runs
from toolrl_box.types import LEVELS
from toolrl_box.warning_data import Logged, load_dataset

ASK = Path(__file__).parent / "monitors_env" / "ask.py"
PYTHON = Path(".venv-monitors/bin/python")
UNUSED_BUDGET = 0.5  # nothing is fitted here
NO_COUNTERPART = ("bank_nll", "p_call", "deficit", "wrong_control", "unhealthy", "…")


def config_of(run: Logged) -> dict[str, Any]:
    """What rldoctor's TRL callback would read from the trainer's arguments."""
    grpo = run.entry.config["grpo"]
    return {
        "algorithm": "grpo",
        "num_generations": grpo["group_size"],
        "learning_rate": grpo["lr"],
        "beta": grpo["beta"],
        "epsilon": grpo["clip"],
        "loss_type": grpo["loss_type"],
    }


def ask(runs: Sequence[Logged], python: Path) -> dict[str, Any]:
    """Every monitor's alarms; ends the program with a monitor's own words when it fails."""
    question = {
        run.entry.run: {
            "config": config_of(run),
            "steps": [(reading.step, dict(reading.values)) for reading in run.readings],
        }
        for run in runs
    }
    # -I and an empty environment: no settings, paths or addresses of the user's reach them.
    done = subprocess.run(  # noqa: S603 - our own script
        [python, "-I", ASK],
        input=json.dumps(question),
        text=True,
        env={},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{ASK.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def first(alarms: Sequence[tuple[int, str, str]], level: Level) -> int | None:
    """The step of the first alarm of at least this level."""
    grave = LEVELS[LEVELS.index(level) :]
    return min((step for step, found, _ in alarms if found in grave), default=None)


def score(name: str, answer: Mapping[str, Any], runs: Sequence[Logged], level: Level) -> Score:
    alarms = answer["alarms"]
    return score_alarms(name, [Judged(r, first(alarms[r.entry.run], level), {}) for r in runs])


def table(scores: Mapping[str, Score]) -> str:
    lines = [
        "| monitor | early | detected | false alarms | ambiguous | lead, first onset |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in scores.items():
        shares = (row.early, row.detected, row.false_alarms, row.ambiguous)
        told = " | ".join(map(share, shares))
        lines.append(f"| {name} | {told} | {spread(row.lead['first'])} |")
    return "\n".join(lines) + "\n"


def reading_table(answers: Mapping[str, Any]) -> str:
    """Which of our signals each monitor got, and which of its checks stayed without data."""
    lines = [
        "| monitor | asked | our signals, as it calls them | checks without data | alarms, by "
        "check (runs) |",
        "|---|---|---|---|---|",
    ]
    for name, answer in answers.items():
        given = ", ".join(f"`{ours}` → `{theirs}`" for ours, theirs in answer["given"].items())
        runs: dict[str, int] = {}
        for alarms in answer["alarms"].values():
            for check in {check for _, _, check in alarms}:
                runs[check] = runs.get(check, 0) + 1
        raised = ", ".join(f"{check} ({count})" for check, count in sorted(runs.items())) or "none"
        lines.append(
            f"| {name} {answer['version']} | {answer['asked']} | {given} "
            f"| {', '.join(answer['idle']) or 'none'} | {raised} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--python", type=Path, default=PYTHON, help="of the monitors' environment")
    arguments = parser.parse_args()
    data = load_dataset(arguments.dataset)
    runs = scored_runs(data)
    answers = ask(runs, arguments.python.absolute())
    scores = {
        f"{name} ({level})": score(name, answer, runs, level)
        for name, answer in answers.items()
        for level in LEVELS
    }
    for detector in (Damage, Unhealthy):
        for level in LEVELS:
            key = f"ours: {detector.name} ({level})"
            scores[key] = score_detector(detector, data, UNUSED_BUDGET, level)
    kinds = [run.entry.kind for run in runs]
    text = (
        f"{kinds.count('collapsing')} collapsing, {kinds.count('healthy')} healthy and "
        f"{kinds.count('ambiguous')} ambiguous runs of the test split. Everything keeps its own "
        f"thresholds: read false alarms beside detections.\n\n{table(scores)}\n"
        f"{reading_table(answers)}\n"
        f"No monitor knows {', '.join(NO_COUNTERPART)}; `bank_kl` is over the probe's bank, theirs "
        "over sampled tokens. Evaluations are given to none, as they define the onsets.\n"
    )
    folder = arguments.dataset.parent
    plain = {
        "monitors": answers,
        "scores": {name: row.to_json() for name, row in scores.items()},
    }
    (folder / "monitors.json").write_text(json.dumps(plain, indent=1) + "\n")
    (folder / "monitors.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
