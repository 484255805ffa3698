"""The processes of one run: who is who, and how they tell each other things.

Job: join the group that ``torchrun`` started; alone without one. Input: torchrun's environment
variables. Output: a :class:`Team` that shares plain Python objects between its processes, over
gloo, whatever carries the gradients. Objects travel as torch.distributed sends them, pickled,
between processes of the same run and nowhere else.

Left out: what is shared (``lockstep``) and how gradients travel (accelerate's business).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from toolrl_box.errors import ConfigError, TeamError

PATIENCE = timedelta(hours=12)
"""How long a process waits for another, which may be evaluating a large model."""


@dataclass(frozen=True, slots=True)
class Team:
    """``rank`` of ``size`` processes; rank 0 drives and writes. ``kind`` is accelerate's name of
    the way of working together."""

    rank: int = 0
    size: int = 1
    kind: str = "NO"
    device: str = "cpu"
    _objects: Any = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, value: Any = None) -> Any:
        """The main process's ``value``, on every process."""
        if self.size == 1:
            return value
        box = [value]
        with together(self):
            distributed.broadcast_object_list(box, src=0, group=self._objects)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, by rank, on the main one; nothing elsewhere."""
        if self.size == 1:
            return [value]
        boxes: list[Any] | None = [None] * self.size if self.main else None
        with together(self):
            distributed.gather_object(value, boxes, dst=0, group=self._objects)
        return boxes or []

    def leave(self) -> None:
        """Take leave of the others, who must do the same."""
        if self.size > 1:
            distributed.destroy_process_group()


ALONE = Team()


def join(expected: int | None = None) -> Team:
    """This process's place. Raises ConfigError unless there are ``expected`` processes (None: as
    many as there are)."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if expected is not None and expected != started:
        raise ConfigError(
            f"processes = {expected}, but {started} {'was' if started == 1 else 'were'} started; "
            f"start them with: torchrun --nproc_per_node {expected} -m toolrl_box.cli run … "
            "(`accelerate launch --cpu` starts one, whatever it is told)"
        )
    on_cpu = not torch.cuda.is_available()
    if started == 1:
        return Team(device="cpu" if on_cpu else "cuda")
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    assert state.num_processes == started, "accelerate made another group than torchrun's"
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    kind = state.distributed_type.value
    return Team(state.process_index, started, kind, str(state.device), group)


@contextmanager
def together(team: Team) -> Iterator[None]:
    """Within, the loss of another process raises TeamError. torch has a type for it with NCCL
    only; with gloo it is told by the message."""
    try:
        yield
    except RuntimeError as error:
        signs = ("Connection closed by peer", "Connection reset", "gloo")
        if not isinstance(error, distributed.DistError) and not any(s in str(error) for s in signs):
            raise
        raise TeamError(
            f"process {team.rank} of {team.size} has lost contact with another one; a run that "
            "had begun can be resumed with as many processes (toolrl run --resume RUN_DIR)"
        ) from error
