"""Log-probs of padded rows without computing the padding, nor a group's prompt more than once.

TRL scores a mini-batch as one rectangle: prompts padded to the longest on the left, completions on
the right. Multi-turn episodes differ so much in length that more than half of it is padding, and
the mask costs causal attention its fast path. Here the real tokens are gathered, rows of like
length go together, and a pass has a bounded number of tokens.

The rollouts of a group begin with the same prompt. With :func:`shares_prompts` each distinct
prompt is computed once and the completions attend to its keys and values; gradients flow through
them. What that gains depends on how much of the sequence is prompt (benchmarks/README.md).

Input: a model that TRL gave its fused head, and TRL's rectangle. Output: the rectangle's figures.
Left out: attention over anything but one contiguous stretch of real tokens a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Tokens of one training pass: on a CPU a pass should stay in its caches, elsewhere fill the device.
TOKENS_PER_PASS = {"cpu": 1024}
TOKENS_PER_PASS_ELSEWHERE = 65536


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether this model can attend from a completion to a prompt computed apart: plain attention
    in all layers, by an implementation that takes a mask. (Recomputed activations forbid it, too:
    there is no cache then.)"""
    layers = DynamicCache(config=model.config).layers
    plain = all(type(layer) is DynamicLayer for layer in layers)
    return plain and model.config._attn_implementation in ("sdpa", "eager")


def dense_logprobs(
    model: torch.nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    logits_to_keep: int,
    *,
    share_prompts: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (nats) of the last ``logits_to_keep`` columns, [B, logits_to_keep]
    each, 0 at padding; differentiable."""
    prompt = input_ids.shape[1] - logits_to_keep
    starts_B, lengths_B = attention_mask.argmax(1), attention_mask.sum(1)
    prefixes = None
    if share_prompts:
        # The prompt's last token predicts the completion's first, so each row computes its own.
        prefixes = _Prefixes(model, input_ids[:, : prompt - 1], attention_mask[:, : prompt - 1])
        starts_B, lengths_B = torch.full_like(starts_B, prompt - 1), lengths_B - prefixes.lengths_B
    logps = input_ids.new_zeros((len(input_ids), logits_to_keep), dtype=torch.float32)
    entropies = torch.zeros_like(logps)
    for rows in rows_per_pass(lengths_B, input_ids.device):
        width = int(lengths_B[rows].max())
        offsets_T = torch.arange(width, device=input_ids.device)
        columns_BT = (starts_B[rows, None] + offsets_T).clamp(max=input_ids.shape[1] - 1)
        real_BT = offsets_T < lengths_B[rows, None]
        dense_BT = input_ids[rows].gather(1, columns_BT)
        scored_BT = real_BT & (columns_BT >= prompt)
        # Right padding needs no mask: a causal model never looks at it.
        output = model(
            input_ids=dense_BT,
            labels=dense_BT.masked_fill(~scored_BT, -100),
            fused_lm_head=True,
            **(prefixes.before(rows, width) if prefixes else {}),
        )
        where = (rows[:, None].expand_as(columns_BT)[scored_BT], columns_BT[scored_BT] - prompt)
        shifted_BT = scored_BT[:, 1:]  # the first token has no log-prob
        logps = logps.index_put(where, output.log_probs[shifted_BT].float())
        if output.entropy is not None:  # TRL's head on a reference model computes none
            entropies = entropies.index_put(where, output.entropy[shifted_BT].float())
    return logps, entropies


class _Prefixes:
    """The distinct prefixes of a batch [B, P] (padded on the left), computed once each."""

    def __init__(self, model: torch.nn.Module, ids_BP: Tensor, mask_BP: Tensor) -> None:
        self.lengths_B = mask_BP.sum(1)
        lengths = self.lengths_B.tolist()
        distinct: dict[tuple[int, ...], int] = {}
        places = []
        for row, length in zip(ids_BP.tolist(), lengths, strict=True):
            prefix = tuple(row[len(row) - length :])
            places.append(distinct.setdefault(prefix, len(distinct)))
        self._place_B = torch.tensor(places, device=ids_BP.device)
        self._width = max(lengths)
        self._layers: list[tuple[Tensor, Tensor]] = []
        if self._width:  # else every prompt is a single token
            # Filled up on the right with a token that `before` hides.
            filled = [[*prefix, *[0] * (self._width - len(prefix))] for prefix in distinct]
            cache = DynamicCache()
            model(
                input_ids=torch.tensor(filled, device=ids_BP.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            for layer in cache.layers:
                assert isinstance(layer, DynamicLayer), "see shares_prompts"
                assert layer.keys is not None
                assert layer.values is not None
                self._layers.append((layer.keys, layer.values))

    def before(self, rows_B: Tensor, width: int) -> dict[str, object]:
        """What the model must be told to go on from these rows' prefixes for ``width`` tokens."""
        cache = DynamicCache()
        place_B = self._place_B[rows_B]
        for index, (keys, values) in enumerate(self._layers):
            cache.update(keys[place_B], values[place_B], index)
        device = rows_B.device
        length_B = self.lengths_B[rows_B]
        steps_T = torch.arange(width, device=device)
        past_BP = torch.arange(self._width, device=device) < length_B[:, None]
        seen_BTN = torch.cat(
            [
                past_BP[:, None].expand(-1, width, -1),
                (steps_T <= steps_T[:, None]).expand(len(rows_B), -1, -1),
            ],
            dim=2,
        )
        dtype = self._layers[0][0].dtype if self._layers else torch.float32
        hidden = torch.finfo(dtype).min
        return {
            "past_key_values": cache,
            "position_ids": length_B[:, None] + steps_T,
            "attention_mask": torch.where(seen_BTN, 0.0, hidden)[:, None].to(dtype),
        }


def rows_per_pass(lengths_B: Tensor, device: torch.device) -> list[Tensor]:
    """Row indices, sorted by length, cut so that a pass has a bounded number of tokens."""
    budget = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS_ELSEWHERE)
    order = lengths_B.argsort()
    passes: list[list[int]] = [[]]
    for row, length in zip(order.tolist(), lengths_B[order].tolist(), strict=True):
        if passes[-1] and (len(passes[-1]) + 1) * length > budget:
            passes.append([])
        passes[-1].append(row)
    return [torch.tensor(rows, device=device) for rows in passes]
