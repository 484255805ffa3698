"""Writes down everything a run does: figures, probe, rollouts, evaluation, alarms, checkpoints.

Input: the calls of :func:`toolrl_box.train.drive`. Output: the run folder, through
:class:`~toolrl_box.runlog.RunLog`, and one :class:`Line` per step for whoever shows progress.

A checkpoint's state holds the run log's cursor, so that resuming rewinds the logs to exactly the
step whose weights are loaded.

Left out: what is shown (``cli``) and what it means (``report``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Protocol

from toolrl_box import checkpoints
from toolrl_box.config import RunConfig
from toolrl_box.detectors import Detector
from toolrl_box.evaluate import Evaluate
from toolrl_box.phases import SFT, Outcome, Phase
from toolrl_box.probe.probe import Probe
from toolrl_box.probe.states import classify
from toolrl_box.readings import right_tokens, values
from toolrl_box.runlog import RunLog
from toolrl_box.samples import rollout_to_sample
from toolrl_box.train import Progress, StepResult
from toolrl_box.types import STATES, Alarm, Finding, Group, Reading, Rollout, ToolFormat


class Saves(Protocol):
    """What the recorder needs of a backend."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Line:
    """What a progress display may show of a step."""

    progress: Progress
    row: Mapping[str, Any]
    alarms: tuple[Alarm, ...]


