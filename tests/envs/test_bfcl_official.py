"""Our verdict on BFCL episodes is the official checker's, error type included.

The official checker runs here, from the package. It evaluates calls given as source text and keeps
its instances in module globals, which are removed after each case so that no case sees another's.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from toolrl_box.envs.bfcl import CATEGORIES, IRRELEVANCE, BfclEnv
from toolrl_box.envs.bfcl_package import records
from toolrl_box.types import Parsed, Task, ToolCall

OFFICIAL = "bfcl_eval.eval_checker.multi_turn_eval"
WORLD = BfclEnv()
UNREADABLE = "cd(folder='a'"
Said = ToolCall | str
"""A call, or source text that is none."""
Case = list[list[list[Said]]]
"""Calls of each message of each user turn."""


def data(name: str) -> list[dict[str, Any]]:
    folder = Path(str(import_module("bfcl_eval").__file__)).parent / "data"
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def official() -> Callable[[str, int, Case], str | None]:
    checker = import_module(f"{OFFICIAL}.multi_turn_checker")
    namespace = vars(import_module(f"{OFFICIAL}.multi_turn_utils"))
    names = {category: f"BFCL_v4_multi_turn_{category}.json" for category in CATEGORIES}
    tasks = {category: data(name) for category, name in names.items()}
    truths = {category: data(f"possible_answer/{name}") for category, name in names.items()}

    def check(category: str, index: int, case: Case) -> str | None:
        said = [[[source(call) for call in step] for step in turn] for turn in case]
        truth = truths[category][index]["ground_truth"]
        try:
            found = checker.multi_turn_checker(said, truth, tasks[category][index], "", "model")
        finally:
            for name in [name for name in namespace if name.endswith("_instance")]:
                del namespace[name]
        return None if found["valid"] else str(found["error_type"])

    return check


def source(said: Said) -> str:
    if isinstance(said, str):
        return said
    return f"{said.name}({', '.join(f'{key}={value!r}' for key, value in said.arguments.items())})"


def ours(task: Task, case: Case, world: BfclEnv = WORLD) -> str | None:
    episode = world()
    episode.reset(task)
    for turn in case:
        for step in turn:
            calls = tuple(call for call in step if isinstance(call, ToolCall))
            if step:
                episode.step(Parsed("", calls, len(step), ()))
        last = episode.step(Parsed("Done.", (), 0, ()))
    assert last.done
    assert last.outcome["success"] == float(episode.verdict.error is None)
    return episode.verdict.error


# --- cases ----------------------------------------------------------------------------------


def altered(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case str():
            return f"{value}_x"
        case int() | float():
            return value + 1
        case list():
            return value[:-1] or [*value, *value]
    return {}


def mistyped(value: Any) -> Any:
    match value:
        case bool():
            return "yes"
        case str():
            return 7
        case int() | float():
            return str(value)
    return "x"


def changed(call: ToolCall, change: Callable[[Any], Any], rng: random.Random) -> ToolCall:
    if not call.arguments:
        return call
    key = rng.choice(list(call.arguments))
    return ToolCall(call.name, {**call.arguments, key: change(call.arguments[key])})


def without_one(call: ToolCall, rng: random.Random) -> ToolCall:
    left = dict(call.arguments)
    if left:
        del left[rng.choice(list(left))]
    return ToolCall(call.name, left)


def cases(truth: Sequence[Sequence[ToolCall]], rng: random.Random) -> Iterator[tuple[str, Case]]:
    """The ground truth and what may go wrong with it, by name."""
    gold: Case = [[[call] for call in turn] for turn in truth]
    everything: list[Said] = [call for turn in truth for call in turn]
    yield "gold", gold
    yield "gold, a turn's calls in one message", [[list(turn)] if turn else [] for turn in truth]
    yield "no calls", [[] for _ in truth]
    yield "all calls early", [[everything], *([] for _ in truth[1:])]
    yield "all calls early and again", [[everything], *gold[1:]]
    for i, turn in enumerate(truth):
        before, after = gold[:i], gold[i + 1 :]

        def at(*calls: Said, before: Case = before, after: Case = after) -> Case:
            return [*before, [[call] for call in calls], *after]

        if not turn:
            if after:
                yield "acts where nothing is due", [*before, after[0], [], *after[1:]]
                yield "acts where nothing is due and again", [*before, after[0], *after]
            continue
        j = rng.randrange(len(turn))
        head, tail = turn[:j], turn[j + 1 :]
        unknown = ToolCall("no_such_function", {"x": 1})
        yield "first call dropped", at(*turn[1:])
        yield "last call dropped", at(*turn[:-1])
        yield "reverse order", at(*turn[::-1])
        yield "turn repeated", at(*turn, *turn)
        yield "last call repeated", at(*turn, turn[-1])
        yield "empty turn", at()
        yield "unknown function in place of a call", at(*head, unknown, *tail)
        yield "unknown function besides", at(*turn, unknown)
        yield "unknown function alone", at(unknown)
        yield "syntax error in place of a call", at(*head, UNREADABLE, *tail)
        yield "syntax error besides", at(*turn, UNREADABLE)
        for j, call in enumerate(turn):
            head, tail = turn[:j], turn[j + 1 :]
            extra = ToolCall(call.name, {**call.arguments, "nonsense": 1})
            yield "argument changed", at(*head, changed(call, altered, rng), *tail)
            yield "argument of another type", at(*head, changed(call, mistyped, rng), *tail)
            yield "argument missing", at(*head, without_one(call, rng), *tail)
            yield "argument too many", at(*head, extra, *tail)


def differences(
    official: Callable[[str, int, Case], str | None], indices: Sequence[int]
) -> tuple[list[str], Counter[str | None]]:
    """Where we differ, and how often the official checker found what."""
    wrong: list[str] = []
    seen: Counter[str | None] = Counter()
    for category in CATEGORIES:
        for index in indices:
            task = WORLD.task(category, index)
            rng = random.Random(task.id)
            for name, case in cases(records(category)[index].calls, rng):
                theirs = official(category, index, case)
                seen[theirs] += 1
                if ours(task, case) != theirs:
                    wrong.append(f"{task.id}: {name}: {theirs}")
    return wrong, seen


# --- tests ----------------------------------------------------------------------------------


def test_all_800_ground_truths_are_valid_here_and_officially(
    official: Callable[[str, int, Case], str | None],
) -> None:
    for category in CATEGORIES:
        for index, record in enumerate(records(category)):
            gold: Case = [[[call] for call in turn] for turn in record.calls]
            assert official(category, index, gold) is None, record.id
            assert ours(WORLD.task(category, index), gold) is None, record.id


def test_verdict_and_error_type_are_the_official_ones_on_a_sample(
    official: Callable[[str, int, Case], str | None],
) -> None:
    # The two tasks with turns in which nothing can be done, and six others of each category.
    wrong, seen = differences(official, [167, 180, *random.Random(0).sample(range(200), 6)])
    assert wrong == []
    assert seen.keys() == {
        None,
        "multi_turn:empty_turn_model_response",
        "multi_turn:instance_state_mismatch",
        "multi_turn:execution_response_mismatch",
    }
    assert min(seen.values()) > 50


@pytest.mark.slow
def test_verdict_and_error_type_are_the_official_ones_on_every_task(
    official: Callable[[str, int, Case], str | None],
) -> None:
    wrong, seen = differences(official, range(200))
    print(f"{seen.total()} cases: {dict(seen)}")
    assert wrong == []


def test_the_irrelevance_check_adds_what_the_official_one_finds(
    official: Callable[[str, int, Case], str | None],
) -> None:
    checker = import_module(f"{OFFICIAL}.multi_turn_checker")
    strict = BfclEnv(irrelevance=True)
    told = Counter[str | None]()
    for category in CATEGORIES:
        for index in (6, 167, 180):
            task, truth = WORLD.task(category, index), records(category)[index].calls
            for _, case in cases(truth, random.Random(task.id)):
                relevant = checker.multi_turn_irrelevance_checker(case, truth)["valid"]
                error = ours(task, case, strict)
                assert (error is None) == (relevant and official(category, index, case) is None)
                told[error] += 1
    assert told[IRRELEVANCE] > 10


def test_strict_types_is_where_verdicts_may_differ(
    official: Callable[[str, int, Case], str | None],
) -> None:
    # add_to_watchlist passes over what it does not know, and answers with the list as it was.
    category, index = "base", 139
    record = records(category)[index]
    case: Case = [[[call] for call in turn] for turn in record.calls]
    first = record.calls[0][0]
    assert first.name == "add_to_watchlist"
    case[0][0] = [ToolCall(first.name, {"stock": 7})]
    task = WORLD.task(category, index)
    assert official(category, index, case) is ours(task, case) is None
    strict = BfclEnv(strict_types=True)
    assert ours(task, case, strict) == "multi_turn:execution_response_mismatch"
