"""Runs a program in the jail (``python_jail.py``) and turns whatever happens into a short text.

Input: source text and :class:`Limits`. Output: :class:`Ran`. Nothing that a program does makes
:func:`run_program` raise, hang or leave a process, an open file or a folder behind; what the jail
cannot prevent stands in its docstring. Nothing of the program is evaluated in this process.

Left out: state between calls (each starts afresh), files, input, and platforms other than Linux.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from toolrl_box.errors import ConfigError

Isolation = Literal["namespaces", "limits"]

JAIL = Path(__file__).with_name("python_jail.py")
GRACE = 10.0
"""Seconds after its time is up in which the jail must have ended; a loaded machine is slow."""
TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program gets: ``seconds`` of CPU per process and of the clock, ``memory_mb`` of
    address space per process, ``processes`` at a time, ``output_chars`` of its output."""

    seconds: int = 2
    memory_mb: int = 256
    processes: int = 8
    output_chars: int = 500
    isolation: Isolation = "namespaces"


@dataclass(frozen=True, slots=True)
class Ran:
    """``text``: what the program printed, or what became of it; ``ok``: it ended by itself
    without an error."""

    text: str
    ok: bool


def run_program(source: str, limits: Limits) -> Ran:
    """Run ``source`` and wait until all of it is gone.

    Raises ConfigError when the machine does not allow the isolation that is asked for.
    """
    with (
        tempfile.TemporaryDirectory(prefix="toolrl-python-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as program,  # not a pipe: writing to one may block
    ):
        program.write(source.encode("utf-8", "replace"))
        program.seek(0)
        jail = subprocess.Popen(  # noqa: S603 - a list of words, our own script
            [sys.executable, "-I", "-S", "-B", str(JAIL), json.dumps(asdict(limits))],
            stdin=program,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        with jail:
            try:
                printed, cut = _listen(jail, limits)
                told = _last_words(jail)
            finally:
                _end(jail)
    return _judge(told, printed, cut, jail.returncode, limits)


def _listen(jail: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, bool]:
    """Collect the program's output until it ends, its time is up or it has said more than enough;
    whether it was cut short for that."""
    assert jail.stdout is not None
    deadline = time.monotonic() + limits.seconds + GRACE
    enough = 4 * limits.output_chars + 4096  # bytes per character, and a traceback
    printed = b""
    with selectors.DefaultSelector() as selector:
        selector.register(jail.stdout, selectors.EVENT_READ)
        while len(printed) <= enough:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return printed, False
            chunk = os.read(jail.stdout.fileno(), 65536)
            if not chunk:
                return printed, False
            printed += chunk
    jail.send_signal(signal.SIGTERM)  # the supervisor kills the program and then ends
    return printed[:enough], True


def _last_words(jail: subprocess.Popen[bytes]) -> bytes:
    """What the supervisor says when it has ended; nothing if it does not end or was killed."""
    assert jail.stderr is not None
    with suppress(subprocess.TimeoutExpired):
        jail.wait(GRACE)
        return jail.stderr.read(65536)
    return b""


def _end(jail: subprocess.Popen[bytes]) -> None:
    """Ends the supervisor whatever happened; with it goes the program."""
    if jail.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(jail.pid, signal.SIGKILL)
        jail.wait()


def _judge(told: bytes, printed: bytes, cut: bool, code: int, limits: Limits) -> Ran:
    text = printed.decode("utf-8", "replace").replace("\r", "")
    # One line, the supervisor's; anything else means that it did not get to speak.
    try:
        report = json.loads(told)
    except ValueError:
        report = {"ended": "lost", "code": code}
    if report["ended"] == "refused":
        raise ConfigError(
            f"cannot isolate programs with env.isolation = {limits.isolation} on this machine "
            f"({report['detail']}); it needs Linux 5.12 and the right to make user namespaces, or "
            "env.isolation=limits, which limits resources and does not isolate"
        )
    if cut:
        return Ran(_shortened(text, limits) + "\n[stopped: too much output]", False)
    if report["ended"] == "time":
        return Ran(
            f"{_shortened(text, limits)}\n[stopped after {limits.seconds} s]".lstrip(), False
        )
    status = report["code"]
    if status == 0 and report["ended"] == "exit":
        return Ran(_shortened(text.strip(), limits) or "[no output]", True)
    before, trace, after = text.rpartition(TRACEBACK)
    if trace:
        lines = [line for line in after.strip().splitlines() if line.strip()]
        text = before + (lines[-1] if lines else "error")
    killed = f"[killed by signal {status - 128}]" if status > 128 else f"[exit code {status}]"
    return Ran(_shortened(text.strip(), limits) or killed, False)


def _shortened(text: str, limits: Limits) -> str:
    if len(text) <= limits.output_chars:
        return text
    return text[: limits.output_chars] + " [truncated]"


@lru_cache
def check(limits: Limits) -> None:
    """Raises ConfigError when a harmless program does not run here under ``limits``."""
    if sys.platform != "linux":
        raise ConfigError(f"the python world needs Linux, this is {sys.platform}")
    ran = run_program("print(6 * 7)", limits)
    if ran != Ran("42", True):
        raise ConfigError(f"a program that prints 42 does not run under {limits}: {ran.text}")
