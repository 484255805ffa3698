"""The probe: one no-gradient forward pass over the bank, read at every named position.

Input: the model as it is now. Output: an :class:`Observation` with, for every bank position, the
log-prob (nats) of the right token and of every control token, the entropy, and the KL divergence
to the base, which exists whatever the training's own ``beta`` is, because the base's log-probs are
stored when the probe is made (or told to take a new base, or given one: see :class:`Base`).

Left out: sampling (the rollouts are classified by :mod:`toolrl_box.probe.states`) and judging
(that is for the detectors).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from toolrl_box.durable import reading, write_atomic, writing
from toolrl_box.errors import DataError, ModelError
from toolrl_box.probe.bank import SLOTS, Bank
from toolrl_box.runlog import RIGHT_TOKEN

# Above this vocabulary the base is kept as its most likely tokens and the rest as one bucket
# (KL over that partition bounds the true one from below); a full table would take gigabytes.
FULL_TABLE = 4096
SUPPORT = 256
ROWS_PER_PASS = 4

Floats = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Observation:
    """``right_N``, ``entropy_N``, ``kl_N`` in nats; ``control_NC`` log-probs in nats;
    ``first_calls`` as in :class:`~toolrl_box.probe.bank.Bank`."""

    slots_N: NDArray[np.int64]
    first_calls: tuple[slice, ...]
    tokens: tuple[str, ...]
    right_N: Floats
    entropy_N: Floats
    kl_N: Floats
    control_NC: Floats

    @property
    def nll(self) -> float:
        """Mean negative log-prob of the gold tokens, nats: one-sided damage."""
        return float(-self.right_N.mean())

    @property
    def kl(self) -> float:
        """Mean KL(policy ‖ base) over the bank, nats."""
        return float(self.kl_N.mean())

    @property
    def entropy(self) -> float:
        """Mean entropy of the next token over the bank, nats."""
        return float(self.entropy_N.mean())

    @property
    def p_call(self) -> float | None:
        """Probability of the exact first gold call of a dialogue, mean over those that begin with
        one (None without any): it shows a call being learned long before success does."""
        logprobs = [float(self.right_N[call].sum()) for call in self.first_calls]
        return float(np.exp(logprobs).mean()) if logprobs else None

    def summary(self, step: int) -> list[dict[str, Any]]:
        """Rows for ``probe.parquet``: one per slot and token."""
        rows = []
        for index, slot in enumerate(SLOTS):
            here = self.slots_N == index
            if not here.any():
                continue
            columns_NC = np.column_stack([self.right_N[here], self.control_NC[here]])
            means_C = columns_NC.mean(0).tolist()
            quantiles_C = np.quantile(columns_NC, (0.05, 0.5, 0.95), axis=0).T.tolist()
            for token, mean, (low, middle, high) in zip(
                (RIGHT_TOKEN, *self.tokens), means_C, quantiles_C, strict=True
            ):
                rows.append(
                    {
                        "step": step,
                        "slot": slot,
                        "token": token,
                        "mean_logprob": mean,
                        "q05": low,
                        "q50": middle,
                        "q95": high,
                        "n": int(here.sum()),
                    }
                )
        return rows

    def contexts(self) -> dict[str, Any]:
        """Columns for ``probe_contexts``: every position of the bank, in order."""
        controls = {f"control {t}": self.control_NC[:, c] for c, t in enumerate(self.tokens)}
        return {
            "slot": [SLOTS[i] for i in self.slots_N],
            RIGHT_TOKEN: self.right_N,
            "entropy": self.entropy_N,
            "kl": self.kl_N,
            **controls,
        }


@dataclass(frozen=True, slots=True)
class Base:
    """The log-probs that KL is measured from, by bank position: over the whole vocabulary, or
    over ``support_NK`` and, in the last column, all the rest."""

    table_NK: Tensor
    support_NK: Tensor | None

    def save(self, path: Path, bank: Bank) -> None:
        """Raises RunFolderError when the file cannot be written."""
        tensors = {"table": self.table_NK.cpu()}
        if self.support_NK is not None:
            tensors["support"] = self.support_NK.cpu()
        data = safetensors.torch.save(tensors, {"bank": bank.digest()})
        with writing(path):
            write_atomic(path, data)

    @classmethod
    def load(cls, path: Path, bank: Bank) -> Base:
        """Raises RunFolderError when there is no such file, DataError when it is damaged or
        belongs to another bank."""
        try:
            with reading(path), safetensors.safe_open(path, "pt") as file:
                digest = file.metadata()["bank"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise DataError(f"{path} is damaged: {error}") from error
        if digest != bank.digest():
            raise DataError(f"{path} was made with another bank: use the dialogues of its run")
        return cls(tensors["table"], tensors.get("support"))

    def divergence_N(self, now_NV: Tensor, index_N: Tensor) -> Tensor:
        """KL(now ‖ base) of some bank positions; a lower bound where the base has a support."""
        base_NK, here_NK = self.table_NK[index_N], now_NV
        if self.support_NK is not None:
            here_NK = _with_rest(now_NV.gather(1, self.support_NK[index_N]))
        return (here_NK.exp() * (here_NK - base_NK)).sum(-1)


@dataclass(frozen=True, slots=True)
class _Pass:
    """Some sequences of the bank: ``ids_BT``, where in the kept logits its positions are, and
    which positions of the bank those are (``index_N``)."""

    ids_BT: Tensor
    rows_N: Tensor
    columns_N: Tensor
    index_N: Tensor
    right_N: Tensor
    keep: int

    @classmethod
    def of(cls, ids_BT: Tensor, rows_N: Tensor, columns_N: Tensor, index_N: Tensor) -> _Pass:
        """Logits before the first scored position would be computed for nothing."""
        keep = ids_BT.shape[1] - int(columns_N.min()) + 1
        shifted_N = columns_N - 1 - (ids_BT.shape[1] - keep)
        return cls(ids_BT, rows_N, shifted_N, index_N, ids_BT[rows_N, columns_N], keep)


def check_length(model: PreTrainedModel, bank: Bank) -> None:
    """Raises ModelError when a dialogue is longer than the model's context."""
    longest = max(map(len, bank.sequences))
    limit = model.config.get_text_config().max_position_embeddings
    if longest > limit:
        raise ModelError(
            f"a dialogue of the probe's bank has {longest} tokens; the model takes {limit}"
        )


