"""A policy over any transformers causal language model: batched sampling with a kept KV cache.

Input: a model, its tokenizer, the stop tokens and the padding token; per call, token ids by row.
Output: sampled messages with the log-probs (nats) under which they were drawn, and the log-probs
of given sequences.

Each row of a session is dense in the cache (see :mod:`toolrl_box.policies.cache`), so what a row
gets depends on its neighbours only through float noise, and no token is computed twice.

Left out: top-k, top-p and other warpers (log-probs would no longer be the policy's own), flash
attention (it takes no explicit mask), and models whose layers are not plain attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from toolrl_box.errors import ConfigError, ModelError
from toolrl_box.policies.cache import RowCache
from toolrl_box.types import Generation, Sampling

# Tokens of one forward pass. On a CPU a pass should stay in its caches: with the pocket model 1024
# took 0.30 s where 8192 took 0.35 s; other devices want more at a time.
TOKENS_PER_PASS = {"cpu": 1024}
TOKENS_PER_PASS_ELSEWHERE = 16384
# Logits of one scoring pass (tokens x vocabulary): 0.25 GB in float32.
LOGITS_PER_PASS = 2**26


class HFPolicy:
    """``Policy`` over ``model``; samples from its present weights, in evaluation mode.

    A message ends with any of ``stop_ids``. ``pad_id`` only fills slots that nobody sees.
    Raises :class:`ModelError` for a model that this cache cannot serve.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        pad_id: int,
    ) -> None:
        if not stop_ids:
            raise ModelError("no stop token: a message could never end")
        layers = DynamicCache(config=model.config).layers
        sliding = [layer for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
        for layer in layers:
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise ModelError(
                    f"{type(model).__name__} keeps its past in a {type(layer).__name__};"
                    " this policy serves models that keep keys and values for every token"
                )
        attention = model.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ModelError(
                f"attention implementation '{attention}' takes no explicit mask;"
                " load the model with one of: sdpa, eager"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.pad_id = pad_id
        self.layers = len(layers)
        # Within its window, sliding attention is full attention; beyond it we refuse.
        self.window = min((layer.sliding_window for layer in sliding), default=None)
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.tokens_per_pass = TOKENS_PER_PASS.get(model.device.type, TOKENS_PER_PASS_ELSEWHERE)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` as it stands: no special token is added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` with special tokens kept."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def session(self, sampling: Sampling) -> HFSession:
        return HFSession(self, sampling)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-prob (nats, temperature 1) of each token given those before; 0.0 for the first."""
        rows = self._read(sequences, _chosen_logprobs)
        if not all(math.isfinite(value) for row in rows for value in row):
            raise ModelError(_NOT_FINITE)
        return rows

    def most_likely(self, sequences: Sequence[Sequence[int]]) -> list[list[bool]]:
        """Whether each token is the most likely one given those before; False for the first."""
        rows = self._read(sequences, _chosen_is_greatest)
        return [[value == 1.0 for value in row] for row in rows]

    def _read(
        self, sequences: Sequence[Sequence[int]], read: Callable[[Tensor, Tensor], Tensor]
    ) -> list[list[float]]:
        """``read(logits_BTV, next_BT) -> [B, T]`` over all sequences, in passes of bounded size;
        0.0 for the first token, which nothing precedes."""
        result: list[list[float]] = [[] for _ in sequences]
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        budget = min(self.tokens_per_pass, LOGITS_PER_PASS // self.vocabulary)
        with _evaluating(self.model):
            for start, stop in pairwise(_cuts([len(sequences[i]) for i in order], budget)):
                rows = order[start:stop]
                values = self._pass([sequences[i] for i in rows], read)
                for i, row in zip(rows, values, strict=True):
                    result[i] = [0.0, *row][: len(sequences[i])]
        return result

    def _pass(
        self, sequences: Sequence[Sequence[int]], read: Callable[[Tensor, Tensor], Tensor]
    ) -> list[list[float]]:
        longest = max(map(len, sequences))
        if longest < 2:
            return [[] for _ in sequences]
        padded = [list(ids) + [self.pad_id] * (longest - len(ids)) for ids in sequences]
        real = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]
        ids_BT = torch.tensor(padded, device=self.model.device)
        mask_BT = torch.tensor(real, device=self.model.device)
        output = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        values: list[list[float]] = read(output.logits[:, :-1].float(), ids_BT[:, 1:]).tolist()
        return values


def _chosen_logprobs(logits_BTV: Tensor, next_BT: Tensor) -> Tensor:
    return logits_BTV.gather(2, next_BT[..., None]).squeeze(2) - logits_BTV.logsumexp(2)


def _chosen_is_greatest(logits_BTV: Tensor, next_BT: Tensor) -> Tensor:
    return (logits_BTV.argmax(2) == next_BT).float()


_NOT_FINITE = (
    "the model's logits are NaN or infinite; its weights have diverged or its dtype overflows"
)


@dataclass
class _Row:
    """What the session remembers of a row: cached tokens and the last sampled one, not cached."""

    place: int = 0
    length: int = 0
    pending: int | None = None


class HFSession:
    """``Session`` over a :class:`HFPolicy`. The seed and a row's number fix its draws, so it may be
    sampled in any batch, on any of several processes."""

    def __init__(self, policy: HFPolicy, sampling: Sampling) -> None:
        if sampling.temperature < 0 or sampling.max_new_tokens < 1:
            raise ConfigError(
                f"temperature {sampling.temperature} and max_new_tokens {sampling.max_new_tokens}"
                " do not sample; the temperature is at least 0 and the token limit at least 1"
            )
        self._policy = policy
        self._model = policy.model
        self._sampling = sampling
        self._device = policy.model.device
        self._draws: dict[int, np.random.Generator] = {}
        self._rows: dict[int, _Row] = {}
        self._seen: set[int] = set()
        self._cache = RowCache(policy.layers, 0, 0)
        self._hidden = torch.finfo(policy.model.dtype).min

    def generate(self, appended: Mapping[int, Sequence[int]]) -> Mapping[int, Generation]:
        """Append the tokens and sample one message per named row (see ``Session.generate``).

        Raises :class:`ModelError` for logits that are not finite and for sequences that outgrow
        the model's sliding window.
        """
        if not appended:
            return {}
        with _evaluating(self._model):
            chunks = self._chunks(appended)
            logits_BV = self._prefill(chunks)
            generations = self._decode(list(chunks), logits_BV)
        for key, generation in generations.items():
            self._rows[key].length += len(generation.completion_ids) - 1
            self._rows[key].pending = generation.completion_ids[-1]
        return generations

    def _chunks(self, appended: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        """What to feed to each row, shortest first; rows that are not named are forgotten."""
        chunks: dict[int, list[int]] = {}
        rows: dict[int, _Row] = {}
        for key, ids in appended.items():
            row = self._rows.get(key, _Row())
            assert row.length or key not in self._seen, f"row {key} was finished earlier"
            rows[key] = row
            chunks[key] = ([] if row.pending is None else [row.pending]) + list(ids)
            assert chunks[key], f"row {key} begins with an empty prompt"
        self._rows = rows
        self._seen.update(rows)
        return dict(sorted(chunks.items(), key=lambda item: len(item[1])))

    def _prefill(self, chunks: Mapping[int, list[int]]) -> Tensor:
        """Feed the chunks; logits [B, V] after each row's last token.

        Rows that begin with the same prompt (the rollouts of a group) are computed once.
        """
        capacity = self._sampling.max_new_tokens + max(
            self._rows[key].length + len(ids) for key, ids in chunks.items()
        )
        window = self._policy.window
        if window is not None and capacity > window:
            raise ModelError(
                f"an episode may reach {capacity} tokens but the model's sliding window is"
                f" {window}; lower the token limits"
            )
        leaders: dict[tuple[int, ...], int] = {}
        distinct: list[int] = []
        places: list[int] = []
        for key, ids in chunks.items():
            if self._rows[key].length == 0 and tuple(ids) in leaders:
                places.append(leaders[tuple(ids)])
                continue
            if self._rows[key].length == 0:
                leaders[tuple(ids)] = len(distinct)
            places.append(len(distinct))
            distinct.append(key)
        # A new row takes over an arbitrary place: with length 0 it sees nothing of it.
        self._cache = self._taken([self._rows[key].place for key in distinct], capacity)
        lengths = [self._rows[key].length for key in distinct]
        fed = [chunks[key] for key in distinct]
        cuts = _cuts(list(map(len, fed)), self._policy.tokens_per_pass)
        logits_BV = torch.cat(
            [self._feed(fed[i:j], lengths[i:j], slice(i, j)) for i, j in pairwise(cuts)]
        )
        if len(distinct) < len(places):
            self._cache = self._taken(places, capacity)
            logits_BV = logits_BV[places]
        for place, (key, chunk) in enumerate(chunks.items()):
            self._rows[key].place = place
            self._rows[key].length += len(chunk)
        return logits_BV

    def _taken(self, places: list[int], capacity: int) -> RowCache:
        return self._cache.taken(torch.tensor(places, device=self._device), capacity)

    def _feed(self, ids: list[list[int]], lengths: list[int], rows: slice) -> Tensor:
        """Feed neighbouring rows, aligned at the right so that all of them end together."""
        longest = max(map(len, ids))
        gaps = [longest - len(row) for row in ids]
        padded = [[self._policy.pad_id] * gap + row for gap, row in zip(gaps, ids, strict=True)]
        ids_BT = torch.tensor(padded, device=self._device)
        gap_B = torch.tensor(gaps, device=self._device)
        length_B = torch.tensor(lengths, device=self._device)
        steps_T = torch.arange(longest, device=self._device)
        positions_BT = length_B[:, None] + steps_T - gap_B[:, None]
        slots_BT = positions_BT.masked_fill(steps_T < gap_B[:, None], self._cache.bin_slot)
        # Padding sees the first slot, like a first token would: finite, and nobody reads it.
        positions_BT = positions_BT.clamp_min(0)
        logits_BV = torch.empty(0)
        step = self._policy.tokens_per_pass
        for start in range(0, longest, step):  # longer only for a single row
            part = slice(start, start + step)
            at_BT = positions_BT[:, part]
            length = int(at_BT.max()) + 1
            self._cache.aim(rows, slots_BT[:, part], length)
            slots_N = torch.arange(length, device=self._device)
            mask_BTN = torch.where(slots_N <= at_BT[..., None], 0.0, self._hidden)
            mask_B1TN = mask_BTN[:, None].to(self._model.dtype)
            logits_BV = self._forward(self._cache, ids_BT[:, part], mask_B1TN, at_BT)
        return logits_BV

    def _forward(self, cache: RowCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return last_logits(self._model, cache, ids, mask, positions)

    def _steered(
        self, keys: Sequence[int], tokens: Mapping[int, Sequence[int]], logits_BV: Tensor
    ) -> Tensor:
        """The logits to sample the rows ``keys`` from, given what each message holds so far. As
        they are; see :mod:`toolrl_box.policies.steered` for a session that intervenes."""
        return logits_BV

    def _decode(self, keys: list[int], logits_BV: Tensor) -> dict[int, Generation]:
        """Sample until every row has stopped.

        A row that stopped runs along unheard (what it writes to its cache lies beyond its
        length); once fewer than half of the rows are active, those go on in a smaller cache.
        """
        limit = self._sampling.max_new_tokens
        tokens: dict[int, list[int]] = {key: [] for key in keys}
        scores: dict[int, list[float]] = {key: [] for key in keys}
        active = dict.fromkeys(keys)
        members, cache = keys, self._cache
        at_B, mask_B11N = self._decoding_state(members)
        for step in range(1, limit + 1):
            # What runs along unheard draws nothing: a row's draws hang on nothing but itself.
            u_B = [self._draw(key) if key in active else 0.0 for key in members]
            token_B, score_B = self._sample(self._steered(members, tokens, logits_BV), u_B)
            drawn = zip(members, token_B.tolist(), score_B.tolist(), strict=True)
            for key, token, score in drawn:
                if key in active:
                    tokens[key].append(token)
                    scores[key].append(score)
                    if token in self._policy.stop_ids:
                        del active[key]
            if not active or step == limit:
                break
            if 2 * len(active) < len(members):
                if cache is not self._cache:
                    self._cache.put_back(self._places(members), cache)
                kept_B = torch.tensor(
                    [i for i, key in enumerate(members) if key in active], device=self._device
                )
                members = list(active)
                cache = self._cache.taken(self._places(members), self._cache.bin_slot)
                token_B, at_B, mask_B11N = token_B[kept_B], at_B[kept_B], mask_B11N[kept_B]
            mask_B11N.scatter_(3, at_B[:, None, None, None], 0.0)
            length = int(at_B.max()) + 1
            cache.aim(slice(None), at_B[:, None], length)
            logits_BV = self._forward(
                cache, token_B[:, None], mask_B11N[..., :length], at_B[:, None]
            )
            at_B = at_B + 1
        if cache is not self._cache:
            self._cache.put_back(self._places(members), cache)
        return {
            key: Generation(tuple(tokens[key]), tuple(scores[key]), truncated=key in active)
            for key in keys
        }

    def _places(self, keys: Sequence[int]) -> Tensor:
        return torch.tensor([self._rows[key].place for key in keys], device=self._device)

    def _decoding_state(self, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The next position of each row, and the additive mask [B, 1, 1, slots] of what is past.

        The mask is made here, once per message and extended in place: rows stand at different
        positions, which the two-dimensional mask that transformers would expand cannot say.
        """
        at_B = torch.tensor([self._rows[key].length for key in keys], device=self._device)
        slots_N = torch.arange(self._cache.bin_slot, device=self._device)
        mask_BN = torch.where(slots_N < at_B[:, None], 0.0, self._hidden)
        return at_B, mask_BN[:, None, None].to(self._model.dtype)

    def _draw(self, key: int) -> float:
        """The next number in [0, 1) of the row's own stream, below 1 also as float32."""
        if key not in self._draws:
            self._draws[key] = np.random.default_rng([self._sampling.seed, key])
        return float(self._draws[key].random(dtype=np.float32))

    def _sample(self, logits_BV: Tensor, u_B: Sequence[float]) -> tuple[Tensor, Tensor]:
        """One token per row, drawn by the row's ``u`` in [0, 1), and its log-prob (nats) under the
        tempered distribution.

        At temperature 0 that distribution is a point and says nothing: the log-prob is then
        that of temperature 1.
        """
        temperature = self._sampling.temperature
        if temperature not in (0.0, 1.0):
            logits_BV = logits_BV / temperature
        total_B1 = logits_BV.logsumexp(1, keepdim=True)
        if not torch.isfinite(total_B1).all():
            raise ModelError(_NOT_FINITE)
        logprobs_BV = logits_BV - total_B1
        if temperature == 0:
            token_B1 = logprobs_BV.argmax(1, keepdim=True)
        else:
            # Inverse distribution function. u < 1 keeps u * total below total also in float32,
            # and right=True skips tokens of probability 0: both ends are safe.
            cumulative_BV = logprobs_BV.exp().cumsum(1)
            u_B1 = torch.tensor(u_B, dtype=cumulative_BV.dtype, device=self._device)[:, None]
            target_B1 = u_B1 * cumulative_BV[:, -1:]
            token_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
        return token_B1.squeeze(1), logprobs_BV.gather(1, token_B1).squeeze(1)


def last_logits(
    model: PreTrainedModel, cache: Cache, ids: Tensor, mask: Tensor, positions: Tensor
) -> Tensor:
    """Feed ``ids`` [B, T]; the float logits [B, V] after the last of them."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits_BV: Tensor = output.logits[:, -1]
    return logits_BV.float()


def _cuts(lengths: Sequence[int], budget: int) -> list[int]:
    """Borders of runs of rows (sorted by length) whose padded size stays within ``budget``."""
    cuts = [0]
    for i, length in enumerate(lengths):
        if i > cuts[-1] and (i + 1 - cuts[-1]) * length > budget:
            cuts.append(i)
    if lengths:
        cuts.append(len(lengths))
    return cuts


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards every module trains as it did before."""
    training = [module for module in model.modules() if module.training]
    model.train(False)  # like eval(), which transformers leaves untyped
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
