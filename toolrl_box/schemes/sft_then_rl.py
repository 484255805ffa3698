"""SFT first, then RL: the usual cold start (arXiv 2606.26027, table 1, rows "SFT then RL").

``data`` chooses between the paper's two arms: gold of the tasks that RL will train on (its
"SFT(BFCL) then RL"), or of as many tasks with other tools and other words (its "SFT(ToolACE) then
RL"), which teach the form of a call and nothing of what the tasks are about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from toolrl_box.errors import unknown
from toolrl_box.phases import RL, Context, Phases
from toolrl_box.schedule import Lesson

Data = Literal["in_domain", "other_domain"]


@dataclass(frozen=True, slots=True)
class SFTThenRL:
    """``updates`` supervised updates (or, when that is 0, ``epochs``) at ``sft_lr`` on gold
    dialogues of ``data``, then RL. With both 0 this is RL alone, bit for bit."""

    updates: int = 20
    epochs: int = 0
    sft_lr: float | None = None
    data: Data = "in_domain"

    def __post_init__(self) -> None:
        if self.data not in get_args(Data):
            raise unknown("data of scheme sft_then_rl", self.data, get_args(Data))
        self._lesson()

    def phases(self, ctx: Context) -> Phases:
        in_domain = self.data == "in_domain"
        sft = self._lesson().on(tuple(ctx.tasks.values()) if in_domain else ctx.other_tasks())
        if sft is not None:
            yield sft
        yield RL(ctx.steps)

    def _lesson(self) -> Lesson:
        return Lesson(self.epochs, self.updates, self.sft_lr)
