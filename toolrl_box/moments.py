"""AdamW's moments as flat tensors, so that checkpoints are safetensors and nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def moments(optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def restore(optimizer: torch.optim.AdamW, tensors: Mapping[str, torch.Tensor]) -> None:
    full = optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**full, "state": state})
