"""The judge against a real HTTP server that misbehaves in every way we could think of."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from toolrl_box.config import JudgeSettings, load
from toolrl_box.errors import ConfigError, JudgeError
from toolrl_box.hinter import Hinter
from toolrl_box.judge import Answer, Judge, Ledger
from toolrl_box.prompting import hint
from toolrl_box.testing import echo_task

KEY = "sk-very-secret-0123456789"
QUESTION = [{"role": "user", "content": "What went wrong?"}]


def completion(text: str | None, finish: str = "stop") -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    }


@dataclass
class Reply:
    """What the server does: status, body (JSON unless bytes), headers, and how long it waits."""

    body: Any = field(default_factory=lambda: completion("It was late."))
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drip: float = 0.0


@dataclass
class Server:
    """Answers from a list, the last one for ever; keeps what it was asked."""

    url: str
    replies: list[Reply] = field(default_factory=lambda: [Reply()])
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            state.asked.append(json.loads(self.rfile.read(length)))
            state.headers.append(dict(self.headers))
            state.paths.append(self.path)
            reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            time.sleep(reply.wait)
            raw = isinstance(reply.body, bytes)
            data = reply.body if raw else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for i in range(len(data)) if reply.drip else ():
                    self.wfile.write(data[i : i + 1])
                    self.wfile.flush()
                    time.sleep(reply.drip)
                if not reply.drip:
                    self.wfile.write(data)
            except OSError:
                pass  # the client gave up, as it should

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


Make = Callable[..., Judge]


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def judge(server: Server, pauses: list[float]) -> Make:
    def make(**settings: Any) -> Judge:
        values = {"base_url": server.url, "model": "m", "timeout": 5.0, **settings}
        return Judge(JudgeSettings(**values), {"SOME_KEY": KEY}, pauses.append)

    return make


def test_an_answer_comes_with_its_tokens_and_its_cost(server: Server, judge: Make) -> None:
    answer = judge(prompt_price=0.5, completion_price=2.0, max_tokens=77).ask(QUESTION)
    assert answer == Answer("It was late.", None, 100, 20, pytest.approx(0.09), 1)
    (asked,) = server.asked
    assert asked == {"model": "m", "messages": QUESTION, "max_tokens": 77, "temperature": 0}
    assert server.paths == ["/v1/chat/completions"]
    assert "Authorization" not in server.headers[0]


def test_without_prices_there_is_no_cost(judge: Make) -> None:
    assert judge().ask(QUESTION).cost is None


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: Server, judge: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server.replies = [Reply(f"bad key {KEY}".encode(), status=401)]
    asks = judge(api_key_env="SOME_KEY")
    answer = asks.ask(QUESTION)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert answer.error is not None
    assert "HTTP 401 bad key ***" in answer.error
    assert answer.attempts == 1  # asking again would not help
    for text in (repr(asks), asks.digest(QUESTION), str(server.asked), caplog.text, str(answer)):
        assert KEY not in text
    with pytest.raises(JudgeError) as raised:
        asks.check()
    assert KEY not in str(raised.value)


def test_half_a_key_at_the_end_of_a_long_answer_is_no_leak(server: Server, judge: Make) -> None:
    server.replies = [Reply(("x" * 182 + KEY).encode(), status=400)]
    answer = judge(api_key_env="SOME_KEY").ask(QUESTION)
    assert answer.error is not None
    assert KEY[:6] not in answer.error


def test_a_redirect_is_not_followed_with_the_key(server: Server, judge: Make) -> None:
    server.replies = [Reply(b"", status=302, headers={"Location": server.url + "/elsewhere"})]
    answer = judge(api_key_env="SOME_KEY").ask(QUESTION)
    assert answer.error is not None
    assert "HTTP 302" in answer.error
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"oops", status=500), "HTTP 500 oops"),
        (Reply(b"{not json"), "the answer is not JSON"),
        (Reply(b"\xff\xfe"), "the answer is not JSON"),
        (Reply([1]), "the answer is not a JSON object"),
        (Reply({}), "the answer has no choices"),
        (Reply({"choices": []}), "the answer has no choices"),
        (Reply({"choices": ["x"]}), "the answer has no choices"),
        (Reply({"choices": [{"message": None}]}), "the answer is empty"),
        (Reply(completion(None)), "the answer is empty"),
        (Reply(completion(" \n")), "the answer is empty"),
        (Reply(completion("<think>hm</think>\n")), "the answer is empty"),
        (Reply(b"12345", headers={"Content-Length": "99"}), "broke off (IncompleteRead)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_answer_is_asked_for_again_and_then_given_up(
    server: Server, judge: Make, pauses: list[float], reply: Reply, reason: str
) -> None:
    server.replies = [reply]
    answer = judge(max_retries=2).ask(QUESTION)
    assert answer.text is None
    assert answer.error == f"judge 'm' at {server.url}: {reason} (attempts: 3)"
    assert (answer.attempts, len(server.asked), pauses) == (3, 3, [1.0, 2.0])
    server.replies = [reply, Reply()]
    assert judge().ask(QUESTION).text == "It was late."


def test_tokens_of_useless_answers_are_counted_too(server: Server, judge: Make) -> None:
    server.replies = [Reply(completion("")), Reply()]
    answer = judge(completion_price=1.0).ask(QUESTION)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.attempts) == (200, 40, 2)
    assert answer.cost == pytest.approx(0.04)


def test_usage_that_makes_no_sense_counts_nothing(server: Server, judge: Make) -> None:
    server.replies = [Reply({**completion("x"), "usage": {"prompt_tokens": "many"}})]
    assert judge().ask(QUESTION) == Answer("x", None, 0, 0, None, 1)


def test_a_cut_off_answer_names_the_setting(server: Server, judge: Make) -> None:
    server.replies = [Reply(completion("It was", "length"))]
    answer = judge().ask(QUESTION)
    assert answer.error is not None
    assert "cut off: raise reflection.judge.max_tokens (attempts: 1)" in answer.error


def test_thinking_is_no_part_of_the_answer(server: Server, judge: Make) -> None:
    server.replies = [Reply(completion("<think>a\nb</think>\nIt was late."))]
    assert judge().ask(QUESTION).text == "It was late."


@pytest.mark.parametrize("reply", [Reply(wait=0.6), Reply(drip=0.05)], ids=["silent", "dripping"])
def test_a_slow_answer_ends_in_time(server: Server, judge: Make, reply: Reply) -> None:
    server.replies = [reply]
    start = time.monotonic()
    answer = judge(timeout=0.2, max_retries=1).ask(QUESTION)
    assert time.monotonic() - start < 2.0
    assert answer.error is not None
    assert "no answer within 0.2 s (attempts: 2)" in answer.error


def test_a_server_that_asks_for_patience_gets_it(
    server: Server, judge: Make, pauses: list[float]
) -> None:
    patience = Reply(b"", status=429, headers={"Retry-After": "7"})
    server.replies = [patience, Reply(b"", status=429, headers={"Retry-After": "99999"}), Reply()]
    assert judge().ask(QUESTION).text == "It was late."
    assert pauses == [7.0, 30.0]


def test_an_endless_answer_is_refused(server: Server, judge: Make) -> None:
    server.replies = [Reply(b"x" * (2 << 20))]
    answer = judge().ask(QUESTION)
    assert answer.error is not None
    assert "longer than 1048576 bytes (attempts: 1)" in answer.error


def test_nobody_listening_is_one_clear_line(judge: Make) -> None:
    down = judge(base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(JudgeError, match=r"judge 'm' at http://127.0.0.1:9/v1: cannot be reached"):
        down.check()
    assert "cannot be reached" in str(down.ask(QUESTION).error)


def test_the_check_asks_for_one_token(server: Server, judge: Make) -> None:
    server.replies = [Reply(completion("", "length"))]
    judge().check()
    assert server.asked[0]["max_tokens"] == 1


def test_a_key_that_is_not_there_is_named_before_anything_is_asked(judge: Make) -> None:
    with pytest.raises(ConfigError, match="environment variable OTHER_KEY, named by reflection"):
        judge(api_key_env="OTHER_KEY")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["reflection.judge.base_url=http://x/v1"], r"reflection.judge.model is required"),
        (
            ["reflection.judge.modle=m"],
            r"unknown key 'reflection.judge.modle'; did you mean 'model'",
        ),
        (["reflection.on_failure=cry"], r"reflection.on_failure = 'cry'"),
        (
            ["reflection.judge.model=m", "reflection.judge.base_url=ftp://x"],
            r"base_url must be like",
        ),
        (["reflection.judge.model=m", "reflection.judge.api_key_env=sk-1"], r"not the key itself"),
        (["reflection.judge.model=m", "reflection.judge.base_url=http://u:pw@x/v1"], r"base_url"),
    ],
)
def test_settings_that_cannot_be_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load(sets=pairs)
    assert not any(secret in str(raised.value) for secret in ("u:pw", "sk-1"))


# --- the ledger -----------------------------------------------------------------------------


def test_the_ledger_gives_back_what_was_answered(tmp_path: Path) -> None:
    path, answer = tmp_path / "judge.jsonl", Answer("a\nb", None, 1, 2, 0.5, 1)
    Ledger(path).add("q", answer)
    assert Ledger(path).get("q") == answer
    assert Ledger(path).get("other") is None


def test_a_line_cut_short_by_a_kill_costs_only_itself(tmp_path: Path) -> None:
    path, answer = tmp_path / "judge.jsonl", Answer("a", None, 1, 2, None, 1)
    Ledger(path).add("q", answer)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    ledger = Ledger(path)
    assert path.read_bytes() == whole
    ledger.add("r", answer)
    assert Ledger(path).get("r") == answer


def test_questions_differ_by_model_and_text_not_by_address(judge: Make) -> None:
    digest = judge().digest(QUESTION)
    assert judge(base_url="http://elsewhere/v1").digest(QUESTION) == digest
    assert judge(model="n").digest(QUESTION) != digest
    assert judge().digest([{"role": "user", "content": "x"}]) != digest


# --- hints by an LLM ------------------------------------------------------------------------


def test_a_hint_is_asked_once_a_task_also_after_the_run_was_resumed(
    server: Server, judge: Make, tmp_path: Path
) -> None:
    server.replies = [Reply(completion("Echo the word tea."))]
    task = echo_task(["tea"])
    hinter = Hinter(judge(), tmp_path, "error")
    assert hinter(task) == hinter(task) == "Hint: Echo the word tea."
    assert Hinter(judge(), tmp_path, "error")(task) == "Hint: Echo the word tea."
    assert len(server.asked) == 1
    (_, user) = server.asked[0]["messages"]
    assert "Echo tea" in user["content"]
    assert 'echo(text="tea")' in user["content"]


def test_a_judge_that_fails_ends_the_run_or_leaves_the_gold_hint(
    server: Server, judge: Make, tmp_path: Path
) -> None:
    server.replies = [Reply({}, status=400)]
    task = echo_task(["tea"])
    with pytest.raises(JudgeError, match=r"HTTP 400.*reflection\.on_failure"):
        Hinter(judge(), tmp_path, "error")(task)
    assert Hinter(judge(), tmp_path, "analyst")(task) == hint(task)
