"""An LLM judge behind any OpenAI-compatible endpoint, asked over plain HTTP.

Job: send chat messages, get a text. Input: :class:`~toolrl_box.config.JudgeSettings`. Output: an
:class:`Answer` with its token counts and cost; :class:`JudgeError` with one line when there is
none. Time-outs, refusals and bad answers are retried with growing pauses.

The key is read from the environment and goes into one header: never into a message, a log or a
redirect. :class:`Ledger` keeps what was answered, so that no run pays twice when it is resumed.

Left out: streaming, several requests at a time, and any SDK.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from toolrl_box.config import JudgeSettings
from toolrl_box.durable import append_line, reading
from toolrl_box.errors import ConfigError, JudgeError

MAX_BYTES = 1 << 20
MAX_PAUSE = 30.0
RETRIED = (408, 409, 429, 500, 502, 503, 504, 529)
"""HTTP statuses that another attempt may cure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one question cost and gave; ``text`` or ``error``. Tokens are those that the server
    reported over all attempts; ``cost`` follows the configured prices, None without."""

    text: str | None
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    attempts: int


class _Failure(Exception):
    """One attempt that gave no answer; ``pause`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, *, again: bool, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.pause = again, pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would carry the key to wherever a server points."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Judge:
    """Raises ConfigError when the named environment variable is not set."""

    def __init__(
        self,
        settings: JudgeSettings,
        environ: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._key = ""
        if settings.api_key_env:
            self._key = environ.get(settings.api_key_env, "")
            if not self._key:
                raise ConfigError(
                    f"environment variable {settings.api_key_env}, named by "
                    "reflection.judge.api_key_env, is not set"
                )
        self._opener = urllib.request.build_opener(_NoRedirect)

    def check(self) -> None:
        """One word, one attempt: JudgeError when the endpoint is down or refuses."""
        try:
            self._post([{"role": "user", "content": "Hello"}], max_tokens=1)
        except _Failure as failure:
            raise JudgeError(self._about(str(failure))) from None

    def ask(self, messages: Sequence[Mapping[str, str]]) -> Answer:
        """The answer, or the reason why there is none, after at most ``1 + max_retries`` attempts;
        never raises for what a server does."""
        answer = Answer(None, None, 0, 0, None, 0)
        while True:
            answer = replace(answer, attempts=answer.attempts + 1)
            try:
                body = self._post(messages, self._settings.max_tokens)
                prompt, completion = _usage(body)
                answer = replace(
                    answer,
                    prompt_tokens=answer.prompt_tokens + prompt,
                    completion_tokens=answer.completion_tokens + completion,
                )
                return self._priced(replace(answer, text=_text(body)))
            except _Failure as failure:
                if not failure.again or answer.attempts > self._settings.max_retries:
                    reason = f"{failure} (attempts: {answer.attempts})"
                    return self._priced(replace(answer, error=self._about(reason)))
                self._sleep(min(MAX_PAUSE, max(failure.pause, 0.5 * 2**answer.attempts)))

    def digest(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Names a question: model and text, whatever the address of the server."""
        asked = [self._settings.model, self._settings.max_tokens, [dict(m) for m in messages]]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _priced(self, answer: Answer) -> Answer:
        prices = (self._settings.prompt_price, self._settings.completion_price)
        tokens = (answer.prompt_tokens, answer.completion_tokens)
        if prices == (None, None):
            return answer
        cost = sum((price or 0.0) * count for price, count in zip(prices, tokens, strict=True))
        return replace(answer, cost=cost / 1000)

    def _about(self, reason: str) -> str:
        settings = self._settings
        return self._redact(f"judge '{settings.model}' at {settings.base_url}: {reason}")

    def _redact(self, text: str) -> str:
        """One line without the key, whatever the server sent back."""
        flat = " ".join(text.split())
        return flat.replace(self._key, "***") if self._key else flat

    def _post(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> dict[str, Any]:
        body = {
            "model": self._settings.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(  # noqa: S310 - the config admits http and https only
            self._settings.base_url.rstrip("/") + "/chat/completions",
            json.dumps(body).encode(),
            headers,
        )
        data = self._fetch(request)
        try:
            value = json.loads(data)
        except ValueError:
            raise _Failure("the answer is not JSON", again=True) from None
        if not isinstance(value, dict):
            raise _Failure("the answer is not a JSON object", again=True)
        return value

    def _fetch(self, request: urllib.request.Request) -> bytes:
        """The whole body within the time-out, which covers slow drips too."""
        seconds = self._settings.timeout
        deadline = time.monotonic() + seconds
        data = b""
        try:
            with self._opener.open(request, timeout=seconds) as response:
                while block := response.read1(1 << 16):
                    data += block
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    if len(data) > MAX_BYTES:
                        raise _Failure(f"the answer is longer than {MAX_BYTES} bytes", again=False)
                if response.length:  # `read1` does not complain about what is still to come
                    raise http.client.IncompleteRead(data, response.length)
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read(300).decode(errors="replace")
            # Before it is cut: half a key would pass the redaction.
            raise _Failure(
                self._redact(f"HTTP {error.code} {detail}")[:200],
                again=error.code in RETRIED,
                pause=_seconds(error.headers.get("Retry-After", "")),
            ) from None
        except TimeoutError:
            raise _Failure(f"no answer within {seconds:g} s", again=True) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Failure(f"no answer within {seconds:g} s", again=True) from None
            raise _Failure(f"cannot be reached ({error.reason})", again=True) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Failure(f"broke off ({type(error).__name__})", again=True) from None
        return data


def _text(body: Mapping[str, Any]) -> str:
    """The first choice's text without its thinking; a cut-off or empty one is a failure."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _Failure("the answer has no choices", again=True)
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if choices[0].get("finish_reason") == "length":
        raise _Failure("the answer was cut off: raise reflection.judge.max_tokens", again=False)
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.S) if isinstance(text, str) else ""
    if not text.strip():
        raise _Failure("the answer is empty", again=True)
    return text.strip()


def _usage(body: Mapping[str, Any]) -> tuple[int, int]:
    """Reported tokens; 0 where a server does not count."""
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    return (
        prompt if isinstance(prompt, int) else 0,
        completion if isinstance(completion, int) else 0,
    )


def _seconds(text: str) -> float:
    """Retry-After in seconds; its other form, a date, is not honoured."""
    return float(text) if re.fullmatch(r"\d{1,5}", text) else 0.0


class Ledger:
    """``judge.jsonl``: every answer that was paid for, and every failure that a run went on after.

    One line per question, written at once, kept when the run is rewound: the same trajectories
    then ask the same questions and find their answers here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, Answer] = {}
        if path.exists():
            with reading(path):
                whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
                for line in whole:
                    entry = json.loads(line)
                    question = entry.pop("question")
                    self._answers[question] = Answer(**entry)
            with reading(path):  # a line cut short by a kill would spoil the next one
                os.truncate(path, sum(len(line) + 1 for line in whole))

    def get(self, question: str) -> Answer | None:
        return self._answers.get(question)

    def add(self, question: str, answer: Answer) -> None:
        self._answers[question] = answer
        with FileIO(self._path, "ab") as file:
            append_line(file, {"question": question, **asdict(answer)}, self._path)
            os.fsync(file.fileno())
