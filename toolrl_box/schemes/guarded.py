"""Guarded: any scheme, watched by the probe; an alarm interrupts its RL and climbs a ladder.

Each alarm of level *act* ends the running RL phase; the guard answers with the next rung of
``ladder``, then goes on with what was left of the phase. An alarm that comes more than ``relapse``
RL steps after the last answer starts at the bottom again. A rung is one action or several, as in
``rollback+sft+lr``:

    sft       supervised updates on gold of tasks that failed lately, of the categories that fell;
              with ``aim``, of their messages only calls or only texts: the kind in whose slot of
              the probe the right token has lost most
    rollback  back to the newest checkpoint at least ``margin`` steps before the alarm
    lr        the learning rate times ``lr_cut``, from now on
    kl        a KL penalty of ``beta``, from now on
    stop      the run ends here

Warnings are in the journal and change nothing. More than ``budget`` answers end the run: a guard
never loops for ever. That SFT repairs what RL broke is arXiv 2606.26027's finding; the ladder is
ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toolrl_box.errors import ConfigError
from toolrl_box.ladder import Guard, Ladder
from toolrl_box.phases import RL, Context, Outcome, Phase, Phases


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded(Ladder):
    """``inner`` and its ``knobs``: the scheme that is guarded; the rest: see
    :class:`~toolrl_box.ladder.Ladder`. A ladder without rungs changes nothing: the inner scheme,
    bit for bit."""

    inner: str = "rl"
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Ladder.__post_init__(self)
        if self.inner == "guarded":
            raise ConfigError("scheme guarded: inner = guarded; a guard guards another scheme")

    def phases(self, ctx: Context) -> Phases:
        inner, guard = ctx.build_scheme(self.inner, self.knobs).phases(ctx), Guard(self, ctx)
        phase: Phase | None = next(inner, None)
        while phase is not None and not guard.stopped:
            if isinstance(phase, RL) and self.ladder:
                outcome = yield from guard.watch(phase)
            else:
                outcome = yield phase
            phase = _next(inner, outcome)


def _next(phases: Phases, outcome: Outcome) -> Phase | None:
    try:
        return phases.send(outcome)
    except StopIteration:
        return None
