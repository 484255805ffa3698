"""The result of a diagnosis: the versioned schema behind ``--json`` and behind every page.

Adding an optional field keeps the version; renaming, removing or changing the meaning of one
raises it. Shares and rates are in [0, 1], steps are the log's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from toolrl_box.verdicts import Name as VerdictName

VERSION: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(_Part):
    """One file that was read, by which reader, and what came of it."""

    path: str
    format: str
    rollouts: int
    scalars: int
    damaged: int


class ToolFormatSeen(_Part):
    """How calls are written in the log. ``evidence``: messages that speak for each dialect."""

    name: str
    forced: bool
    stripped: bool
    evidence: Mapping[str, int]


class Totals(_Part):
    """``steps_per_row``: 1, or how many steps a row of the timeline stands for in a long log.
    ``length_in``: what lengths are counted in."""

    rollouts: int
    messages: int
    steps: int
    first_step: int | None
    last_step: int | None
    steps_per_row: int = 1
    length_in: Literal["tokens", "characters"] | None = None


class Also(_Part):
    """A further rule that holds."""

    name: VerdictName
    evidence: str
    since: int | None


class Verdict(_Part):
    """``since``: the step at which the rule first held, as in a run's report; it follows trailing
    means, so the change itself (:class:`Onset`) is usually some steps earlier."""

    name: VerdictName
    headline: str
    reason: str
    since: int | None = None
    also: tuple[Also, ...] = ()


class Onset(_Part):
    """When it began. ``low`` to ``high`` is where another change-point method, or resampling of
    the steps' figures, puts it; ``signal`` is the curve that broke, with its mean ``before`` and
    ``after``."""

    signal: str
    step: int
    low: int
    high: int
    method: str
    checked_by: str | None
    agree: bool | None
    before: float | None = None
    after: float | None = None


class Place(_Part):
    """A message in the log."""

    file: str
    line: int
    rollout: str
    step: int | None
    message: int
    kind: str
    excerpt: str


class Involved(_Part):
    """A control token or piece, the slot it is missing from or was put into, and how often it was
    at fault in the messages before and after the onset (where there is none: the log's middle)."""

    token: str
    slot: str
    share_before: float
    share_after: float


class Affected(_Part):
    """A category of task, or a model, before and after the onset (or the log's middle); None where
    there is nothing to average."""

    category: str
    by: Literal["category", "model"] = "category"
    rollouts: int
    reward_before: float | None
    reward_after: float | None
    healthy_before: float | None
    healthy_after: float | None


class LastHealthy(_Part):
    step: int
    checkpoint: str | None
    why: str


class Action(_Part):
    """What to do next, most useful first."""

    do: str
    why: str
    command: str | None = None


class Unjudged(_Part):
    what: str
    why: str


class DamagedLine(_Part):
    file: str
    line: int
    reason: str


class StepRow(_Part):
    """One step of the timeline. ``states`` and ``kinds`` count assistant messages; ``scalars`` are
    the log's own figures; None where the log has nothing."""

    step: int | None
    rollouts: int
    messages: int
    reward: float | None
    reward_std: float | None
    length: float | None
    states: Mapping[str, int]
    kinds: Mapping[str, int]
    scalars: Mapping[str, float]


class Diagnosis(_Part):
    version: Literal[1] = VERSION
    written_by: str
    name: str
    inputs: tuple[InputFile, ...]
    tool_format: ToolFormatSeen | None
    policies: Mapping[str, str] = {}
    totals: Totals
    verdict: Verdict
    onsets: tuple[Onset, ...]
    first_wrong: Place | None
    involved: tuple[Involved, ...]
    affected: tuple[Affected, ...]
    last_healthy: LastHealthy | None
    actions: tuple[Action, ...]
    unjudged: tuple[Unjudged, ...]
    damaged: int
    damage: tuple[DamagedLine, ...]
    steps: tuple[StepRow, ...]
