"""What a log cannot tell, and why: the honest half of a diagnosis.

Input: an aggregate. Output: :class:`Unjudged`, what matters most first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from toolrl_box.diagnose.aggregate import Aggregate, Bin
from toolrl_box.diagnose.diagnosis import Unjudged

TOKEN_FACTS = {
    "max_logprob": "impossible log-probs",
    "observation_in_loss": "observations in the loss",
    "retokenised": "re-tokenisation",
    "ended_with_eos": "whether the stop token is sampled",
}


def unjudged(
    aggregate: Aggregate,
    bins: Sequence[Bin],
    *,
    checkpoints: int,
    damaged: int,
    bad_schemas: Collection[str] = (),
) -> tuple[Unjudged, ...]:
    scalars = {name for bin_ in bins for name in bin_.scalars}
    found: list[tuple[str, str]] = []
    if not aggregate.messages:
        found.append(
            (
                "the structure of messages, which tokens and tools are involved, any example",
                "the log holds figures only, no rollouts",
            )
        )
    elif aggregate.unplaced.messages:
        found.append(
            (
                f"when {aggregate.unplaced.messages} messages were written",
                "their records name no step",
            )
        )
    if not aggregate.reward.n and not scalars & {"reward", "success"}:
        found.append(("whether tasks are solved", "the log holds neither reward nor evaluation"))
    if aggregate.messages and not aggregate.with_tools:
        found.append(
            (
                "whether calls name tools that exist and follow their schemas",
                "no record lists its tools",
            )
        )
    if bad_schemas:
        names = ", ".join(sorted(bad_schemas)[:5])
        found.append((f"arguments of {len(bad_schemas)} tools ({names})", "their schema is none"))
    if aggregate.messages and not aggregate.with_gold:
        found.append(
            (
                "whether calls have the right names and arguments, so whether capability was lost",
                "the log holds no gold continuations",
            )
        )
    if "success" not in scalars:
        found.append(
            (
                "success on fixed tasks",
                "no evaluation is logged; sampled reward hangs on which tasks a step drew",
            )
        )
    if "entropy" not in scalars:
        found.append(("whether exploration died (entropy)", "the log has no entropy"))
    if "kl" not in scalars:
        found.append(("how far the policy has moved (KL)", "the log has no KL"))
    if aggregate.rollouts and not aggregate.with_groups and "reward_std" not in scalars:
        found.append(("whether groups still differ in reward", "rollouts name no group"))
    hidden = [what for fact, what in TOKEN_FACTS.items() if fact not in aggregate.facts]
    if hidden:
        found.append((", ".join(hidden), "the log has no token ids, masks or log-probs that tell"))
    if not checkpoints:
        found.append(("which checkpoint to keep", "no checkpoint was found beside the log"))
    found.append(
        (
            "whether a lost capability is gone or only obscured",
            "that needs the model: toolrl eval CHECKPOINT --counterfactual",
        )
    )
    if aggregate.width > 1:
        found.append(
            (
                "single steps",
                f"the log has very many; each row stands for {aggregate.width} of them",
            )
        )
    for what in sorted(aggregate.left_out):
        found.append((f"every {what} apart", "there are too many; the rest count as one"))
    if damaged:
        found.append((f"{damaged} damaged records", "they could not be read; see the damage list"))
    return tuple(Unjudged(what=what, why=why) for what, why in found)
