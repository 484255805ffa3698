"""The python world: right answers, and programs that cannot hang, escape or stay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolrl_box.config import load
from toolrl_box.envs import build_world, python, python_run
from toolrl_box.envs.python import BAD_CALL, FAMILIES, SPLITS, PythonEnv, said_answer
from toolrl_box.envs.python_run import Limits, Ran, check, run_program
from toolrl_box.errors import ConfigError, MissingExtraError
from toolrl_box.formats import ALL_FORMATS
from toolrl_box.rollout import replay_gold
from toolrl_box.testing import ByteCodec
from toolrl_box.types import Message, Parsed, Step, Task, ToolCall

QUICK = Limits(seconds=1)
WORLD = PythonEnv(seconds=5)


def possible(limits: Limits) -> bool:
    try:
        check(limits)
    except ConfigError:
        return False
    return True


# Where the machine forbids namespaces, only what needs them is left out.
KINDS = [kind for kind in ("namespaces", "limits") if possible(Limits(isolation=kind))]
isolated = pytest.mark.skipif("namespaces" not in KINDS, reason="no namespaces on this machine")
runs_programs = pytest.mark.skipif(not KINDS, reason="programs cannot be run on this machine")
each_isolation = pytest.mark.parametrize("kind", KINDS)


def our_processes() -> set[str]:
    """Process ids whose command line is the jail's or a jailed program's."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"main.py" in words or str(python_run.JAIL).encode() in words:
            found.add(folder.name)
    return found


def left_folders() -> set[str]:
    return {p.name for p in Path(tempfile.gettempdir()).glob("toolrl-python-*")}


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = our_processes(), left_folders(), len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 5  # a killed process may take a moment to be buried
    while our_processes() - before[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert our_processes() <= before[0]
    assert left_folders() <= before[1]
    assert len(os.listdir("/proc/self/fd")) <= before[2]


# --- programs -------------------------------------------------------------------------------


@runs_programs
@each_isolation
@pytest.mark.parametrize(
    ("source", "text", "ok"),
    [
        ("print(6 * 7)", "42", True),
        ("import math, json, re, itertools\nprint(math.gcd(12, 18))", "6", True),
        ("", "[no output]", True),
        ("print('é世😀')", "é世😀", True),
        ("1 / 0", "ZeroDivisionError: division by zero", False),
        ("print(1)\nraise ValueError('no')", "1\nValueError: no", False),
        ("import sys; sys.exit(3)", "[exit code 3]", False),
        ("import os; os.kill(os.getpid(), 9)", "[killed by signal 9]", False),
        ("print(input())", "EOFError: EOF when reading a line", False),
        ("x = bytearray(10 ** 9)", "MemoryError", False),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'", False),
        ("import toolrl_box", "ModuleNotFoundError: No module named 'toolrl_box'", False),
        ("import os; print(sorted(os.environ))", "['LC_CTYPE', 'PYTHONHASHSEED']", True),
    ],
)
def test_a_program_becomes_a_short_text(kind: str, source: str, text: str, ok: bool) -> None:
    assert run_program(source, Limits(seconds=5, isolation=kind)) == Ran(text, ok)  # type: ignore[arg-type]


@runs_programs
@pytest.mark.parametrize("source", ["def f(", "\ud800", "\0", "print('a'", "\x00" * 100])
def test_text_that_is_no_program_is_an_observation(source: str) -> None:
    ran = run_program(source, Limits(isolation=KINDS[0]))  # type: ignore[arg-type]
    assert not ran.ok
    assert "Error" in ran.text


@runs_programs
@each_isolation
@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os, time; os.close(1); os.close(2); time.sleep(60)",
        "import signal, time\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\ntime.sleep(60)",
        "import os, time; os.setsid() if os.fork() == 0 else None; time.sleep(60)",
        "import threading\nwhile True: threading.Thread(target=lambda: None).start()",
        "10 ** 10 ** 10",
    ],
    ids=lambda source: source[:40],
)
def test_a_program_without_end_is_stopped_in_time(kind: str, source: str) -> None:
    began = time.monotonic()
    ran = run_program(source, Limits(seconds=1, isolation=kind))  # type: ignore[arg-type]
    assert time.monotonic() - began < 8
    assert not ran.ok


