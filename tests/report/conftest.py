"""Invented runs, written through the run log itself and reported once for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolrl_box.report import write_report
from toolrl_box.report.figures import SLOT_TITLES
from toolrl_box.runlog import RIGHT_TOKEN, RunLog

HOSTILE = "<script>alert(1)</script> [x](http://evil) | `a` *b*"
TOKENS = ("<tool_call>", "</tool_call>", "<|im_end|>", "<tool_response>")


def messages(rng: np.random.Generator, broken: float, text: str) -> list[dict[str, Any]]:
    """One episode of a user question and two assistant messages."""
    call = '<tool_call>\n{"name": "find_file", "arguments": {"name": "report.txt"}}\n</tool_call>'
    debris = call + ' {"arguments": the<tool_call>'
    healthy = {"kind": "", "start": 0, "end": 0}
    user = {"role": "user", "content": f"Where is report.txt? {text}", "state": "", **healthy}
    good = {"role": "assistant", "content": call, "state": "healthy_call", **healthy}
    answer = {"role": "assistant", "content": f"It is in /home. {text}", **healthy}
    answer["state"] = "healthy_response"
    if rng.random() < broken:
        good = {**good, "content": debris, "state": "text_pollution", "kind": "debris_after_call"}
        good |= {"start": len(call), "end": len(debris)}
    if rng.random() < broken / 2:
        answer |= {"content": "<tool_call>", "state": "collapsed", "kind": "bare_open_tag"}
        answer |= {"start": 0, "end": len("<tool_call>")}
    return [user, good, answer]


def build(path: Path, *, collapse: bool, steps: int = 60, text: str = "") -> Path:
    """RL with an SFT phase of 4 steps after every 10 RL steps when healthy; RL only otherwise."""
    rng = np.random.default_rng(0)
    log = RunLog.create(path, {"scheme": "rl" if collapse else "interleaved", "note": text}, {})
    phase, kind, rl_step = -1, "", 0
    for step in range(steps + 1):
        now = "rl" if collapse or (step - 1) % 14 < 10 else "sft"
        if step and now != kind:
            if kind:
                log.event("phase_end", index=phase, outcome={})
            phase, kind = phase + 1, now
            log.event("phase_start", index=phase, kind=kind, step=step, detail=text or "10 steps")
        rl_step += step > 0 and kind == "rl"
        bad = 1 / (1 + np.exp(-(step - 38) / 2)) if collapse else 0.02
        level = (0.15 + 0.25 * min(step / 30, 1)) * (1 - 0.97 * bad)
        row: dict[str, Any] = {"step": step, "rl_step": rl_step, "phase": phase, "phase_kind": kind}
        row |= {"bank_nll": 0.3 + bad + 0.02 * rng.random(), "bank_kl": step / 100 + bad}
        if step % 5 == 0:
            row |= {"eval_greedy": level * 1.3, "eval_sampled": level}
        if kind == "rl":
            row |= {
                "reward": max(0.0, level + 0.05 * rng.standard_normal()),
                "entropy": 0.5 - bad / 3,
            }
            row |= {"grad_norm": 0.4 + 2 * bad * rng.random()}
            row |= {
                "state_healthy_call": 0.5 * (1 - bad),
                "state_healthy_response": 0.45 * (1 - bad),
            }
            row |= {"state_text_pollution": 0.05 + 0.6 * bad, "state_collapsed": 0.35 * bad}
        log.metrics(row)
        for slot in SLOT_TITLES:
            right = -0.02 - bad * (3.0 if slot in ("after_call", "end_text") else 0.4)
            wrong = {token: -9.0 + index + 8 * bad for index, token in enumerate(TOKENS)}
            log.probe(
                {"step": step, "slot": slot, "token": token, "mean_logprob": value}
                | {"q05": value - 1, "q50": value, "q95": min(value + 1, 0.0), "n": 20}
                for token, value in {RIGHT_TOKEN: right, **wrong}.items()
            )
        if kind == "rl":
            rows = [
                {"step": step, "group": 0, "member": member, "task_id": text or "files-3"}
                | {"category": "base", "source": "policy", "reward": 1.0, "success": 1.0}
                | {"reward_parts": {}, "stop_reason": "done", "error": None}
                | {"messages": messages(rng, bad, text), "token_ids": [], "loss_mask": []}
                | {"logprobs": []}
                for member in range(8)
            ]
            log.rollouts(step, rows)
        if step and step % 10 == 0:
            log.event("checkpoint", step=step, reason="every 10 steps")
        if step == 30:
            log.event("best", step=30, score=level)
    if collapse:
        alarm = {"step": 33, "value": 1.62, "threshold": 1.5, "level": "act"}
        log.event("alarm", detector=text or "damage", **alarm)
    log.event("phase_end", index=phase, outcome={})
    log.event("finish", steps=steps)
    log.commit()
    log.close()
    return path


def reported(path: Path) -> Path:
    write_report(path)
    return path


@pytest.fixture(scope="session")
def collapsed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(build(tmp_path_factory.mktemp("runs") / "collapsed", collapse=True))


@pytest.fixture(scope="session")
def healthy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(build(tmp_path_factory.mktemp("runs") / "healthy", collapse=False))


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collapse in which every text that comes from data tries to break the page."""
    return reported(build(tmp_path_factory.mktemp("runs") / "hostile", collapse=True, text=HOSTILE))
