"""Shaped expert tokens and the supervised term against sums done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from toolrl_box.losses import shaped, supervised_loss
from toolrl_box.signals import SFTTerm, Weighting
from toolrl_box.types import Sample


def test_the_ratio_of_a_shaped_token_is_p_over_p_plus_gamma_and_so_is_its_gradient() -> None:
    logps = torch.tensor([-0.01, -1.0, -5.0], requires_grad=True)
    ratio = shaped(logps, 0.1).exp()
    p = logps.detach().exp()
    torch.testing.assert_close(ratio, p / (p + 0.1))
    ratio.sum().backward()
    # d/dp of p / (p + g) is g / (p + g)^2, and dp/dlogp = p.
    torch.testing.assert_close(logps.grad, p * 0.1 / (p + 0.1) ** 2)
    assert float(ratio.detach().max()) < 1


def test_shaping_pulls_hardest_where_the_plain_ratio_hardly_pulls() -> None:
    logps = torch.tensor([math.log(0.05), math.log(0.9)], requires_grad=True)
    shaped(logps, 0.1).exp().sum().backward()
    assert logps.grad is not None
    per_p = logps.grad / logps.detach().exp()
    assert per_p[0] > 30 * per_p[1]


@pytest.fixture
def fused(tiny_model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    add_fused_lm_head(tiny_model, outputs=("log_probs", "entropy"))
    return tiny_model


SAMPLES = [
    Sample((5, 6, 7, 8, 9), (False, False, True, True, False), 2),
    Sample((5, 9, 4), (False, True, True), 1),
]


def by_hand(model: Qwen2ForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the learned tokens."""
    logps, entropies = [], []
    for sample in SAMPLES:
        scores = model(input_ids=torch.tensor([sample.token_ids])).logits[0].log_softmax(-1)
        for at, (token, learned) in enumerate(zip(sample.token_ids, sample.loss_mask, strict=True)):
            if learned:
                logps.append(scores[at - 1, token])
                entropies.append(-(scores[at - 1].exp() * scores[at - 1]).sum())
    return torch.stack(logps), torch.stack(entropies)


@pytest.mark.parametrize("weighting", ["constant", "decayed", "entropy", "uncertainty"])
def test_the_supervised_term(fused: Qwen2ForCausalLM, weighting: Weighting) -> None:
    logps, entropies = by_hand(fused)
    p = logps.detach().exp()
    expected = {
        "constant": -logps.mean(),
        "decayed": -logps.mean(),
        "entropy": -logps.mean() * torch.exp(-entropies.detach().mean()),
        "uncertainty": -(p * (1 - p) * logps).mean(),
    }[weighting]
    loss, nll = supervised_loss(fused, SAMPLES, weighting, 0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, -logps.mean().detach())
    gradients = []
    for value in (loss, expected):
        fused.zero_grad()
        value.backward()
        assert fused.lm_head.weight.grad is not None
        gradients.append(fused.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_a_decayed_weight_goes_in_a_line_from_weight_to_final_and_stays() -> None:
    term = SFTTerm(1.0, "decayed", 0.2, 5)
    assert [round(term.at(step), 6) for step in (0, 1, 2, 4, 9)] == [1.0, 0.8, 0.6, 0.2, 0.2]
    assert SFTTerm(0.3).at(40) == 0.3
    assert SFTTerm(0.3, "decayed", 0.1, 1).at(0) == 0.3
