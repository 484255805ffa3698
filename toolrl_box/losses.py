"""What supervision adds to the GRPO loss: shaped expert tokens and a supervised term.

Input: log-probs, or a model with TRL's fused head and gold samples. Output: tensors to train on.
Left out: the GRPO loss itself, which is TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolrl_box.signals import Weighting
from toolrl_box.types import Sample


def shaped(logps: Tensor, gamma: float) -> Tensor:
    """log(p / (p + gamma)) for log-probs ``logps`` (nats) of any shape.

    In place of log p, with old log-probs of 0, GRPO's ratio becomes p / (p + gamma): LUFFY's
    policy shaping for off-policy tokens, steeper where the policy finds the expert unlikely. It
    is below 1, so a clip from above never touches it.
    """
    return logps - torch.log(logps.exp() + gamma)


def supervised_loss(
    model: torch.nn.Module, samples: Sequence[Sample], weighting: Weighting, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Weighted mean NLL of the samples' learned tokens, and the plain one (both nats a token).

    ``uncertainty`` weighs each token by p (1 - p), ``entropy`` all of them by exp(-H); neither
    weight carries a gradient.
    """
    device = next(model.parameters()).device
    width = max(len(sample.token_ids) for sample in samples)
    ids_BT = torch.full((len(samples), width), pad_id, device=device)
    labels_BT = torch.full((len(samples), width), -100, device=device)
    for row, sample in enumerate(samples):
        ids = torch.tensor(sample.token_ids, device=device)
        mask = torch.tensor(sample.loss_mask, device=device)
        ids_BT[row, : len(ids)] = ids
        labels_BT[row, : len(ids)] = ids.masked_fill(~mask, -100)
    # Right padding needs no mask: a causal model never looks at it.
    output = model(input_ids=ids_BT, labels=labels_BT, fused_lm_head=True)
    learned_BT = labels_BT[:, 1:] != -100
    logps_N, entropy_N = output.log_probs[learned_BT], output.entropy[learned_BT]
    nll = -logps_N.mean()
    if weighting == "uncertainty":
        p_N = logps_N.detach().exp()
        return -(p_N * (1 - p_N) * logps_N).mean(), nll.detach()
    if weighting == "entropy":
        return torch.exp(-entropy_N.detach().mean()) * nll, nll.detach()
    return nll, nll.detach()