@runs_programs
@each_isolation
def test_endless_output_is_cut_and_ends_the_program(kind: str) -> None:
    for source in (
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(2, b'y' * 99)",
    ):
        began = time.monotonic()
        ran = run_program(source, Limits(seconds=5, output_chars=50, isolation=kind))  # type: ignore[arg-type]
        assert time.monotonic() - began < 4
        assert ran.text.endswith("[truncated]\n[stopped: too much output]")
        assert len(ran.text) < 100
        assert not ran.ok


@runs_programs
@each_isolation
def test_a_fork_bomb_ends_and_leaves_nothing(kind: str) -> None:
    bombs = (
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "import os, subprocess, sys\nwhile True: subprocess.Popen([sys.executable, __file__])",
    )
    for bomb in bombs:
        began = time.monotonic()
        run_program(bomb, Limits(seconds=1, isolation=kind))  # type: ignore[arg-type]
        assert time.monotonic() - began < 8


@runs_programs
@each_isolation
def test_a_daemon_does_not_outlive_its_program(kind: str) -> None:
    source = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(0, 64)\n"
        "        time.sleep(60)\n"
        "    os._exit(0)\n"
        "print('gone')"
    )
    began = time.monotonic()
    assert run_program(source, Limits(seconds=5, isolation=kind)).text.startswith("gone")  # type: ignore[arg-type]
    assert time.monotonic() - began < 4


@isolated
@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)",
            "OSError: [Errno 101] Network is unreachable",
        ),
        ("import os; print(sorted(os.listdir('.')), os.getcwd())", "['main.py'] /tmp"),
        ("from os.path import exists\nprint(exists('/proc/1'), exists('/home'))", "False False"),
        ("import os; print(os.getuid() == 0, os.geteuid() == 0)", "False False"),
        ("open('/usr/lib/x', 'w')", "OSError: [Errno 30] Read-only file system: '/usr/lib/x'"),
        ("open('/x', 'w')", "OSError: [Errno 30] Read-only file system: '/x'"),
        ("open('f', 'wb').write(bytes(10 ** 8))", "OSError: [Errno 28] No space left on device"),
        ("import os; os.chroot('.')", "PermissionError: [Errno 1] Operation not permitted: '.'"),
        (
            "import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass\nprint(os.getppid())",
            "1",
        ),
        (
            "import ctypes\nlibc = ctypes.CDLL(None)\n"
            "print(libc.unshare(0x10000000), libc.mount(b'x', b'/tmp', b'tmpfs', 0, None),"
            " libc.ptrace(16, 1, 0, 0))",
            "-1 -1 -1",
        ),
        ("import resource; resource.setrlimit(resource.RLIMIT_NPROC, (99, 99))",
         "ValueError: not allowed to raise maximum limit"),
        ("import os; print(sorted(os.listdir('/dev')))", "['null', 'urandom', 'zero']"),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_an_escape_ends_in_an_observation(source: str, text: str) -> None:
    assert run_program(source, QUICK).text == text


@isolated
def test_a_program_inherits_no_open_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    with secret.open() as file:
        os.set_inheritable(file.fileno(), True)
        source = (
            "import os\nfound = []\nfor n in range(3, 256):\n"
            "  try: os.fstat(n); found.append(n)\n  except OSError: pass\nprint(found)"
        )
        assert run_program(source, QUICK) == Ran("[]", True)


