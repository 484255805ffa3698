"""Everything a diagnosis leaves in a folder.

Input: a diagnosis, its examples and the log (for the prompts). Output::

    DIR/
      index.html             the page
      report.md              for an issue tracker
      diagnosis.json         schema: docs/diagnosis.schema.json
      states.csv             states, kinds and figures per step
      failed_prompts.jsonl   an SFT set, where the log has gold
      *.png, *.svg           the pictures

A folder that holds anything but an earlier diagnosis is refused before anything is read or written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from toolrl_box.diagnose import figures
from toolrl_box.diagnose.against import Comparison
from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.failed_prompts import Written, write_failed_prompts
from toolrl_box.diagnose.judge import Judge
from toolrl_box.diagnose.markdown import markdown, markdown_of_both
from toolrl_box.diagnose.page import write_page
from toolrl_box.diagnose.records import Judged, Record
from toolrl_box.diagnose.table import states_csv
from toolrl_box.durable import write_atomic, writing
from toolrl_box.errors import ConfigError

JSON_FILE = "diagnosis.json"


@dataclass(frozen=True, slots=True)
class Result:
    """A diagnosis and examples of its messages; ``middle``: the reward half-way between the lowest
    and the highest of the log, None without rewards."""

    diagnosis: Diagnosis
    examples: Sequence[Judged]
    middle: float | None


def check_folder(folder: Path) -> None:
    """Raises ConfigError unless ``folder`` is new, empty or an earlier diagnosis."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file; name a folder")
    names = sorted(entry.name for entry in folder.iterdir())
    if names and not _is_earlier(folder / JSON_FILE):
        raise ConfigError(
            f"--output {folder} is not empty (it holds {names[0]}) and no earlier diagnosis; "
            "name another folder"
        )


def write(
    folder: Path,
    result: Result,
    records: Iterable[Record],
    judge: Judge,
    *,
    against: Result | None = None,
    comparison: Comparison | None = None,
) -> Written:
    """Write the folder; older files of a diagnosis are replaced, others are left alone.

    ``records`` and ``judge``: the log once more, and one that has judged nothing yet. Raises
    ConfigError for a folder that is taken, RunFolderError when it cannot be written.
    """
    check_folder(folder)
    diagnosis = result.diagnosis
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # First: what is cut off now is an earlier diagnosis and may be written again.
        write_atomic(folder / JSON_FILE, to_json(comparison or diagnosis).encode())
        text = markdown_of_both(comparison) if comparison else markdown(diagnosis)
        write_atomic(folder / "report.md", text.encode())
        write_atomic(folder / "states.csv", states_csv(diagnosis.steps).encode())
    other = None if against is None else (against.diagnosis, against.examples)
    write_page(diagnosis, result.examples, folder / "index.html", other)
    figures.draw(diagnosis, folder)
    onset = diagnosis.onsets[0].low if diagnosis.onsets else diagnosis.verdict.since
    return write_failed_prompts(
        folder / "failed_prompts.jsonl",
        records,
        judge=judge,
        since=onset,
        middle=result.middle,
    )


def to_json(model: BaseModel) -> str:
    return model.model_dump_json(indent=1) + "\n"


def schema() -> str:
    """The JSON Schema (draft 2020-12) of ``diagnosis.json``."""
    return json.dumps(Diagnosis.model_json_schema(mode="serialization"), indent=1) + "\n"


def _is_earlier(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict):
        return False
    written = found.get("diagnosis", found)
    return isinstance(written, dict) and str(written.get("written_by", "")).startswith("toolrl-box")
