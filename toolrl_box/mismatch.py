"""How far the sampler's distribution is from the trainer's under the same weights.

Two engines round differently, and what is sampled by one and optimised by the other is off-policy
by that much. With p the trainer's and q the sampler's probability of a sampled token, w = p / q.

Input: log-probs [B, T] (nats) of both, and which tokens the policy sampled. Output: figures for the
log, and weights that correct for the mismatch (truncated importance sampling, "token_truncate" in
TRL). Left out: TRL's other modes, which mask tokens or whole sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mismatch(trainer_BT: Tensor, sampler_BT: Tensor, sampled_BT: Tensor) -> dict[str, float]:
    """Figures over the tokens where ``sampled_BT`` (bool) holds; none when there is no such token.

    ``mismatch_ratio``: mean w over tokens, 1 in expectation. ``mismatch_kl``: KL(q || p) in nats a
    token by the k3 estimator, mean of w - 1 - log w (Schulman 2020, "Approximating KL divergence").
    ``mismatch_ess``: effective sample size of the rollouts as a share of them,
    (sum W)^2 / (n sum W^2) with W the product of a rollout's w; 1 without a mismatch.
    """
    if not sampled_BT.any():
        return {}
    log_w_BT = torch.where(sampled_BT, trainer_BT - sampler_BT, 0.0).double()
    log_w_N = log_w_BT[sampled_BT]
    w_N = log_w_N.exp()
    log_W_B = log_w_BT.sum(1)[sampled_BT.any(1)]
    W_B = (log_W_B - log_W_B.max()).exp()  # the figure does not depend on their scale
    ess = W_B.sum() ** 2 / (len(W_B) * (W_B**2).sum())
    return {
        "mismatch_ratio": float(w_N.mean()),
        "mismatch_kl": float((w_N - 1 - log_w_N).mean()),
        "mismatch_ess": float(ess),
    }


def truncated_weights(
    trainer_BT: Tensor, sampler_BT: Tensor, sampled_BT: Tensor, greatest: float
) -> Tensor:
    """min(w, ``greatest``) [B, T]; 1 for every token that was not sampled."""
    log_w_BT = torch.where(sampled_BT, trainer_BT - sampler_BT, 0.0)
    return log_w_BT.exp().clamp(max=greatest)
