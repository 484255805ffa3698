"""Agreement of the classifier with the hand-labelled messages beside this file.

    python tests/data/states/measure.py [development|test] [--errors]

Prints macro-F1 over kinds and over states and how well the spans agree. ``--errors`` lists the
messages on which it disagrees (not meant for the test part).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolrl_box.dialects import dialect
from toolrl_box.probe.states import KINDS, classify
from toolrl_box.probe.structured import StructuredCall, classify_structured
from toolrl_box.types import Finding, ToolSpec

HERE = Path(__file__).parent
Row = dict[str, Any]


def rows(part: str | None = None) -> list[Row]:
    lines = (HERE / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    every = [json.loads(line) for line in lines]
    return [row for row in every if part is None or row["part"] == part]


def tools() -> tuple[ToolSpec, ...]:
    every = json.loads((HERE / "tools.json").read_text(encoding="utf-8"))
    return tuple(ToolSpec(tool["name"], tool["parameters"]) for tool in every)


def judge(row: Row, on_offer: Sequence[ToolSpec]) -> Finding:
    read = dialect(row["dialect"], stripped=row.get("stripped", False))
    given: dict[str, Any] = {
        "tools": on_offer if row.get("tools") else (),
        "truncated": row.get("truncated", False),
        "control_tokens": read.control_tokens,
    }
    parsed = read.parse(row["text"])
    if "calls" not in row:
        return classify(row["text"], parsed, **given)
    calls = [StructuredCall(call["name"], call["arguments"]) for call in row["calls"]]
    return classify_structured(row["text"], calls, parsed, **given)


def macro_f1(truth: Sequence[str], found: Sequence[str]) -> float:
    """The mean F1 over the classes that occur in either; a class that is never met counts 0."""
    scores = []
    hits = Counter(a for a, b in zip(truth, found, strict=True) if a == b)
    real, said = Counter(truth), Counter(found)
    for name in {*truth, *found}:
        scores.append(2 * hits[name] / (real[name] + said[name]))
    return sum(scores) / len(scores)


def overlap(found: Finding, span: Sequence[int]) -> float:
    """Jaccard index of two spans, in characters."""
    shared = min(found.end, span[1]) - max(found.start, span[0])
    joined = max(found.end, span[1]) - min(found.start, span[0])
    return max(shared, 0) / joined


def measure(part: str | None) -> dict[str, float]:
    every, on_offer = rows(part), tools()
    found = [judge(row, on_offer) for row in every]
    kinds = [row["kind"] for row in every]
    spans = [
        overlap(finding, row["span"])
        for row, finding in zip(every, found, strict=True)
        if "span" in row and finding.kind == row["kind"]
    ]
    return {
        "messages": len(every),
        "kinds macro-F1": macro_f1(kinds, [finding.kind for finding in found]),
        "states macro-F1": macro_f1(
            [KINDS[kind] for kind in kinds], [finding.state for finding in found]
        ),
        "accuracy": sum(row["kind"] == f.kind for row, f in zip(every, found, strict=True))
        / len(every),
        "spans": len(spans),
        "spans that overlap": sum(value > 0 for value in spans) / len(spans),
        "spans, mean Jaccard": sum(spans) / len(spans),
    }


def main(arguments: Sequence[str]) -> None:
    part = next((word for word in arguments if not word.startswith("-")), None)
    for name, value in measure(part).items():
        print(f"{name:22} {value:.3f}" if isinstance(value, float) else f"{name:22} {value}")
    if "--errors" in arguments:
        for row in rows(part):
            finding = judge(row, tools())
            if finding.kind != row["kind"]:
                where = row["text"][finding.start : finding.end]
                print(row["id"], row["dialect"], row["kind"], "->", finding.kind, repr(where)[:60])
                print("   ", repr(row["text"])[:300])


if __name__ == "__main__":
    main(sys.argv[1:])