@isolated
def test_an_ordinary_user_gets_the_same_jail(tmp_path: Path) -> None:
    """Namespaces without any privilege, with an interpreter that everybody may read."""
    python_everybody = Path("/usr/bin/python3")
    if os.getuid() != 0 or not python_everybody.exists():
        pytest.skip("only root can become another user, and needs a system Python")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        jail = Path(folder) / "jail.py"
        jail.write_bytes(python_run.JAIL.read_bytes())
        work = Path(folder) / "work"
        work.mkdir()
        work.chmod(0o777)
        limits = '{"seconds": 5, "memory_mb": 256, "processes": 8, "isolation": "namespaces"}'
        words = [str(python_everybody), "-I", "-S", "-B", str(jail), limits]
        source = "import os; print(os.getuid(), os.path.exists('/proc'), os.getcwd())"
        done = subprocess.run(
            words, input=source.encode(), capture_output=True, cwd=work, env={}, user=65534,
            group=65534, extra_groups=[], check=True,
        )  # fmt: skip
    assert done.stdout == b"1000 False /tmp\n", done


def test_a_machine_without_namespaces_is_told_and_nothing_runs_unisolated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jail = tmp_path / "jail.py"
    jail.write_text(
        "import sys; sys.stdin.read()\n"
        'print(\'{"ended": "refused", "detail": "unshare: no"}\', file=sys.stderr)'
    )
    monkeypatch.setattr(python_run, "JAIL", jail)
    with pytest.raises(ConfigError, match=r"cannot isolate .*unshare: no.*env.isolation=limits"):
        run_program("print(1)", QUICK)


def test_a_supervisor_that_dies_or_hangs_is_an_observation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jail = tmp_path / "jail.py"
    monkeypatch.setattr(python_run, "JAIL", jail)
    monkeypatch.setattr(python_run, "GRACE", 0.5)
    jail.write_text("import os; os.kill(os.getpid(), 9)")
    assert not run_program("print(1)", QUICK).ok
    jail.write_text("import time; time.sleep(60)")
    began = time.monotonic()
    assert not run_program("print(1)" * 100_000, QUICK).ok
    assert time.monotonic() - began < 5


# --- tasks ----------------------------------------------------------------------------------


def question(task: Task) -> str:
    return task.prompt[1].content


@runs_programs
@pytest.mark.parametrize("split", SPLITS)
def test_gold_programs_print_the_answer_that_was_computed_otherwise(split: str) -> None:
    world = PythonEnv(seconds=5, isolation=KINDS[0])  # type: ignore[arg-type]
    for task in world.tasks(split, 2 * len(FAMILIES), 0):
        for name in world.formats[: 1 if split != "train" else 3]:
            rollout = replay_gold(task, ALL_FORMATS[name], world, ByteCodec().encode)
            assert rollout.outcome == {"success": 1.0, "accuracy": 1.0, "valid_calls": 1.0}
            told = [m.content for turn in rollout.turns for m in turn.observations]
            assert told == [m.content for m in task.gold if m.role == "tool"]


def test_no_split_asks_what_another_asks() -> None:
    asked = {
        split: {question(task) for task in WORLD.tasks(split, 210, 0)}
        for split in ("train", "heldout", "bank", "ood")
    }
    for split, questions in asked.items():
        assert len(questions) > 190
        for other in asked.keys() - {split}:
            assert not questions & asked[other]


def test_the_same_arguments_give_the_same_tasks_and_fewer_are_the_first_of_more() -> None:
    many = WORLD.tasks("train", 30, 7)
    assert many == PythonEnv().tasks("train", 30, 7)
    assert many[:9] == WORLD.tasks("train", 9, 7)
    assert many != WORLD.tasks("train", 30, 8)
    assert [task.category for task in many[: len(FAMILIES)]] == list(FAMILIES)
    assert all(str(int(task.target["answers"][0])) == task.target["answers"][0] for task in many)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is 42.", "42"),
        ("the answer is -5", "-5"),
        ("42", "42"),
        ("The answer is 7. No: the answer is  8 .", "8"),
        ("It is 42.", "it is 42"),
        ("", ""),
    ],
)
def test_the_answer_is_what_follows_answer_is(text: str, said: str) -> None:
    assert said_answer(text) == said


