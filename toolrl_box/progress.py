"""What the user sees of a run: a live bar on a terminal, elsewhere one plain line per step.

Input: one :class:`toolrl_box.recorder.Line` per step. Output: text on the console, and
silence from the libraries below (:func:`silence`).

Left out: figures over time (``report``).
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleRenderable, RichCast
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from toolrl_box.config import RunConfig
from toolrl_box.types import Alarm

if TYPE_CHECKING:  # seconds of imports
    from toolrl_box.recorder import Line
    from toolrl_box.train import Progress as Counters

KEPT = ("reward", "state_healthy_call", "state_healthy_response", "eval_greedy", "eval_sampled")


class Display:
    """Shows a run; a context manager, so that the terminal is left as it was found."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: _Bar | None = None
        self._steps = 0
        self._started: tuple[float, int] | None = None
        self._latest: dict[str, float] = {}
        self._alarms = 0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, config: RunConfig) -> None:
        """The run's settings are known; its first step comes soon."""
        self._steps = config.steps
        self.note(
            f"{config.scheme.name} on {config.env.name} ({config.format}), model "
            f"{config.model.name}, {config.steps} steps, seed {config.seed}"
        )
        if self._console.is_terminal:
            self._bar = _Bar(self._console)
            self._bar.start()

    def note(self, text: str) -> None:
        self._print(text)

    def show(self, line: Line) -> None:
        """A step is done."""
        now, counters = time.monotonic(), line.progress
        if self._started is None:  # the first line of a session costs what loading costs
            self._started = (now, counters.rl_step)
        began, first = self._started
        self._latest |= {k: line.row[k] for k in KEPT if not math.isnan(line.row.get(k, math.nan))}
        self._alarms += len(line.alarms)
        done = counters.rl_step - first
        left = (now - began) / done * (self._steps - counters.rl_step) if done > 0 else None
        figures = self._figures()
        if self._bar is not None:
            self._bar.show(counters, self._steps, figures, now - began, left)
        else:
            head = f"step {counters.step:>4}  {counters.phase_kind or 'start':<5}"
            tail = "" if left is None else f"  left {clock(left)}"
            rl = f"  rl {counters.rl_step}/{self._steps}"
            self._print(f"{head}{rl}  {figures}  elapsed {clock(now - began)}{tail}")
        for alarm in line.alarms:
            self._print(describe(alarm))

    def _figures(self) -> str:
        latest = self._latest
        parts = []
        if "reward" in latest:
            parts.append(f"reward {latest['reward']:.2f}")
        if "eval_greedy" in latest:
            parts.append(
                f"success {latest['eval_greedy']:.2f} greedy {latest['eval_sampled']:.2f} sampled"
            )
        if "state_healthy_call" in latest:
            share = latest["state_healthy_call"] + latest["state_healthy_response"]
            parts.append(f"healthy {share:.0%}")
        if self._alarms:
            parts.append(f"alarms {self._alarms}")
        return "  ".join(parts)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Bar(Progress):
    """Steps and times in one row, figures in the next."""

    def __init__(self, console: Console) -> None:
        self._figures = Text()
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[times]}"),
            console=console,
        )
        self._row = self.add_task("loading", total=None, times="")

    def get_renderables(self) -> Iterable[ConsoleRenderable | RichCast | str]:
        yield self.make_tasks_table(self.tasks)
        yield self._figures

    def show(
        self, counters: Counters, steps: int, figures: str, elapsed: float, left: float | None
    ) -> None:
        self._figures = Text(figures)
        # Supervised steps come on top of the budget, so the bar counts those of RL; a run that
        # has only supervised steps so far moves without an end.
        only_sft = counters.step > 0 and counters.rl_step == 0
        times = clock(elapsed) + ("" if left is None else f", {clock(left)} left")
        self.update(
            self._row,
            description=f"step {counters.step}, RL {counters.rl_step}/{steps}"
            + (f" ({counters.phase_kind})" if counters.phase_kind else ""),
            total=None if only_sft else steps,
            completed=counters.rl_step,
            times=times,
        )


def describe(alarm: Alarm) -> str:
    """One line: who, when, how far."""
    return (
        f"ALARM ({alarm.level}) at step {alarm.step}: {alarm.detector} = {alarm.value:.3g}, "
        f"threshold {alarm.threshold:.3g}"
    )


def clock(seconds: float) -> str:
    """``1:02`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def silence() -> None:
    """Keep the libraries' own bars, announcements and deprecations off the console.

    Seconds of imports. Errors and our own lines are not touched.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\b")
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()


class UpdateBar:
    """Progress of a plain training loop: a live bar, or a line per twentieth."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(console=console, disable=not console.is_terminal)
        self._row = self._bar.add_task("training", total=None)

    def __enter__(self) -> UpdateBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int, loss: float) -> None:
        """``done`` of ``total`` updates; ``loss`` in nats."""
        text = f"loss {loss:.3f}" if done < total else "measuring"
        self._bar.update(self._row, completed=done, total=total, description=text)
        if not self._console.is_terminal and done % max(1, total // 20) == 0:
            self._console.print(f"update {done}/{total}  {text}", markup=False, highlight=False)
