"""What to do next, most useful first, each with its reason.

Input: the verdict, where it began, and what the log had. Output: actions that name commands of
this package that exist, and what its own studies say, where they do (results/LOG.md): there a
low learning rate beat every mix with supervision, and supervised phases cost other tool formats.

Left out: promises. An action is advice from one laboratory and one log.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toolrl_box.diagnose.diagnosis import Action, Affected, LastHealthy
from toolrl_box.verdicts import Name

STUDY = "results/LOG.md, pocket world, 8 seeds an arm"


@dataclass(frozen=True, slots=True)
class Case:
    """What advice hangs on. ``evidence``: the verdict's own sentence; ``worst``: the defect that
    rose most; ``learning_rate`` the highest that the log has; ``checkpoint`` the newest."""

    verdict: Name
    evidence: str
    last_healthy: LastHealthy | None
    worst: str | None
    gold: bool
    learning_rate: float | None
    affected: tuple[Affected, ...]
    checkpoint: str | None


def actions(case: Case) -> tuple[Action, ...]:
    return tuple(action for advice in ADVICE[case.verdict] if (action := advice(case)) is not None)


def _mend(case: Case) -> Action:
    return Action(
        do="Mend the suspected bug and run again before reading anything else here.",
        why=case.evidence,
    )


def _look(case: Case) -> Action:
    return Action(
        do="Read the first wrong message and the examples at the onset.",
        why=f"The defect that rose most is {case.worst}; what it looks like says which token to "
        "watch."
        if case.worst
        else "Figures alone do not say what went wrong.",
    )


def _keep(case: Case) -> Action | None:
    found = case.last_healthy
    if found is None:
        return None
    if found.checkpoint is None:
        return Action(
            do=f"Look for a checkpoint of step {found.step} or before; stop using later ones.",
            why=f"Step {found.step} is {found.why}; no checkpoint was found beside the log.",
        )
    return Action(
        do=f"Go on from {found.checkpoint}, not from the last checkpoint.",
        why=f"It is the newest one by step {found.step}, {found.why}.",
    )


def _low_rate(case: Case) -> Action:
    at = "" if case.learning_rate is None else f" (the log's highest is {case.learning_rate:.3g})"
    return Action(
        do=f"Lower the learning rate first{at}: try a fifth.",
        why="In our study RL alone collapsed in 8 of 8 seeds, at a sixth of the rate in none, and "
        f"that beat every mix with supervision ({STUDY}). It is also the cheapest thing to try.",
    )


def _counterfactual(case: Case) -> Action:
    return Action(
        do="Test whether the capability is lost or only obscured by broken control tokens.",
        why="The paper reports 'capability intact' after collapse; on five collapsed checkpoints "
        "of ours it was lost. The answer decides between repair and going back.",
        command=_command("eval", case.checkpoint or "CHECKPOINT", "--counterfactual"),
    )


def _probe(case: Case) -> Action:
    return Action(
        do="Probe the saved checkpoints on gold dialogues.",
        why="Damage to gold messages and KL by checkpoint date the change between two saved ones "
        "without sampling.",
        command="toolrl probe BASE CHECKPOINT… --bank GOLD.jsonl",
    )


def _interleave(case: Case) -> Action:
    gold = "which has the gold continuations" if case.gold else "once you have added gold to it"
    return Action(
        do=f"If a lower rate is no choice, interleave SFT on failed_prompts.jsonl, {gold}.",
        why="Interleaving kept 8 of 8 runs of ours alive at the collapsing rate, but they ended "
        "little above the base, and with another tool format they solved nothing "
        f"({STUDY}): supervision costs generality.",
        command="toolrl run --scheme interleaved",
    )


def _guard(_: Case) -> Action:
    return Action(
        do="Run again with a guard that saves checkpoints when alarms begin.",
        why="A collapse takes a few steps; a checkpoint from just before it is worth more than the "
        "last regular one (docs/guard.md).",
    )


def _reward_function(case: Case) -> Action:
    return Action(
        do="Check the reward on a dozen of the last rollouts by hand.",
        why="Messages are sound, so either what they do is wrong or the reward no longer sees that "
        "it is right (a changed environment, a time-out that counts as 0, an exploit).",
    )


def _category(case: Case) -> Action | None:
    rows = [
        row
        for row in case.affected
        if row.by == "category" and row.reward_before is not None and row.reward_after is not None
    ]
    if len(rows) < 2:
        return None
    worst = min(rows, key=lambda row: (row.reward_after or 0.0) - (row.reward_before or 0.0))
    if (worst.reward_after or 0.0) >= (worst.reward_before or 0.0):
        return None
    return Action(
        do=f"Begin with the category '{worst.category}'.",
        why=f"It lost most: mean reward {worst.reward_before:.2f} before, "
        f"{worst.reward_after:.2f} after.",
    )


def _explore(case: Case) -> Action:
    return Action(
        do="Raise exploration: temperature 1, an entropy bonus or a higher upper clip; drop groups "
        "whose rewards are all equal.",
        why=case.evidence + " Groups without differences carry no gradient. We have no study of "
        "these remedies.",
    )


def _limit(case: Case) -> Action:
    return Action(
        do="Mask truncated responses out of the loss, or penalise length softly, and look at why "
        "they do not stop.",
        why=case.evidence + " A response that is cut gets a reward that says nothing about its "
        "beginning. We have no study of these remedies.",
    )


def _pause(_: Case) -> Action:
    return Action(
        do="Stop the run now or lower the rate: reward has not fallen yet.",
        why="Text pollution is the stage that comes before a structural collapse (arXiv "
        "2606.26027); in our runs the reward followed within a few steps.",
    )


def _log_more(_: Case) -> Action:
    return Action(
        do="Log rollouts (messages, rewards, groups, tools) and at least 10 steps, then ask again.",
        why="What could not be judged is listed below.",
    )


def _nothing(_: Case) -> Action:
    return Action(
        do="Nothing needs mending; follow the run with `toolrl watch`.",
        why="No rule of the verdict holds.",
        command="toolrl watch DIR",
    )


def _command(*words: str) -> str:
    return "toolrl " + " ".join(shlex.quote(word) for word in words)


Advice = Callable[[Case], Action | None]
ADVICE: Mapping[Name, tuple[Advice, ...]] = {
    "suspected_bug": (_mend, _look),
    "structural_collapse": (_keep, _low_rate, _look, _counterfactual, _interleave, _probe, _guard),
    "text_pollution": (_pause, _keep, _low_rate, _look, _probe, _guard),
    "capability_loss": (_keep, _low_rate, _category, _counterfactual, _interleave, _probe),
    "reward_collapse": (_reward_function, _keep, _low_rate, _category, _counterfactual, _probe),
    "entropy_collapse": (_explore, _keep, _low_rate, _category),
    "length_explosion": (_limit, _keep, _low_rate, _look),
    "drifting": (_keep, _low_rate, _category, _probe),
    "healthy": (_nothing,),
    "insufficient_data": (_log_more,),
}