def calling(*calls: tuple[str, dict[str, object]], blocks: int | None = None) -> Parsed:
    made = tuple(ToolCall(name, arguments) for name, arguments in calls)
    return Parsed("", made, len(made) if blocks is None else blocks, ())


def episode(world: PythonEnv = WORLD) -> tuple[python.PythonEpisode, Task]:
    task = WORLD.tasks("train", 1, 0)[0]
    started = world()
    assert started.reset(task) == task.prompt
    return started, task


@isolated
def test_the_last_message_is_the_answer() -> None:
    for write, right in (("The answer is {}.", 1.0), ("{}", 1.0), ("{}0", 0.0), ("", 0.0)):
        started, task = episode()
        step = started.step(Parsed(write.format(task.target["answers"][0]), (), 0, ()))
        assert (step.done, step.stop_reason) == (True, "answered")
        assert step.outcome == {"success": right, "accuracy": right, "valid_calls": 0.0}


@isolated
def test_calls_that_cannot_be_run_are_observations() -> None:
    started, _ = episode()
    bad = calling(("pythn", {"code": "1"}), ("python", {"code": 1}), ("python", {}), blocks=4)
    assert [message.content for message in started.step(bad).messages] == [BAD_CALL] * 4
    step = started.step(calling(("python", {"code": "print(1)"}), ("python", {"code": "1/0"})))
    assert step == Step(
        (Message("tool", "1"), Message("tool", "ZeroDivisionError: division by zero"))
    )
    assert started.step(Parsed("?", (), 0, ())).outcome["valid_calls"] == 1.0


@isolated
def test_one_call_too_many_ends_the_episode() -> None:
    started, _ = episode(PythonEnv(max_calls=2))
    step = started.step(calling(*[("python", {"code": "print(1)"})] * 3))
    assert (step.done, step.stop_reason, step.outcome["success"]) == (True, "max_calls", 0.0)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"seconds": 0}, "env.seconds = 0: must be at least 1"),
        ({"memory_mb": 8}, "env.memory_mb = 8: must be at least 64"),
        ({"isolation": "none"}, "env.isolation = 'none': "),
        ({"second": 1}, "did you mean 'seconds'"),
    ],
)
def test_a_wrong_setting_is_explained(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_world("python", knobs)


def test_the_world_takes_general_formats_and_long_messages() -> None:
    config = load(sets=["env=python", "rollout.max_tokens=999"])
    assert (config.format, config.rollout.max_new_tokens) == ("hermes", 192)
    assert config.rollout.max_tokens == 999


# --- reasoning-gym --------------------------------------------------------------------------


def test_reasoning_gym_is_asked_for_by_name_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"toolrl-box\[reasoning\]"):
        build_world("python", {"reasoning": ["gcd"]})


def test_reasoning_gym_tasks_are_further_categories() -> None:
    pytest.importorskip("reasoning_gym")
    world = PythonEnv(reasoning=("gcd", "base_conversion"))
    assert world.categories == (*FAMILIES, "gcd", "base_conversion")
    tasks = world.tasks("train", 12, 0, ("gcd", "base_conversion", "power"))
    assert [task.category for task in tasks[:3]] == ["gcd", "base_conversion", "power"]
    assert tasks == world.tasks("train", 12, 0, ("gcd", "base_conversion", "power"))
    assert tasks[0].gold == ()
    assert {question(t) for t in tasks} & {
        question(t) for t in world.tasks("heldout", 12, 0)
    } == set()
    assert {task.category for task in world.tasks("bank", 20, 0)} == set(FAMILIES)
    with pytest.raises(ConfigError, match="unknown reasoning-gym dataset 'gdc'"):
        PythonEnv(reasoning=("gdc",))