class Recorder:
    """Implements :class:`toolrl_box.train.Observer`. ``should_stop`` is asked after every step."""

    def __init__(
        self,
        log: RunLog,
        backend: Saves,
        probe: Probe,
        evaluate: Evaluate,
        detectors: Sequence[Detector],
        fmt: ToolFormat,
        config: RunConfig,
        show: Callable[[Line], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._log = log
        self._backend = backend
        self._probe = probe
        self._evaluate = evaluate
        self._detectors = detectors
        self._fmt = fmt
        self._config = config
        self._show = show
        self._should_stop = should_stop
        self._base_right = right_tokens(probe().summary(0))
        self._best: tuple[int, float] | None = None
        self._dense: list[int] = []  # steps saved because of an alarm, that are kept
        self._dense_left = 0  # further steps that will be
        self._alarmed = False  # whether the last step raised an alarm

    # --- what drive() tells -----------------------------------------------------------------

    def begin(self, progress: Progress) -> None:
        observed, _ = self._observe(0)
        row: dict[str, Any] = {"step": 0, **observed}
        if self._is_base(0):
            row |= self._evaluated(0)
        self._log.metrics(row)
        self._show(Line(progress, row, ()))
        self._log.event("checkpoint", step=0, reason="start")
        self._checkpoint(progress)

    def phase_start(self, progress: Progress, phase: Phase) -> None:
        detail: dict[str, Any] = {"steps": phase.steps}
        if isinstance(phase, SFT):
            detail |= {"tasks": [task.id for task in phase.tasks], "epochs": phase.epochs}
            detail |= {"lr": phase.lr, "messages": phase.messages}
        else:
            detail |= {k: v for k, v in asdict(phase).items() if k != "steps"}
        self._log.event(
            "phase_start",
            index=progress.phase,
            kind=phase.kind,
            step=progress.step + 1,
            detail=detail,
        )

    def step(self, progress: Progress, result: StepResult) -> bool:
        step = progress.step
        row: dict[str, Any] = {
            "step": step,
            "rl_step": progress.rl_step,
            "phase": progress.phase,
            "phase_kind": progress.phase_kind,
            **result.figures,
        }
        start = time.perf_counter()
        if result.groups:
            findings = [
                [list(_findings(r, self._fmt)) for r in group.rollouts] for group in result.groups
            ]
            row |= _group_figures(result.groups, findings)
            self._log.rollouts(step, _rollout_rows(step, result.groups, findings))
        row["seconds_logging"] = time.perf_counter() - start
        if self._is_base(step):
            self._probe.rebase()
        probed = step > self._config.warmup_updates and step % self._config.probe.every == 0
        alarms, moved = [], None
        if probed or self._is_base(step):
            observed, summary = self._observe(step)
            observed["seconds_logging"] += row["seconds_logging"]
            row |= observed
            if self._is_base(step):
                self._base_right = right_tokens(summary)
            alarms = self._alarms(Reading(step, values(row, summary)))
            moved = self._moved(summary)
        # From the step on at which alarms begin; that they go on saves no further steps.
        begins = bool(alarms) and not self._alarmed
        self._dense_left = self._config.checkpoint.dense if begins else max(0, self._dense_left - 1)
        self._alarmed = bool(alarms)
        for alarm in alarms:
            if progress.alarm is None or alarm.reaches(progress.alarm.level):
                progress.alarm, progress.moved = alarm, moved
        if step % self._config.eval.every == 0 or self._is_base(step):
            row |= self._evaluated(step)
        self._log.metrics(row)
        stop = self._should_stop()
        due = self._due(step)
        if due:
            self._log.event("checkpoint", step=step, reason="regular")
        elif self._dense_left:
            due = True
            self._log.event("checkpoint", step=step, reason="alarm")
            self._dense = [*self._dense, step][-self._config.checkpoint.dense :]
        if stop or due:
            start = time.perf_counter()
            self._checkpoint(progress)
            row["seconds_logging"] += time.perf_counter() - start
        self._show(Line(progress, row, tuple(alarms)))
        return stop

    def rollback(self, progress: Progress, before: int) -> None:
        """To the newest checkpoint that the undisturbed run has, too: a run that was stopped in
        between goes back to the same; and never before the base. A thinned one has no moments:
        they start anew."""
        before = max(before, self._config.warmup_updates)
        step = max(s for s in self._scheduled() if s <= before)
        path = checkpoints.path_of(self._log.path, step)
        state = checkpoints.verify(path)
        self._backend.load(path)
        self._restore_detectors(state)
        self._log.event("rollback", step=progress.step, to=step)

    def phase_end(self, progress: Progress, outcome: Outcome) -> None:
        self._log.event("phase_end", index=progress.phase, outcome=outcome.to_json())

    def finish(self, progress: Progress) -> None:
        if not self._due(progress.step):
            self._log.event("checkpoint", step=progress.step, reason="end")
            self._checkpoint(progress)
        self._log.event("finish", step=progress.step, rl_step=progress.rl_step)
        self._log.commit()

    # --- resuming ---------------------------------------------------------------------------

    def restore(self, state: Mapping[str, Any]) -> None:
        """Detectors, best mark and dense saving as they were at the checkpoint."""
        self._restore_detectors(state)
        self._dense, self._dense_left = list(state["dense"]), state["dense_left"]
        self._alarmed = state["alarmed"]
        self._best = None if state["best"] is None else tuple(state["best"])

    def _restore_detectors(self, state: Mapping[str, Any]) -> None:
        for detector in self._detectors:
            detector.restore(state["detectors"][detector.name])

    # --- parts ------------------------------------------------------------------------------

    def _observe(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """What the probe adds to the step's row, and its summary by slot and token."""
        start = time.perf_counter()
        observation = self._probe()
        seconds = time.perf_counter() - start
        summary = observation.summary(step)
        self._log.probe(summary)
        self._log.contexts(step, observation.contexts())
        p_call = observation.p_call
        figures = {
            "bank_nll": observation.nll,
            "bank_kl": observation.kl,
            **({} if p_call is None else {"p_call": p_call}),
            "seconds_probe": seconds,
            "seconds_logging": time.perf_counter() - start - seconds,
        }
        return figures, summary

    def _evaluated(self, step: int) -> dict[str, float]:
        figures = self._evaluate()
        score = (figures["eval_greedy"] + figures["eval_sampled"]) / 2
        if self._best is None or score > self._best[1]:
            self._best = (step, score)
            self._log.event("best", step=step, score=score)
        return figures

    def _alarms(self, reading: Reading) -> list[Alarm]:
        alarms = [alarm for d in self._detectors if (alarm := d.update(reading)) is not None]
        for alarm in alarms:
            self._log.event("alarm", **asdict(alarm))
        return alarms

    def _moved(self, summary: Sequence[Mapping[str, Any]]) -> str:
        """The slot whose right token has lost most against the base."""
        now = right_tokens(summary)
        return max(now, key=lambda slot: self._base_right[slot] - now[slot])

    def _due(self, step: int) -> bool:
        """By the schedule alone: a checkpoint that a signal asked for is in no journal, so that
        the journal of a run that was stopped equals that of one that was not."""
        every = (self._config.eval.every, self._config.checkpoint.every)
        return any(step % steps == 0 for steps in every) or self._is_base(step)

    def _scheduled(self) -> list[int]:
        """Checkpoints that an undisturbed run has at this step, too: regular ones, and those of
        alarms that are still kept."""
        complete = checkpoints.complete_steps(self._log.path)
        return [step for step in complete if self._due(step) or step in self._dense]

    def _is_base(self, step: int) -> bool:
        """Whether the model after this step (0: before the first) is the one that the scheme
        starts from. A resumed run needs its checkpoint: the probe measures KL from it."""
        return step == self._config.warmup_updates

    def _checkpoint(self, progress: Progress) -> None:
        """Save, unless the same step was saved before a stop; its event is logged before."""
        if progress.step in checkpoints.complete_steps(self._log.path):
            return
        state = {
            "progress": progress.to_json(),
            "cursor": self._log.commit(),
            "detectors": {detector.name: detector.state() for detector in self._detectors},
            "best": self._best,
            "dense": self._dense,
            "dense_left": self._dense_left,
            "alarmed": self._alarmed,
        }
        checkpoints.save(self._log.path, progress.step, self._backend.save, state)
        keep = self._scheduled()[-self._config.checkpoint.keep_optimizer :]
        checkpoints.thin(self._log.path, [*keep, progress.step])
        passed = {*checkpoints.complete_steps(self._log.path)} - {*self._scheduled(), progress.step}
        checkpoints.drop(self._log.path, passed)


def _findings(rollout: Rollout, fmt: ToolFormat) -> Iterator[Finding]:
    """The structural state of each message, with the tools on offer when it was written."""
    tools = list(rollout.task.tools)
    for turn in rollout.turns:
        yield classify(
            turn.text,
            turn.parsed,
            tools=tools,
            truncated=turn.truncated,
            control_tokens=fmt.control_tokens,
        )
        for message in turn.observations:
            tools += message.tools


def _group_figures(
    groups: Sequence[Group], findings: Sequence[Sequence[Sequence[Finding]]]
) -> dict[str, float]:
    """Figures of a step's rollouts; shares are over messages, ``sampled_tokens`` is a total, the
    rest are means.

    All but the spread are about the policy's own rollouts; the spread is what advantages are made
    of, so hinted and expert ones count.
    """
    rollouts = [rollout for group in groups for rollout in group.own]
    spreads = [pstdev(group.rewards_G) for group in groups]
    flat = [
        finding
        for group, found in zip(groups, findings, strict=True)
        for rollout_findings in found[: len(group.own)]
        for finding in rollout_findings
    ]
    states = Counter(finding.state for finding in flat)
    kinds = Counter(finding.kind for finding in flat)
    total = max(1, len(flat))
    sampled = [r for group in groups for r in group.rollouts if r.source != "expert"]
    return {
        "reward": fmean(rollout.reward for rollout in rollouts),
        "reward_spread": fmean(spreads),
        "zero_spread": fmean(spread == 0 for spread in spreads),
        "completion_tokens": fmean(map(_written, rollouts)),
        "messages": fmean(len(rollout.turns) for rollout in rollouts),
        "valid_calls": fmean(sum(len(t.parsed.calls) for t in r.turns) for r in rollouts),
        "sampled_tokens": float(sum(_written(rollout) for rollout in sampled)),
        **{f"state_{state}": states[state] / total for state in STATES},
        **{f"kind_{kind}": count / total for kind, count in sorted(kinds.items())},
    }


def _written(rollout: Rollout) -> int:
    """Tokens of its messages."""
    return sum(len(turn.completion_ids) for turn in rollout.turns)


def _rollout_rows(
    step: int, groups: Sequence[Group], findings: Sequence[Sequence[Sequence[Finding]]]
) -> Iterator[dict[str, Any]]:
    for g, group in enumerate(groups):
        for m, rollout in enumerate(group.rollouts):
            sample = rollout_to_sample(rollout)
            yield {
                "step": step,
                "group": g,
                "member": m,
                "task_id": rollout.task.id,
                "category": rollout.task.category,
                "source": rollout.source,
                "reward": rollout.reward,
                "reward_parts": dict(rollout.reward_parts),
                "success": rollout.outcome.get("success", 0.0),
                "stop_reason": rollout.stop_reason,
                "error": rollout.error,
                "messages": list(_messages(rollout, findings[g][m])),
                "token_ids": list(sample.token_ids),
                "loss_mask": list(sample.loss_mask),
                "logprobs": list(sample.logprobs or ()),
            }


def _messages(rollout: Rollout, findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    for message in rollout.task.prompt:
        yield {"role": message.role, "content": message.content}
    for turn, finding in zip(rollout.turns, findings, strict=True):
        where = {"kind": finding.kind, "start": finding.start, "end": finding.end}
        yield {"role": "assistant", "content": turn.text, "state": finding.state, **where}
        for message in turn.observations:
            content = message.content
            if message.tools:
                content += "\n[tools: " + ", ".join(tool.name for tool in message.tools) + "]"
            yield {"role": message.role, "content": content}
