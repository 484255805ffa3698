"""A policy that samples with vLLM and takes its weights from the model in training.

Input: an :class:`Engine` (see ``vllm_engines``), the model's own policy in transformers, and some
sequences. Output: messages and log-probs under the weights that the model has when a session
begins. Whether those weights have arrived is not believed but measured: after the first sync, and
again after the first one that brought other weights, the engine's log-probs of the given sequences
are compared with the model's.

Token sequences grow by row and are sent whole with every message; vLLM's prefix cache saves the
work of computing them again. Nothing is detokenised or tokenised here.

Left out: starting vLLM (``vllm_engines``, ``trl_engine``), and the mismatch that is left when the
weights agree and the kernels do not (``mismatch``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.seeds import derive
from toolrl_box.types import Generation, Policy, Sampling

TOLERANCES = {"fp32": 0.01, "bf16": 0.5}
"""The greatest difference (nats) of a token's log-prob that other kernels may explain. Weights that
did not arrive make differences of many nats somewhere."""


@dataclass(frozen=True, slots=True)
class Request:
    """One message to sample: all tokens before it, and its own seed."""

    prompt_ids: tuple[int, ...]
    seed: int


class Engine(Protocol):
    """vLLM, wherever it runs."""

    def sync(self) -> None:
        """Take over the model's present weights and forget what was cached under other ones."""

    def generate(
        self, requests: Sequence[Request], temperature: float, max_tokens: int
    ) -> list[tuple[list[int], list[float]]]:
        """For each request its tokens, a stop token included, and their log-probs (nats) under
        the tempered distribution; at temperature 0 under that of temperature 1."""

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """As :meth:`toolrl_box.types.Policy.logprobs`."""


class VLLMPolicy:
    """``Policy`` over ``engine``, which follows the model of ``trained``.

    ``checked``: the sequences of the comparison, two tokens each at least. ``tolerance`` in nats.
    """

    def __init__(
        self,
        engine: Engine,
        trained: Policy,
        stop_ids: Sequence[int],
        checked: Sequence[Sequence[int]],
        tolerance: float,
    ) -> None:
        assert checked, "nothing to compare"
        self.engine = engine
        self.stop_ids = frozenset(stop_ids)
        self._trained = trained
        self._checked = [list(ids) for ids in checked]
        self._tolerance = tolerance
        self._first: list[list[float]] | None = None
        self._moved = False

    def session(self, sampling: Sampling) -> VLLMSession:
        """Sync, then sample under those weights. Raises :class:`ModelError` when the engine does
        not score as the model does."""
        if sampling.temperature < 0 or sampling.max_new_tokens < 1:
            raise ConfigError(
                f"temperature {sampling.temperature} and max_new_tokens {sampling.max_new_tokens}"
                " do not sample; the temperature is at least 0 and the token limit at least 1"
            )
        self._sync()
        return VLLMSession(self.engine, sampling, self.stop_ids)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-prob (nats, temperature 1) of each token given those before; 0.0 for the first."""
        self._sync()
        return _finite(self.engine.logprobs(sequences))

    def _sync(self) -> None:
        self.engine.sync()
        if self._moved:
            return
        # The engine may have been started with the weights that the first sync brings: one that
        # brings nothing shows only when they have changed.
        expected = self._trained.logprobs(self._checked)
        if self._first is None:
            self._first = expected
        elif expected == self._first:
            return
        else:
            self._moved = True
        largest, place = _largest_difference(expected, self.engine.logprobs(self._checked))
        if not largest <= self._tolerance:  # NaN included
            row, at = place
            raise ModelError(
                f"vLLM does not compute what the model in training does: after a weight sync their "
                f"log-probs of the same token differ by up to {largest:.3g} nats (sequence {row}, "
                f"token {at}), allowed are {self._tolerance:g}; the weights did not arrive, or the "
                "versions of vllm and transformers read this model differently (for plain rounding "
                "raise rollout.vllm.tolerance)"
            )


def _largest_difference(
    expected: Sequence[Sequence[float]], actual: Sequence[Sequence[float]]
) -> tuple[float, tuple[int, int]]:
    """Over all tokens, and where: sequence and token. NaN is the largest of all."""
    differences = [
        (abs(a - b), (row, at))
        for row, pair in enumerate(zip(expected, actual, strict=True))
        for at, (a, b) in enumerate(zip(*pair, strict=True))
    ]
    return max(differences, key=lambda entry: (math.isnan(entry[0]), entry[0]))


class VLLMSession:
    """``Session`` over an engine. The session's seed, a row's number and its count of messages fix
    the row's draws, so neighbours change a row by rounding only."""

    def __init__(self, engine: Engine, sampling: Sampling, stop_ids: frozenset[int]) -> None:
        self._engine = engine
        self._sampling = sampling
        self._stop_ids = stop_ids
        self._rows: dict[int, tuple[int, ...]] = {}
        self._messages: dict[int, int] = {}

    def generate(self, appended: Mapping[int, Sequence[int]]) -> Mapping[int, Generation]:
        """See ``Session.generate``. Raises :class:`ModelError` for log-probs that are not
        finite."""
        if not appended:
            return {}
        rows: dict[int, tuple[int, ...]] = {}
        for key, ids in appended.items():
            assert key in self._rows or key not in self._messages, f"row {key} was finished earlier"
            rows[key] = (*self._rows.get(key, ()), *ids)
            assert rows[key], f"row {key} begins with an empty prompt"
            self._messages[key] = self._messages.get(key, 0) + 1
        seed = self._sampling.seed
        written = self._engine.generate(
            [Request(ids, derive(seed, key, self._messages[key])) for key, ids in rows.items()],
            self._sampling.temperature,
            self._sampling.max_new_tokens,
        )
        _finite([logprobs for _, logprobs in written])
        self._rows = {
            key: (*before, *ids)
            for (key, before), (ids, _) in zip(rows.items(), written, strict=True)
        }
        return {
            key: Generation(tuple(ids), tuple(logprobs), truncated=ids[-1] not in self._stop_ids)
            for key, (ids, logprobs) in zip(rows, written, strict=True)
        }


def _finite(rows: list[list[float]]) -> list[list[float]]:
    if not all(math.isfinite(value) for row in rows for value in row):
        raise ModelError(
            "vLLM's log-probs are NaN or infinite; the weights have diverged or the dtype overflows"
        )
    return rows