class Probe:
    """``probe()`` observes the model; the base is ``base``, or the model at construction."""

    def __init__(
        self, model: PreTrainedModel, bank: Bank, pad_id: int, base: Base | None = None
    ) -> None:
        check_length(model, bank)
        self._model = model
        self._tokens = tuple(bank.control)
        lengths = [len(ids) for ids in bank.sequences]
        device = model.device
        rows_N, columns_N = np.array(bank.rows_N), np.array(bank.columns_N)
        # Rows of like length go together: on a CPU padding would double the cost. The passes visit
        # the positions in another order than the bank; `order` leads back.
        self._passes = []
        by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
        for start in range(0, len(by_length), ROWS_PER_PASS):
            rows = by_length[start : start + ROWS_PER_PASS]
            ids_BT = torch.full((len(rows), max(lengths[row] for row in rows)), pad_id)
            places, index = [], []
            for place, row in enumerate(rows):
                # Right padding needs no mask: a causal model never looks at it.
                ids_BT[place, : lengths[row]] = torch.tensor(bank.sequences[row])
                here = np.flatnonzero(rows_N == row)
                places += [(place, int(column)) for column in columns_N[here]]
                index += here.tolist()
            place_N, column_N = torch.tensor(places, device=device).T
            index_N = torch.tensor(index, device=device)
            self._passes.append(_Pass.of(ids_BT.to(device), place_N, column_N, index_N))
        self._order = torch.cat([p.index_N for p in self._passes]).argsort()
        self._control_C = torch.tensor(list(bank.control.values()), device=device)
        self._slots_N = np.array(bank.slots_N)
        self._first_calls = bank.first_calls
        if base is None:
            self.rebase()
        else:
            support_NK = None if base.support_NK is None else base.support_NK.to(device)
            self._base = Base(base.table_NK.to(device), support_NK)

    @property
    def base(self) -> Base:
        """What KL is measured from, for another probe with the same bank."""
        return self._base

    @torch.no_grad()
    def _each(self, read: Callable[[_Pass, Tensor], T]) -> list[T]:
        """``read(pass, log-probs)`` of each pass: never the vocabulary at all positions at once,
        which would take gigabytes. The modules' modes are left as they were."""
        modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            return [read(p, self._logprobs(p)) for p in self._passes]
        finally:
            for module, training in modes:
                module.training = training

    def _logprobs(self, p: _Pass) -> Tensor:
        logits_BTV: Tensor = self._model(
            input_ids=p.ids_BT, logits_to_keep=p.keep, use_cache=False
        ).logits
        return logits_BTV[p.rows_N, p.columns_N].float().log_softmax(-1)

    def rebase(self) -> None:
        """Take the model as it is now for the base that KL is measured from."""
        tables, supports = zip(*self._each(_remember), strict=True)
        support_NK = None if supports[0] is None else torch.cat(supports)[self._order]
        self._base = Base(torch.cat(tables)[self._order], support_NK)

    def __call__(self) -> Observation:
        """One forward pass. Raises ModelError when the model gives NaN."""
        parts = zip(*self._each(self._read), strict=True)
        right_N, entropy_N, kl_N, control_NC = (torch.cat(part)[self._order] for part in parts)
        return Observation(
            slots_N=self._slots_N,
            first_calls=self._first_calls,
            tokens=self._tokens,
            right_N=_numpy(right_N),
            entropy_N=_numpy(entropy_N),
            kl_N=_numpy(kl_N),
            control_NC=_numpy(control_NC),
        )

    def _read(self, p: _Pass, now_NV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not bool(torch.isfinite(now_NV.sum())):
            raise ModelError("the model's log-probs on the probe's bank are NaN or infinite")
        return (
            now_NV.gather(1, p.right_N[:, None])[:, 0],
            -(now_NV.exp() * now_NV).sum(-1),
            self._base.divergence_N(now_NV, p.index_N),
            now_NV[:, self._control_C],
        )


def _remember(_: _Pass, base_NV: Tensor) -> tuple[Tensor, Tensor | None]:
    if base_NV.shape[1] <= FULL_TABLE:
        return base_NV, None
    top = base_NV.topk(SUPPORT, dim=-1)
    return _with_rest(top.values), top.indices


def _with_rest(logprobs_NK: Tensor) -> Tensor:
    """Append the log-prob of everything outside the support."""
    rest_N = torch.log1p(-logprobs_NK.exp().sum(-1).clamp(max=1 - 1e-6))
    return torch.cat([logprobs_NK, rest_N[:, None]], dim=1)


def _numpy(values: Tensor) -> Floats:
    result: Floats = values.cpu().numpy().astype(np.float32)
    return result
