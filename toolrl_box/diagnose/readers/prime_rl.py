"""prime-rl: ``rollouts/step_N/**/traces.jsonl``, traces as verifiers writes them.

One episode a line; the step is the folder's, or the one the episode names. The layout is the one of
this package's specification; the traces' schema is verifiers 0.4.0's (prime-rl is not on PyPI).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toolrl_box.diagnose.readers._json import glance, json_lines
from toolrl_box.diagnose.readers._source import Plain, Source
from toolrl_box.diagnose.readers._traces import is_trace, rollouts
from toolrl_box.diagnose.records import Origin, Record


@dataclass(frozen=True)
class PrimeRl(Plain):
    name = "prime-rl"
    suffixes = (".jsonl",)

    def fits(self, source: Source) -> bool:
        _, names = glance(source.head)
        return source.step is not None and is_trace(names)

    def read(self, source: Source) -> Iterator[Record]:
        def convert(origin: Origin, row: dict[str, Any]) -> Iterable[Record]:
            return rollouts(source, origin, row)

        return json_lines(source, convert)
