"""The python world: questions of arithmetic and small algorithms, and a tool that runs programs.

Job: make seeded tasks with whole-number answers and run episodes on them. ``python(code)`` runs a
program in a jail of its own (``python_run``, ``python_jail``) and answers with what it printed; a
message that calls nothing ends the episode and is the answer ("The answer is 42."). Output:
:class:`~toolrl_box.types.Task` with a gold dialogue: one program, what it prints, the answer.

Each question belongs to one part for good, by its text: no split but ``pretrain`` asks what
another split asks (``pretrain`` shares the part of ``train``). ``ood`` draws larger numbers, which
no other split has.

With ``reasoning`` = names of `reasoning-gym <https://github.com/open-thought/reasoning-gym>`_
datasets (extra ``reasoning``), each is a further category. They have no gold dialogue, so they
serve RL and evaluation, not supervision, and the probe's bank leaves them out. An answer is right
when it is the dataset's own, letter for letter but for case and space: the datasets' scoring
functions may evaluate what a model wrote, so they are never called.

An episode ends with an answer or with one call too many. Its figures: ``accuracy`` = ``success``,
``valid_calls`` (programs that ended without an error).

Left out: state between calls, files, and third-party packages for the programs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from toolrl_box.envs.python_run import Isolation, Limits, check, run_program
from toolrl_box.errors import ConfigError, MissingExtraError, unknown
from toolrl_box.types import Message, Parsed, Step, Task, ToolCall, ToolSpec

SPLITS = ("pretrain", "train", "heldout", "bank", "ood")
PARTS: Mapping[str, tuple[float, float]] = {
    "train": (0.0, 0.7), "pretrain": (0.0, 0.7), "heldout": (0.7, 0.9), "bank": (0.9, 1.0),
    "ood": (0.0, 1.0),
}  # fmt: skip
SYSTEM = "You are a helpful assistant."
BAD_CALL = "bad call: python takes one text, code"
TOOL = ToolSpec(
    "python",
    {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    "Run a Python program and return what it prints.",
)


# --- questions ------------------------------------------------------------------------------

Draw = Callable[[int, int], int]
"""A whole number between two bounds; split ``ood`` lifts both."""
Problem = tuple[str, str, int]
"""Question, program, answer: the answer is computed here, by other means where there are any."""


def _arithmetic(draw: Draw) -> Problem:
    a, b, c = draw(11, 99), draw(11, 99), draw(100, 999)
    return f"What is {a} * {b} - {c}?", f"print({a} * {b} - {c})", a * b - c


def _power(draw: Draw) -> Problem:
    base, exponent, modulus = draw(2, 99), draw(10, 99), draw(7, 999)
    answer = 1
    for _ in range(exponent):
        answer = answer * base % modulus
    question = f"What is the remainder of {base}^{exponent} divided by {modulus}?"
    return question, f"print(pow({base}, {exponent}, {modulus}))", answer


def _divisor(draw: Draw) -> Problem:
    common, a, b = draw(2, 30), draw(2, 60), draw(2, 60)
    a, b = common * a, common * b
    question = f"What is the greatest common divisor of {a} and {b}?"
    answer = max(n for n in range(1, min(a, b) + 1) if a % n == b % n == 0)
    return question, f"import math\nprint(math.gcd({a}, {b}))", answer


def _primes(draw: Draw) -> Problem:
    low = draw(2, 500)
    high = low + draw(20, 300)
    code = (
        f"print(sum(n > 1 and all(n % d for d in range(2, n))\n"
        f"          for n in range({low}, {high} + 1)))"
    )
    answer = sum(
        n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(low, high + 1)
    )
    return f"How many primes are there from {low} to {high}?", code, answer


def _digits(draw: Draw) -> Problem:
    base, exponent = draw(2, 19), draw(8, 60)
    power, answer = base**exponent, 0
    while power:
        power, digit = divmod(power, 10)
        answer += digit
    question = f"What is the sum of the digits of {base}^{exponent}?"
    return question, f"print(sum(int(d) for d in str({base} ** {exponent})))", answer


def _recurrence(draw: Draw) -> Problem:
    first, second, count = draw(1, 20), draw(1, 20), draw(6, 25)
    code = f"a, b = {first}, {second}\nfor _ in range({count} - 1):\n    a, b = b, a + b\nprint(a)"
    terms = [first, second]
    while len(terms) < count:
        terms.append(terms[-1] + terms[-2])
    question = (
        f"A sequence starts with {first}, {second}; each further term is the sum of the two before "
        f"it. What is term number {count}?"
    )
    return question, code, terms[count - 1]


def _ranked(draw: Draw) -> Problem:
    numbers = [draw(1, 999) for _ in range(9)]
    rank = 2 + numbers[0] % 7
    question = f"What is number {rank} in ascending order of {', '.join(map(str, numbers))}?"
    code = f"print(sorted({numbers})[{rank} - 1])"
    rest = list(numbers)
    for _ in range(rank - 1):
        rest.remove(min(rest))
    return question, code, min(rest)


FAMILIES: Mapping[str, Callable[[Draw], Problem]] = {
    "arithmetic": _arithmetic,
    "power": _power,
    "divisor": _divisor,
    "primes": _primes,
    "digits": _digits,
    "recurrence": _recurrence,
    "ranked": _ranked,
}


def _between(rng: random.Random, split: str, low: int, high: int) -> int:
    return rng.randint(high + 1, 2 * high) if split == "ood" else rng.randint(low, high)


def make_task(split: str, key: str, category: str) -> Task:
    """One task of an own family; ``key`` seeds it."""
    rng = random.Random(f"python/{key}/{category}")
    start, stop = PARTS[split]
    while True:
        question, code, answer = FAMILIES[category](partial(_between, rng, split))
        if start <= random.Random(question).random() < stop:
            break
    gold = (
        Message("assistant", "", (ToolCall("python", {"code": code}),)),
        Message("tool", str(answer)),
        Message("assistant", f"The answer is {answer}."),
    )
    return _task(key, category, question, gold, str(answer))


def _task(key: str, category: str, question: str, gold: tuple[Message, ...], answer: str) -> Task:
    prompt = (Message("system", SYSTEM), Message("user", question))
    return Task(key, category, (TOOL,), prompt, gold, {"answers": [answer]})


def _reasoning_tasks(name: str, split: str, count: int, seed: int) -> list[Task]:
    """The first ``count`` of a reasoning-gym dataset, seeded by split and seed."""
    gym = _reasoning_gym()
    drawn = random.Random(f"python/{split}/{seed}/{name}").randrange(2**31)
    entries = gym.create_dataset(name, size=max(1, count), seed=drawn)
    keys = [f"{split}-{seed}-{name}-{index}" for index in range(count)]
    return [
        _task(key, name, str(entry["question"]), (), str(entry["answer"]))
        for key, entry in zip(keys, entries, strict=False)
    ]


def _reasoning_gym() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingExtraError(
            "env.reasoning needs reasoning-gym: pip install 'toolrl-box[reasoning]'"
        ) from error
    return reasoning_gym


# --- the world ------------------------------------------------------------------------------


@dataclass(frozen=True)
class PythonEnv:
    """``seconds`` (of CPU, and of the clock), ``memory_mb`` and ``output_chars`` limit one program,
    ``max_calls`` the programs of an episode; ``isolation``: see ``python_jail``; ``reasoning``:
    names of reasoning-gym datasets."""

    seconds: int = 2
    memory_mb: int = 256
    output_chars: int = 500
    max_calls: int = 6
    isolation: Isolation = "namespaces"
    reasoning: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, least in (
            ("seconds", self.seconds, 1),
            ("memory_mb", self.memory_mb, 64),
            ("output_chars", self.output_chars, 1),
            ("max_calls", self.max_calls, 1),
        ):
            if value < least:
                raise ConfigError(f"env.{name} = {value}: must be at least {least}")
        if self.reasoning:
            known = _reasoning_gym().factory.DATASETS
            for name in self.reasoning:
                if name not in known:
                    raise unknown("reasoning-gym dataset", name, known)

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def categories(self) -> tuple[str, ...]:
        return (*FAMILIES, *self.reasoning)

    @property
    def train_categories(self) -> tuple[str, ...]:
        return self.categories

    @property
    def formats(self) -> tuple[str, ...]:
        return ("hermes", "pythonic", "xml")

    @property
    def limits(self) -> Limits:
        return Limits(
            seconds=self.seconds,
            memory_mb=self.memory_mb,
            output_chars=self.output_chars,
            isolation=self.isolation,
        )

    def __call__(self) -> PythonEpisode:
        """Raises ConfigError when programs cannot be run as configured on this machine."""
        check(self.limits)
        return PythonEpisode(self.limits, self.max_calls)

    def tasks(
        self, split: str, count: int, seed: int, categories: Sequence[str] | None = None
    ) -> list[Task]:
        """See :class:`~toolrl_box.types.World`; ``bank`` has own families only, unless told."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        own = tuple(FAMILIES) if split == "bank" else self.train_categories
        wanted = own if categories is None else categories
        for category in wanted:
            if category not in self.categories:
                raise unknown("category", category, self.categories)
        rounds = -(-count // len(wanted))
        pools = {
            name: iter(_reasoning_tasks(name, split, rounds * list(wanted).count(name), seed))
            for name in wanted
            if name not in FAMILIES
        }
        rotation = [wanted[index % len(wanted)] for index in range(count)]
        return [
            next(pools[name]) if name in pools else make_task(split, f"{split}-{seed}-{i}", name)
            for i, name in enumerate(rotation)
        ]


def said_answer(text: str) -> str:
    """What follows the last "answer is", or all of the text; without space and full stop at its
    ends, in lower case."""
    said = " ".join(text.lower().split()).rpartition("answer is")[2]
    return said.strip().removesuffix(".").strip()


class PythonEpisode:
    """One episode. Implements :class:`~toolrl_box.types.Environment`."""

    def __init__(self, limits: Limits, max_calls: int) -> None:
        self._limits = limits
        self._max_calls = max_calls

    def reset(self, task: Task) -> tuple[Message, ...]:
        self._answers = [said_answer(answer) for answer in task.target["answers"]]
        self._calls = 0
        self._valid = 0
        return task.prompt

    def step(self, message: Parsed) -> Step:
        if message.blocks == 0:
            return self._end("answered", said_answer(message.text) in self._answers)
        told: list[str] = []
        for call in message.calls:
            if self._calls == self._max_calls:
                return self._end("max_calls", False)
            self._calls += 1
            code = call.arguments.get("code")
            if (
                call.name != "python"
                or set(call.arguments) != {"code"}
                or not isinstance(code, str)
            ):
                told.append(BAD_CALL)
                continue
            ran = run_program(code, self._limits)
            self._valid += ran.ok
            told.append(ran.text)
        told += [BAD_CALL] * (message.blocks - len(told))
        return Step(tuple(Message("tool", text) for text in told))

    def _end(self, reason: str, right: bool) -> Step:
        figures = {"success": right, "accuracy": right, "valid_calls": self._valid}
        return Step((), True, reason, {name: float(value) for name, value in figures.items()})
