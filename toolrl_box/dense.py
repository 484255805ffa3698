"""Log-probs of padded rows without computing the padding.

TRL scores a mini-batch as one rectangle: prompts padded to the longest on the left, completions on
the right. Multi-turn episodes differ so much in length that more than half of it is padding, and
the mask costs causal attention its fast path. Here the real tokens are gathered, rows of like
length go together, and a pass has a bounded number of tokens.

Input: a model that TRL gave its fused head, and TRL's rectangle. Output: the rectangle's figures.
Left out: attention over anything but one contiguous stretch of real tokens a row.
"""

from __future__ import annotations

import torch

# Tokens of one training pass: on a CPU a pass should stay in its caches, elsewhere fill the device.
TOKENS_PER_PASS = {"cpu": 2048}
TOKENS_PER_PASS_ELSEWHERE = 65536


def dense_logprobs(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    logits_to_keep: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies (nats) of the last ``logits_to_keep`` columns, [B, logits_to_keep]
    each, 0 at padding; differentiable."""
    prompt = input_ids.shape[1] - logits_to_keep
    starts_B, lengths_B = attention_mask.argmax(1), attention_mask.sum(1)
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
        )
        where = (rows[:, None].expand_as(columns_BT)[scored_BT], columns_BT[scored_BT] - prompt)
        shifted_BT = scored_BT[:, 1:]  # the first token has no log-prob
        logps = logps.index_put(where, output.log_probs[shifted_BT].float())
        if output.entropy is not None:  # TRL's head on a reference model computes none
            entropies = entropies.index_put(where, output.entropy[shifted_BT].float())
    return logps, entropies


def rows_per_pass(lengths_B: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """Row indices, sorted by length, cut so that a pass has a bounded number of tokens."""
    budget = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS_ELSEWHERE)
    order = lengths_B.argsort()
    passes: list[list[int]] = [[]]
    for row, length in zip(order.tolist(), lengths_B[order].tolist(), strict=True):
        if passes[-1] and (len(passes[-1]) + 1) * length > budget:
            passes.append([])
        passes[-1].append(row)
    return [torch.tensor(rows, device=device) for rows in passes]
