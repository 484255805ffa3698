"""A KV cache whose rows grow independently: every row is dense and left-aligned, slot == position.

Input: the keys and values that a transformers model hands to ``Cache.update``, written to the
slots last named with :meth:`RowCache.aim`. Output: views ``[b, heads, length, head_dim]``.

Why not ``DynamicCache``: it appends the same number of slots to all rows, so that a batch of
dialogues of different lengths fills up with holes that have to be masked for ever, and it copies
the whole cache for every token (``torch.cat``). Here a slot at or beyond a row's length holds
rubbish that the causal rule ``slot <= position`` hides, until the row grows and overwrites it.

Left out: sliding windows, linear attention and quantised caches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _Aim:
    """Where the next forward pass writes; one object shared by all layers."""

    rows: slice
    slots: Tensor
    length: int

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch = batch
        self.capacity = capacity


class RowLayer(CacheLayerMixin):
    """``keys`` and ``values`` [batch, heads, capacity + 1, head_dim] of one layer.

    The last slot is the bin: padding is written there, and no view ever reaches it.
    """

    is_sliding = False

    def __init__(self, aim: _Aim) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers
        self._aim = aim

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not ``empty``: a hidden slot has weight 0, and 0 * NaN would still be NaN.
        def zeros(like: Tensor) -> Tensor:
            shape = (self._aim.batch, like.shape[1], self._aim.capacity + 1, like.shape[3])
            return like.new_zeros(shape)

        self.keys, self.values = zeros(key_states), zeros(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        aim = self._aim
        index_B1T1 = aim.slots[:, None, :, None]
        views = []
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            assert buffer is not None
            rows = buffer[aim.rows]
            rows.scatter_(2, index_B1T1.expand_as(states), states)
            views.append(rows[:, :, : aim.length])
        return views[0], views[1]

    def get_seq_length(self) -> int:
        return self._aim.length if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._aim.length, 0

    def get_max_length(self) -> int:
        return self._aim.capacity


class RowCache(Cache):
    """Cache of ``batch`` rows with ``capacity`` slots each, for a model of ``layers`` layers."""

    def __init__(self, layers: int, batch: int, capacity: int) -> None:
        self._aim = _Aim(batch, capacity)
        self._layers = [RowLayer(self._aim) for _ in range(layers)]
        super().__init__(layers=list(self._layers))

    @property
    def bin_slot(self) -> int:
        """The slot for padding."""
        return self._aim.capacity

    def aim(self, rows: slice, slots_BT: Tensor, length: int) -> None:
        """The next pass covers ``rows``, writes to ``slots_BT`` and sees the first ``length``."""
        assert length <= self._aim.capacity, (length, self._aim.capacity)
        self._aim.rows, self._aim.slots, self._aim.length = rows, slots_BT, length

    def part(self, layers: slice) -> Cache:
        """Some layers as a cache of their own: two models may share rows, aims and copies."""
        return Cache(layers=list(self._layers[layers]))

    def taken(self, index_B: Tensor, capacity: int) -> RowCache:
        """A copy of the rows ``index_B`` in that order, with room for ``capacity`` slots."""
        new = RowCache(len(self._layers), len(index_B), capacity)
        kept = min(self._aim.capacity, capacity)
        for old_layer, layer in zip(self._layers, new._layers, strict=True):
            if old_layer.keys is None or old_layer.values is None:
                continue
            layer.lazy_initialization(old_layer.keys, old_layer.values)
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys[:, :, :kept] = old_layer.keys[index_B, :, :kept]
            layer.values[:, :, :kept] = old_layer.values[index_B, :, :kept]
        return new

    def put_back(self, index_B: Tensor, taken: RowCache) -> None:
        """Write the rows of ``taken`` (see :meth:`taken`, same capacity) back where they were."""
        for layer, changed in zip(self._layers, taken._layers, strict=True):
            if changed.keys is None or changed.values is None:
                continue
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys[index_B] = changed.keys
            layer.values[index_B] = changed.values
