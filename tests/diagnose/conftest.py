"""Invented logs as records, a run of ours that really collapsed, and a browser if there is one."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.records import (
    Judged,
    LoggedMessage,
    LoggedRollout,
    Origin,
    Record,
    Scalars,
)
from toolrl_box.diagnose.session import Session
from toolrl_box.types import ToolSpec

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
WRONG = '<tool_call>\n{"name": "get_whether", "arguments": {"city": "Oslo"}}\n</tool_call>'
OPEN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os'
TEXT = "It rains in Oslo today."
TOOL = ToolSpec(
    "get_weather",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
FILE = Path("log.jsonl")
DATA = Path(__file__).parent.parent / "data"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Loaded = tuple[Diagnosis, list[Judged]]


@dataclass(frozen=True)
class Logs:
    """Makes records, and diagnoses of them."""

    call: str = CALL
    wrong: str = WRONG
    open: str = OPEN
    text: str = TEXT
    tool: ToolSpec = TOOL

    def rollout(
        self, step: int | None, text: str = CALL, reward: float | None = 1.0, **more: Any
    ) -> LoggedRollout:
        made = LoggedRollout(
            origin=Origin(FILE, (step or 0) + 1),
            id=f"r{step}",
            messages=(
                LoggedMessage("user", f"Weather in Oslo? ({step})"),
                LoggedMessage("assistant", text),
            ),
            prompt_length=1,
            step=step,
            reward=reward,
        )
        return replace(made, **more)

    def run(
        self,
        steps: int = 40,
        *,
        size: int = 8,
        broken: Callable[[int], float] = lambda step: 0.0,
        reward: Callable[[int], float | None] = lambda step: 0.5,
        bad: str = OPEN,
        **more: Any,
    ) -> Iterator[LoggedRollout]:
        """``size`` rollouts a step, of which the share ``broken`` is ``bad`` and the share
        ``reward`` earns 1."""
        for step in range(steps):
            earned = reward(step)
            for member in range(size):
                yield self.rollout(
                    step,
                    bad if member < round(broken(step) * size) else CALL,
                    None if earned is None else float(member >= size - round(earned * size)),
                    id=f"{step}/{member}",
                    group=f"{step}/{member // 4}",
                    category=("base", "miss_func")[member % 2],
                    **more,
                )

    def scalars(self, steps: int = 40, **figures: Callable[[int], float]) -> Iterator[Scalars]:
        for step in range(steps):
            values: Mapping[str, float] = {name: make(step) for name, make in figures.items()}
            yield Scalars(Origin(Path("metrics.csv"), step + 2), step, values)

    def diagnose(self, *records: Iterable[Record]) -> Diagnosis:
        return self.session(*records).diagnosis("test")

    def session(self, *records: Iterable[Record]) -> Session:
        session = Session()
        for part in records:
            session.add(part)
        return session

    def chat(self, rollouts: Iterable[LoggedRollout]) -> Sequence[dict[str, Any]]:
        """As lines of chat JSONL."""
        return [
            {
                "messages": [{"role": m.role, "content": m.text} for m in rollout.messages],
                "id": rollout.id,
                "step": rollout.step,
                "reward": rollout.reward,
                "group": rollout.group,
                "category": rollout.category,
            }
            for rollout in rollouts
        ]


@pytest.fixture(scope="session")
def logs() -> Logs:
    return Logs()


@pytest.fixture(scope="session")
def collapsed() -> Loaded:
    """A diagnosis and some of its messages, from ``tests/data/make_collapsed.py``."""
    spec = importlib.util.spec_from_file_location("make_collapsed", DATA / "make_collapsed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load: Callable[[Path], Loaded] = module.load
    return load(DATA / "collapsed.json")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; playwright is only its driver and downloads nothing."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium` runs these tests, too")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found)
        yield started
        started.close()
