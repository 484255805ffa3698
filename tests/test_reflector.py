"""Reflections in real runs: filed with their rollouts, resumed exactly, written by a real judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from toolrl_box import checkpoints, lab, reflector
from toolrl_box.config import RunConfig, load
from toolrl_box.errors import JudgeError
from toolrl_box.formats import FORMATS
from toolrl_box.models import load_model
from toolrl_box.policies.hf import HFPolicy
from toolrl_box.runlog import RunLog
from toolrl_box.types import Message, Sampling

# Update steps: 1-2 RL, 3-5 SFT, 6-7 RL, 8-10 SFT, 11-12 RL.
SETS = (
    *("scheme.name=reflection", "scheme.lengths=[2, 2, 2]", "scheme.updates=3"),
    *("scheme.trajectories=3", "steps=6", "rewards={format_share: 1}"),
    *("grpo.prompts_per_step=2", "grpo.group_size=4", "sft.batch_size=4"),
    *("env.train_tasks=8", "env.eval_tasks=4", "probe.episodes=4"),
    *("eval.every=6", "checkpoint.every=2"),
    *("rollout.max_messages=4", "rollout.max_new_tokens=12"),
)


@pytest.fixture(scope="module")
def config(tiny_base: Path) -> Callable[..., RunConfig]:
    """An untrained model: every rollout fails."""

    def make(*pairs: str) -> RunConfig:
        return load(sets=[*SETS, f"model={tiny_base}", *pairs])

    return make


@pytest.fixture(scope="module")
def whole(config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbed; the analyst writes."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert lab.start(config(), run_dir) == "done"
    return run_dir


def stop_after(step: int) -> lab.Watch:
    seen: list[int] = []
    return lab.Watch(
        show=lambda line: seen.append(line.progress.step),
        should_stop=lambda: bool(seen) and seen[-1] >= step - 1,
    )


@dataclass
class Judges:
    """A local endpoint: ``answer(messages)`` gives a text, None an error 500."""

    url: str
    answer: Callable[[list[dict[str, str]]], str | None]
    asked: list[list[dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Judges]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = "yes"
            if body["max_tokens"] > 1:
                state.asked.append(body["messages"])
                answer = state.answer(body["messages"])
                if answer is None:
                    self.send_error(500)
                    return
                text = answer
            message = {"role": "assistant", "content": text}
            value = {
                "choices": [{"message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5},
            }
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    # A judge whose answers never repeat: asked twice, it would be seen.
    state = Judges(url, lambda messages: f"Cause {len(state.asked)}.\n---\nNear.")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def judged_by(server: Judges, *pairs: str) -> list[str]:
    judge = {"base_url": server.url, "model": "m", "max_retries": 0}
    return [*(f"reflection.judge.{key}={value}" for key, value in judge.items()), *pairs]


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [e for e in RunLog.open(run_dir).journal() if e["event"] == "reflections"]


def assert_same_run(first: Path, second: Path) -> None:
    assert (first / "journal.jsonl").read_bytes() == (second / "journal.jsonl").read_bytes()
    mine, theirs = RunLog.open(first), RunLog.open(second)
    assert mine.reflections() == theirs.reflections()
    frames = [view.metrics().filter(regex="^(?!seconds_)") for view in (mine, theirs)]
    pd.testing.assert_frame_equal(*frames, rtol=0)
    weights = [
        (checkpoints.path_of(path, 12) / "model.safetensors").read_bytes()
        for path in (first, second)
    ]
    assert weights[0] == weights[1]


def test_texts_are_filed_with_the_rollouts_that_they_are_about(whole: Path) -> None:
    view = RunLog.open(whole)
    rows = view.reflections()
    assert [row["step"] for row in rows] == [3] * 3 + [8] * 3
    assert {row["author"] for row in rows} == {"analyst"}
    for row in rows:
        rollouts = view.rollouts(row["rollout_step"]).set_index(["group", "member"])
        rollout = rollouts.loc[(row["group"], row["member"])]
        assert rollout["task_id"] == row["task_id"]
        assert rollout["reward"] < 1.0
        user = next(m["content"] for m in rollout["messages"] if m["role"] == "user")
        assert row["dialogues"][0]["question"].startswith(f"user: {user}\n1. ")
        assert len(row["dialogues"]) == 2
    lessons = [e["detail"]["tasks"] for e in view.journal() if e.get("kind") == "sft"]
    names = [name for name in lessons[0] if name.startswith("reflection-")]
    assert len(names) == 6
    first = rows[0]
    place = f"{first['rollout_step']}-{first['group']}-{first['member']}"
    assert names[:2] == [f"reflection-{place}-0", f"reflection-{place}-1"]
    assert [(e["step"], e["texts"], e["authors"], e["cost"]) for e in events(whole)] == [
        (3, 6, {"analyst": 3}, None),
        (8, 6, {"analyst": 3}, None),
    ]
    assert not (whole / "judge.jsonl").exists()


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_run_stopped_anywhere_is_resumed_exactly(
    config: Callable[..., RunConfig], whole: Path, tmp_path: Path, step: int
) -> None:
    """At the end of a phase, before its texts exist, and within the SFT that they teach."""
    assert lab.start(config(), tmp_path / "run", stop_after(step)) == "stopped"
    assert checkpoints.complete_steps(tmp_path / "run")[-1] == step
    assert lab.resume(tmp_path / "run") == "done"
    assert_same_run(tmp_path / "run", whole)


def test_texts_of_a_judge_are_read_back_and_not_asked_for_again(
    config: Callable[..., RunConfig], tmp_path: Path, server: Judges
) -> None:
    run_dir = tmp_path / "run"
    assert lab.start(config(*judged_by(server)), run_dir, stop_after(4)) == "stopped"
    (run_dir / "judge.jsonl").unlink()  # the texts of a phase that goes on need no ledger
    before = RunLog.open(run_dir).reflections()
    assert lab.resume(run_dir) == "done"
    assert RunLog.open(run_dir).reflections()[:3] == before
    assert len(server.asked) == 6


def test_after_a_kill_nothing_that_was_answered_is_asked_again(
    config: Callable[..., RunConfig], tmp_path: Path, server: Judges
) -> None:
    """The folder as a kill leaves it: the last checkpoint is older than the texts."""
    run_dir = tmp_path / "run"
    settings = config(*judged_by(server), "checkpoint.every=100", "eval.every=100")

    class Killed(Exception):
        pass

    def die(line: Any) -> None:
        if line.progress.step == 4:
            raise Killed

    with pytest.raises(Killed):
        lab.start(settings, run_dir, lab.Watch(show=die))
    answers = [row["dialogues"] for row in RunLog.open(run_dir).reflections()]
    assert len(server.asked) == len(answers) == 3
    assert checkpoints.complete_steps(run_dir) == [0]
    assert lab.resume(run_dir) == "done"
    assert len(server.asked) == 6
    assert [row["dialogues"] for row in RunLog.open(run_dir).reflections()][:3] == answers


def test_a_judges_texts_tokens_and_costs_are_kept(
    config: Callable[..., RunConfig], tmp_path: Path, server: Judges
) -> None:
    prices = ("reflection.judge.prompt_price=1", "reflection.judge.completion_price=2")
    assert lab.start(config(*judged_by(server, *prices)), tmp_path / "run") == "done"
    rows = RunLog.open(tmp_path / "run").reflections()
    assert [row["author"] for row in rows] == ["judge"] * 6
    answers = [d["answer"] for row in rows for d in row["dialogues"]]
    assert answers == [text for n in range(1, 7) for text in (f"Cause {n}.", "Near.")]
    event = events(tmp_path / "run")[0]
    assert (event["prompt_tokens"], event["completion_tokens"], event["failures"]) == (30, 15, 0)
    assert event["cost"] == pytest.approx(0.06)
    assert "What went wrong?" in server.asked[0][1]["content"]


@pytest.mark.parametrize(("choice", "texts"), [("analyst", 6), ("skip", 4)])
def test_a_judge_that_fails_is_replaced_as_configured(
    config: Callable[..., RunConfig], tmp_path: Path, server: Judges, choice: str, texts: int
) -> None:
    server.answer = lambda messages: None if len(server.asked) == 2 else "Cause.\n---\nNear."
    settings = config(*judged_by(server, f"reflection.on_failure={choice}"))
    assert lab.start(settings, tmp_path / "run") == "done"
    rows = RunLog.open(tmp_path / "run").reflections()
    assert [row["author"] for row in rows[:3]] == ["judge", choice, "judge"]
    assert "HTTP 500" in rows[1]["error"]
    event = events(tmp_path / "run")[0]
    assert (event["texts"], event["failures"]) == (texts, 1)


def test_a_judge_that_stays_silent_is_not_asked_for_the_whole_phase(
    config: Callable[..., RunConfig],
    tmp_path: Path,
    server: Judges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reflector, "GIVE_UP", 2)
    server.answer = lambda messages: None
    settings = config(*judged_by(server, "reflection.on_failure=analyst"))
    assert lab.start(settings, tmp_path / "run") == "done"
    rows, phases = RunLog.open(tmp_path / "run").reflections(), events(tmp_path / "run")
    assert len(rows) > 2 * len(phases)
    assert len(server.asked) == 2 * len(phases)
    assert sum("not asked" in row["error"] for row in rows) == len(rows) - 2 * len(phases)


def test_a_judge_that_fails_ends_the_run_in_one_line_and_it_can_go_on(
    config: Callable[..., RunConfig], tmp_path: Path, server: Judges
) -> None:
    run_dir, answer = tmp_path / "run", server.answer
    server.answer = lambda messages: None if len(server.asked) == 2 else answer(messages)
    with pytest.raises(JudgeError, match=r"HTTP 500.*\(attempts: 1\); the run can be resumed"):
        lab.start(config(*judged_by(server)), run_dir)
    server.answer = answer
    assert lab.resume(run_dir) == "done"
    assert len(server.asked) == 7  # the first answer was kept, the second was asked for again


@pytest.mark.parametrize("choice", ["error", "analyst"])
def test_a_judge_that_is_down_is_known_before_the_run_starts(
    config: Callable[..., RunConfig], tmp_path: Path, choice: str
) -> None:
    down = Judges("http://127.0.0.1:9/v1", lambda messages: None)
    settings = config(*judged_by(down, f"reflection.on_failure={choice}"))
    if choice == "error":
        with pytest.raises(JudgeError, match=r"judge 'm' at http://127\.0\.0\.1:9/v1: cannot be"):
            lab.start(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    notes: list[str] = []
    assert lab.start(settings, tmp_path / "run", lab.Watch(note=notes.append)) == "done"
    assert "cannot be reached" in notes[0]
    assert {row["author"] for row in RunLog.open(tmp_path / "run").reflections()} == {"analyst"}


def test_the_pocket_model_itself_may_be_the_judge(
    config: Callable[..., RunConfig], tmp_path: Path, server: Judges
) -> None:
    """A real model behind a real server. It knows nothing of judging: what it says is kept, and
    what it does not say the analyst does."""
    loaded = load_model("pocket", "fp32")
    pad = int(loaded.tokenizer.pad_token_id)
    policy = HFPolicy(loaded.model, loaded.tokenizer, loaded.stop_ids, pad)

    def generate(messages: list[dict[str, str]]) -> str:
        chat = [Message(m["role"], m["content"]) for m in messages]  # type: ignore[arg-type]
        prompt = policy.encode(FORMATS["hermes"].render(chat, generation_prompt=True))
        (said,) = (
            policy.session(Sampling(1.0, 48, len(server.asked))).generate({0: prompt}).values()
        )
        return policy.decode(said.completion_ids).replace("<|im_end|>", "")

    server.answer = generate
    settings = config(*judged_by(server, "reflection.on_failure=analyst"))
    assert lab.start(settings, tmp_path / "run") == "done"
    rows = RunLog.open(tmp_path / "run").reflections()
    assert len(rows) == len(server.asked) == 6
    assert {row["author"] for row in rows} <= {"judge", "analyst"}
    assert any(row["author"] == "judge" for row in rows)
    texts = [d["answer"] for row in rows for d in row["dialogues"]]
    assert all(text and not set("<>") & set(text) for text in texts)
