"""A policy whose next token is interfered with while it is drawn: counterfactual decoding.

Input: an :class:`~toolrl_box.policies.hf.HFPolicy` and one :class:`Steering`. Output: a ``Policy``
that the rollout loop plays like any other. Three interventions, each of which leaves alone what
the model knows (which tool, which arguments, which words):

* ``reference``  the control tokens' log-probs are another model's (:func:`with_control_of`);
* ``grammar``    tokens with which no sound message goes on get no probability;
* ``forced``     a message of which it was said beforehand begins with given tokens.

The reference reads the same tokens as the model, and both keep their past in one cache, so that
no token is computed twice. Log-probs of what was drawn are those of the steered distribution.

Left out: interventions on hidden states, and a reference with another tokenizer (ModelError).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toolrl_box.errors import ModelError
from toolrl_box.policies.cache import RowCache
from toolrl_box.policies.hf import HFPolicy, HFSession, last_logits
from toolrl_box.types import Generation, Grammar, Sampling


def with_control_of(logits_BV: Tensor, reference_BV: Tensor, control_C: Tensor) -> Tensor:
    """Log-probs [B, V] in which the tokens ``control_C`` are the reference's.

    With p the model's distribution, q the reference's under the same context and C the control
    tokens, the result r is

        r(c) = q(c)                                   for c in C
        r(v) = p(v) · (1 - q(C)) / (1 - p(C))         for every other v

    So the reference alone decides whether a control token comes and which, and the model alone
    what comes otherwise; r sums to 1. With C empty r is p; with q = p it is p as well.
    """
    model_BV = logits_BV.log_softmax(1)
    reference_BV = reference_BV.log_softmax(1)
    rest_V = torch.ones(logits_BV.shape[1], dtype=torch.bool, device=logits_BV.device)
    rest_V[control_C] = False
    # Both masses of the rest as sums, not as 1 minus a sum: p(C) may be 1 to the last bit.
    scale_B = reference_BV[:, rest_V].logsumexp(1) - model_BV[:, rest_V].logsumexp(1)
    return torch.where(rest_V, model_BV + scale_B[:, None], reference_BV)


class TokenGrammar:
    """A grammar of characters as one of tokens: ``pieces[token]`` is the token's own text.

    A token is possible when every character of its text is; a stop token where a message may end;
    a token without text (one that the tokenizer does not know) never.
    """

    def __init__(self, grammar: Grammar, pieces: Sequence[str], stop_ids: Collection[int]) -> None:
        self.start = grammar.start
        self._grammar = grammar
        self._pieces = pieces
        self._stop_ids = frozenset(stop_ids)
        self._refused: dict[Hashable, Tensor] = {}

    def after(self, state: Hashable, token: int) -> Hashable | None:
        """The state after ``token``; None when it is impossible or ends the message."""
        if token in self._stop_ids or not self._pieces[token]:
            return None
        following: Hashable | None = state
        for char in self._pieces[token]:
            following = self._grammar.step(following, char)
            if following is None:
                return None
        return following

    def refused(self, state: Hashable) -> Tensor:
        """[V], True for tokens that are impossible in ``state``."""
        if state not in self._refused:
            possible = [self.after(state, token) is not None for token in range(len(self._pieces))]
            refused_V = ~torch.tensor(possible)
            refused_V[list(self._stop_ids)] = not self._grammar.may_end(state)
            assert not refused_V.all(), f"nothing can follow {state}"
            self._refused[state] = refused_V
        return self._refused[state]


@dataclass(frozen=True, slots=True)
class Forced:
    """Which messages begin with ``prefix``: ``due[row][n]`` says whether the row's message ``n``
    does; rows are numbered as the rollout numbers its tasks."""

    prefix: tuple[int, ...]
    due: tuple[tuple[bool, ...], ...]

    def token(self, row: int, message: int, place: int) -> int | None:
        """The token that must stand at ``place``, or None."""
        due = self.due[row]
        forced = message < len(due) and due[message] and place < len(self.prefix)
        return self.prefix[place] if forced else None


@dataclass(frozen=True, slots=True)
class Steering:
    """The interventions, all optional. ``control``: ids of the control tokens, for ``reference``.
    A forced token is drawn whatever the others say."""

    reference: HFPolicy | None = None
    control: tuple[int, ...] = ()
    grammar: TokenGrammar | None = None
    forced: Forced | None = None


@dataclass(frozen=True, slots=True)
class SteeredPolicy:
    """``Policy`` over ``policy`` with interventions; it scores given sequences without them.

    Raises :class:`ModelError` for a reference with another vocabulary or sliding window.
    """

    policy: HFPolicy
    steering: Steering = field(default_factory=Steering)

    def __post_init__(self) -> None:
        if self.steering.reference is not None:
            check_same_vocabulary(self.policy, self.steering.reference)

    def session(self, sampling: Sampling) -> SteeredSession:
        return SteeredSession(self.policy, sampling, self.steering)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.policy.logprobs(sequences)


def check_same_vocabulary(policy: HFPolicy, reference: HFPolicy) -> None:
    """Raises ModelError unless both models mean the same by every token."""
    same = policy.tokenizer.get_vocab() == reference.tokenizer.get_vocab()
    if not same or policy.vocabulary != reference.vocabulary:
        raise ModelError(
            f"the reference has another vocabulary ({reference.vocabulary} logits,"
            f" {len(reference.tokenizer)} tokens) than the checkpoint ({policy.vocabulary} logits,"
            f" {len(policy.tokenizer)} tokens); take its own base or an earlier checkpoint"
        )
    if policy.window != reference.window:
        raise ModelError(
            f"the reference's sliding window is {reference.window}, the checkpoint's"
            f" {policy.window}; they must agree"
        )


class SteeredSession(HFSession):
    """The session of a :class:`SteeredPolicy`."""

    def __init__(self, policy: HFPolicy, sampling: Sampling, steering: Steering) -> None:
        super().__init__(policy, sampling)
        self._steering = steering
        self._own = slice(policy.layers)
        self._control_C = torch.tensor(steering.control, dtype=torch.long, device=self._device)
        if steering.reference is not None:
            # The layers of both models in one cache: rows are copied and thinned out together.
            self._cache = RowCache(policy.layers + steering.reference.layers, 0, 0)
        self._messages: Counter[int] = Counter()
        self._states: dict[int, Hashable | None] = {}

    def generate(self, appended: Mapping[int, Sequence[int]]) -> Mapping[int, Generation]:
        grammar = self._steering.grammar
        self._states = dict.fromkeys(appended, None if grammar is None else grammar.start)
        generations = super().generate(appended)
        self._messages.update(generations.keys())
        return generations

    def _forward(self, cache: RowCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        own = cache.part(self._own)
        logits_BV = last_logits(self._model, own, ids, mask, positions)
        reference = self._steering.reference
        if reference is None:
            return logits_BV
        other = cache.part(slice(self._policy.layers, None))
        reference_BV = last_logits(reference.model, other, ids, mask, positions)
        return with_control_of(logits_BV, reference_BV, self._control_C)

    def _steered(
        self, keys: Sequence[int], tokens: Mapping[int, Sequence[int]], logits_BV: Tensor
    ) -> Tensor:
        refused_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        for place, key in enumerate(keys):
            self._refuse(key, tokens[key], refused_BV[place])
        return logits_BV.masked_fill(refused_BV, -math.inf)

    def _refuse(self, key: int, said: Sequence[int], refused_V: Tensor) -> None:
        """Mark what the row may not say next. A row that has stopped runs along unheard: it has no
        state any more and may say anything."""
        grammar, forced = self._steering.grammar, self._steering.forced
        state = self._states[key]
        if grammar is not None and state is not None:
            if said:
                state = self._states[key] = grammar.after(state, said[-1])
            if state is not None:
                refused_V |= grammar.refused(state).to(refused_V.device)
        token = None if forced is None else forced.token(key, self._messages[key], len(said))
        if token is not None:
            refused_V.fill_(True)
            refused_V[token] = False
