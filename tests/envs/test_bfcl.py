"""BFCL multi-turn: tasks and gold, the turn loop, scoring options, and tools that reach nothing."""

from __future__ import annotations

import ast
import copy
import decimal
import json
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import mpmath
import pytest

from toolrl_box.config import load
from toolrl_box.envs import bfcl_package, build_world
from toolrl_box.envs.bfcl import (
    ASK,
    CATEGORIES,
    IRRELEVANCE,
    REFUSE,
    SUPPLIED,
    BfclEnv,
    BfclEpisode,
    Verdict,
)
from toolrl_box.envs.bfcl_package import DOCUMENTS, documents, read_call, records
from toolrl_box.envs.bfcl_tools import FAILED, Toolbox, type_fault
from toolrl_box.errors import ConfigError, DataError, MissingExtraError
from toolrl_box.formats import ALL_FORMATS
from toolrl_box.rewards import Rubric
from toolrl_box.rollout import replay_gold
from toolrl_box.testing import ByteCodec
from toolrl_box.types import Message, Parsed, Rollout, Step, Task, ToolCall

WORLD = BfclEnv()
SOURCES = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
MODULES = (*DOCUMENTS.values(), "long_context")
END = Parsed("Done.", (), 0, ())


def begun(task: Task, world: BfclEnv = WORLD) -> BfclEpisode:
    episode = world()
    episode.reset(task)
    return episode


def say(episode: BfclEpisode, *calls: ToolCall, unreadable: int = 0) -> Step:
    return episode.step(Parsed("", calls, len(calls) + unreadable, ()))


def play(task: Task, turns: Sequence[Sequence[ToolCall]], world: BfclEnv = WORLD) -> BfclEpisode:
    """Every turn's calls, one a message."""
    episode = begun(task, world)
    for turn in turns:
        for call in turn:
            say(episode, call)
        episode.step(END)
    return episode


def tools(*classes: str, seconds: float | None = 0.2, long_context: bool = False) -> Toolbox:
    return Toolbox(classes, {}, long_context=long_context, seconds=seconds, strict_types=False)


def spoken(turns: Sequence[Message]) -> list[Message]:
    return [message for message in turns if message.role == "assistant"]


# --- the package ----------------------------------------------------------------------------


@pytest.mark.parametrize("found", [None, "2025.1.1"])
def test_without_the_right_package_one_line_says_how_to_get_it(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if found is None:
            raise bfcl_package.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(bfcl_package, "version", version)
    with pytest.raises(MissingExtraError) as error:
        build_world("bfcl", {})
    have = "is not installed" if found is None else "is version 2025.1.1"
    assert str(error.value) == (
        f"env 'bfcl' needs bfcl-eval 2026.3.23, which {have}: "
        "pip install --no-deps bfcl-eval==2026.3.23 mpmath"
    )


def test_tests_are_made_with_the_version_that_is_asked_for() -> None:
    makefile = Path(__file__).parents[2] / "Makefile"
    assert f"bfcl-eval=={bfcl_package.VERSION}\n" in makefile.read_text()


def test_a_tool_class_that_reaches_outside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = {"id": "a", "question": [[]], "involved_classes": ["WebSearchAPI"]}
    with pytest.raises(DataError, match="tool class 'WebSearchAPI' is not one that only simulates"):
        bfcl_package._record(task, {"id": "a", "ground_truth": [[]]})


def test_a_ground_truth_is_read_and_never_run() -> None:
    parameters = {"sort": ("file_name",), "wc": ("file_name", "mode")}
    text = "wc('a.txt', mode='l')"
    assert read_call(text, parameters) == ToolCall("wc", {"file_name": "a.txt", "mode": "l"})
    for bad in (
        "sort(open('a'))",
        "sort('a', 'b')",
        "wc('a', file_name='b')",
        "sort(*['a'])",
        "sort(**{'file_name': 'a'})",
        "rm('a')",
        "os.remove('a')",
        "sort('a'); sort('b')",
        "sort({1, 2})",
        "sort",
    ):
        with pytest.raises(DataError, match="cannot be read"):
            read_call(bad, parameters)


# --- tasks ----------------------------------------------------------------------------------


def test_the_split_is_the_papers() -> None:
    order = list(range(200))
    random.Random(42).shuffle(order)
    for split, indices in (("train", order[:100]), ("heldout", order[100:])):
        tasks = WORLD.tasks(split, 300, seed=5)
        for category in WORLD.train_categories:
            ids = {task.id for task in tasks if task.category == category}
            assert ids == {f"multi_turn_{category}_{index}" for index in indices}
    train, bank = WORLD.tasks("train", 300, 0), WORLD.tasks("bank", 300, 0)
    heldout = WORLD.tasks("heldout", 400, 0, CATEGORIES)
    assert {task.id for task in bank} == {task.id for task in train}
    assert len({task.id for task in heldout}) == 400
    assert not {task.id for task in heldout} & {task.id for task in train}
    assert not any(task.category == "long_context" for task in train)


def test_tasks_repeat_and_fewer_are_the_first_of_more() -> None:
    tasks = WORLD.tasks("train", 12, 0)
    assert tasks[:5] == WORLD.tasks("train", 5, 0)
    assert [task.id for task in tasks] != [task.id for task in WORLD.tasks("train", 12, 1)]
    assert [task.category for task in tasks[:4]] == ["base", "miss_func", "miss_param", "base"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", 301, 0), "split 'train' of world 'bfcl' has 100 tasks of category 'base', not"),
        (("trian", 1, 0), "unknown split 'trian'; did you mean 'train'"),
        (("train", 1, 0, ["bas"]), "unknown category 'bas'; did you mean 'base'"),
    ],
)
def test_what_there_is_not_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WORLD.tasks(*arguments)


def test_a_target_is_json() -> None:
    for category in CATEGORIES:
        task = WORLD.task(category, 3)
        assert json.loads(json.dumps(task.target)) == task.target


def test_a_withheld_document_arrives_with_the_user_who_supplies_it() -> None:
    task = WORLD.task("miss_func", 5)
    record = records("miss_func")[5]
    ((turn, names),) = record.supplied.items()
    assert not {tool.name for tool in task.tools} & set(names)
    episode = begun(task)
    users = [episode.step(END).messages[0] for _ in record.questions[1:]]
    assert [user.content for user in users if user.tools] == [SUPPLIED]
    assert tuple(tool.name for tool in users[turn - 1].tools) == names
    assert [message for message in task.gold if message.role == "user"] == users


# --- gold -----------------------------------------------------------------------------------


def test_gold_calls_are_the_ground_truth_none_dropped_and_read_back_exactly() -> None:
    # All of them: 4625 calls, 38% of whose arguments are no texts in some turns.
    formats = [ALL_FORMATS[name] for name in WORLD.formats]
    count = 0
    for category in CATEGORIES:
        for index, record in enumerate(records(category)):
            said = spoken(WORLD.task(category, index).gold)
            calls = [call for message in said for call in message.tool_calls]
            assert calls == [call for turn in record.calls for call in turn]
            fmt = formats[index % len(formats)]
            for message in said:
                parsed = fmt.parse(fmt.render_message(message))
                # repr tells 5 from 5.0 and from True.
                assert repr(parsed.calls) == repr(message.tool_calls)
                assert parsed.errors == ()
                assert parsed.blocks == bool(message.tool_calls)
            count += len(calls)
    assert count == 4625


@pytest.mark.parametrize("category", CATEGORIES)
def test_gold_succeeds_when_played_and_its_results_are_the_tools_own(category: str) -> None:
    limits = {"max_messages": 50, "max_tokens": 10**7, "max_observation_tokens": 10**7}
    for index in range(0, 200, 20):
        task = WORLD.task(category, index)
        played = replay_gold(task, ALL_FORMATS["hermes"], WORLD, ByteCodec().encode, **limits)
        assert played.stop_reason == "done"
        assert played.outcome == {
            "success": 1.0,
            "turns_passed": 1.0,
            "junk_calls": 0.0,
            "mistyped_calls": 0.0,
        }
        seen = [message for turn in played.turns for message in turn.observations]
        assert seen == [message for message in task.gold if message.role != "assistant"]


def test_gold_asks_or_refuses_where_nothing_is_to_be_called() -> None:
    for category, text in (("miss_param", ASK), ("miss_func", REFUSE), ("base", REFUSE)):
        index = 167 if category == "base" else 0  # its last request cannot be met
        task, record = WORLD.task(category, index), records(category)[index]
        closings = [message.content for message in spoken(task.gold) if not message.tool_calls]
        assert len(closings) == len(record.calls)
        assert {c for c, calls in zip(closings, record.calls, strict=True) if not calls} == {text}
    assert spoken(WORLD.task("base", 0).gold)[3].content == "I have called cd, mkdir and mv."


# --- episodes -------------------------------------------------------------------------------


def test_state_is_kept_across_turns_and_belongs_to_one_episode() -> None:
    task = WORLD.task("base", 0)
    here, there = begun(task), begun(task)
    say(here, ToolCall("cd", {"folder": "document"}))
    here.step(END)
    pwd = ToolCall("pwd", {})
    assert "document" in say(here, pwd).messages[0].content
    assert "document" not in say(there, pwd).messages[0].content


def test_a_message_without_a_call_ends_the_user_turn_and_the_last_one_the_episode() -> None:
    task = WORLD.task("base", 0)
    episode = begun(task)
    steps = [episode.step(END) for _ in range(4)]
    assert [step.done for step in steps] == [False, False, False, True]
    assert steps[-1].stop_reason == "done"
    assert steps[-1].outcome["success"] == steps[-1].outcome["turns_passed"] == 0.0
    assert episode.verdict == Verdict("multi_turn:empty_turn_model_response", 0)


def test_what_cannot_be_carried_out_is_told_and_counted() -> None:
    task = WORLD.task("base", 0)
    episode = begun(task)
    told = say(
        episode,
        ToolCall("rm_rf", {}),
        ToolCall("cat", {"name": "a"}),
        ToolCall("cat", {"file_name": 3}),
        ToolCall("__init__", {}),
        ToolCall("_load_scenario", {"scenario": {}}),
        unreadable=1,
    ).messages
    assert [message.role for message in told] == ["tool"] * 6
    assert all(message.content.startswith(FAILED) for message in told)
    assert told[0].content == "Error during execution: name 'rm_rf' is not defined"
    assert "unexpected keyword argument 'name'" in told[1].content
    last = [episode.step(END) for _ in range(4)][-1]
    assert last.outcome["junk_calls"] == 6.0
    assert last.outcome["mistyped_calls"] == 1.0
    rollout = Rollout(task, (), (), "done", outcome=last.outcome)
    assert Rubric({"task_success": 1.0, "junk_calls": -0.1}).score(rollout)[0] == pytest.approx(
        -0.6
    )


def test_a_call_where_nothing_is_due_fails_only_with_the_irrelevance_check() -> None:
    task, record = WORLD.task("miss_func", 0), records("miss_func")[0]
    turns = [list(turn) for turn in record.calls]
    withheld = turns.index([])
    turns[withheld] = [ToolCall("pwd", {})]
    assert play(task, turns).verdict.error is None
    strict = BfclEnv(irrelevance=True)
    assert play(task, turns, strict).verdict == Verdict(IRRELEVANCE, withheld)
    assert play(task, record.calls, strict).verdict.error is None


def test_strict_types_refuse_and_name_the_argument() -> None:
    task = WORLD.task("base", 0)
    call = ToolCall("ls", {"a": "yes"})
    assert say(begun(task), call).messages[0].content.startswith('{"current_directory_content"')
    assert say(begun(task, BfclEnv(strict_types=True)), call).messages[0].content == (
        "Error during execution: ls: a = 'yes': input should be a valid boolean"
    )


def test_types_are_those_of_the_documents() -> None:
    for specs in documents().values():
        for name, spec in specs.items():
            nothing = dict.fromkeys(spec.parameters["properties"])
            assert (type_fault(name, nothing) is None) == (not nothing)
    assert type_fault("add", {"a": 1, "b": 2.5}) is None
    assert type_fault("add", {"a": True, "b": 2.5}) == (
        "add: a = True: input should be a valid number"
    )
    assert type_fault("mean", {"numbers": [1, "2"]}) == (
        "mean: numbers.1 = '2': input should be a valid number"
    )
    assert type_fault("edit_ticket", {"ticket_id": 1, "updates": {"priority": 2}}) is None
    assert type_fault("edit_ticket", {"ticket_id": 1, "updates": {"priority": "2"}}) is not None
    # The one ground truth that breaks its own document, in each category.
    broken = [
        (record.id, call.name)
        for record in records("base")
        for turn in record.calls
        for call in turn
        if type_fault(call.name, call.arguments) is not None
    ]
    assert [name for _, name in broken] == ["close_ticket"]


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_time_limit_is_above_zero(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"env.call_seconds = .*: must be above 0"):
        BfclEnv(call_seconds=seconds)


# --- tools that cannot hang, leak or reach out ----------------------------------------------


def endless(files: Toolbox) -> None:
    """A tree in which every directory holds its elder twice: 2^40 paths."""
    files.run(ToolCall("mkdir", {"dir_name": "a0"}))
    files.run(ToolCall("mkdir", {"dir_name": "b0"}))
    for level in range(40):
        for call in (
            ToolCall("mkdir", {"dir_name": f"a{level + 1}"}),
            ToolCall("mv", {"source": f"a{level}", "destination": f"a{level + 1}"}),
            ToolCall("mv", {"source": f"b{level}", "destination": f"a{level + 1}"}),
            ToolCall("cp", {"source": f"a{level + 1}", "destination": f"b{level + 1}"}),
        ):
            assert files.run(call).carried_out


def test_a_call_that_does_not_end_is_ended() -> None:
    files = tools("GorillaFileSystem")
    endless(files)
    for name in ("find", "du"):
        answer = files.run(ToolCall(name, {}))
        assert answer == (f"{FAILED}{name} took longer than 0.2 s", False, True)
    assert sys.gettrace() is None
    assert files.run(ToolCall("pwd", {})).carried_out


def test_a_call_that_does_not_end_is_ended_in_any_thread() -> None:
    files = tools("GorillaFileSystem")
    endless(files)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(files.run(ToolCall("du", {})).text))
    thread.start()
    thread.join(timeout=60)
    assert answers == [f"{FAILED}du took longer than 0.2 s"]


def test_a_comparison_that_does_not_end_is_a_difference() -> None:
    here, there = tools("GorillaFileSystem"), tools("GorillaFileSystem")
    assert here.same_state(there)
    for files in (here, there):
        endless(files)
    assert not here.same_state(there)
    loop, other = tools("GorillaFileSystem"), tools("GorillaFileSystem")
    for files in (loop, other):
        files.run(ToolCall("mkdir", {"dir_name": "a"}))
        files.run(ToolCall("cp", {"source": "a", "destination": "a"}))
    assert "recursion" in loop.run(ToolCall("find", {})).text
    assert not loop.same_state(other)


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("power", {"base": 10, "exponent": 10**10}),
        ToolCall("power", {"base": -7, "exponent": 10**9}),
        ToolCall("square_root", {"number": 2, "precision": 10**9}),
        ToolCall("logarithm", {"value": 2, "base": 3, "precision": 10**9}),
        ToolCall("logarithm", {"value": 2, "base": 3, "precision": 1e12}),
        ToolCall("logarithm", {"value": 2, "base": 3, "precision": "1000000000"}),
        ToolCall("round_number", {"number": 5, "decimal_places": -(10**9)}),
    ],
)
def test_large_numbers_do_not_take_the_memory(call: ToolCall) -> None:
    answer = tools("MathAPI").run(call)
    if call.name == "round_number":
        assert answer.text == '{"result": 0}'
    else:
        assert "digits" in answer.text


def test_precision_is_a_calls_own() -> None:
    before = decimal.getcontext().prec, mpmath.mp.dps
    math = tools("MathAPI")
    root = math.run(ToolCall("square_root", {"number": 2, "precision": 40})).text
    assert root == "{'result': Decimal('1.414213562373095048801688724209698078570')}"
    log = math.run(ToolCall("logarithm", {"value": 100, "base": 3, "precision": 10})).text
    assert log == "{'result': mpf('4.191806548566')}"
    assert (decimal.getcontext().prec, mpmath.mp.dps) == before


def test_lists_in_answers_have_an_order() -> None:
    """The package prints sets, whose order differs from process to process."""
    travel = Toolbox(
        ["TravelAPI", "TicketAPI"],
        {
            "TravelAPI": {"access_token": "t", "credit_card_list": {"c": {"balance": 1}}},
            "TicketAPI": {"ticket_queue": [{"id": 1}]},
        },
        long_context=False,
        seconds=None,
        strict_types=False,
    )
    flight = {"travel_from": "SFO", "travel_to": "LAX", "travel_date": "2026-01-01"}
    booked = travel.run(
        ToolCall(
            "book_flight", {"access_token": "t", "card_id": "c", "travel_class": "cargo", **flight}
        )
    )
    assert "{'business', 'economy', 'first'}" in booked.text
    edited = travel.run(
        ToolCall("edit_ticket", {"ticket_id": 1, "updates": dict.fromkeys("dacb", 1)})
    )
    assert edited.text == '{"error": "Invalid fields for update: a, b, c, d"}'


def globals_of_the_package() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in MODULES:
        module = vars(import_module(f"{SOURCES}.{name}"))
        found |= {f"{name}.{key}": value for key, value in module.items() if key.isupper()}
        for kind in [value for value in module.values() if isinstance(value, type)]:
            for key, value in vars(kind).items():
                if callable(value) and not key.startswith("__"):
                    found[f"{name}.{kind.__name__}.{key}"] = getattr(value, "__defaults__", None)
    return copy.deepcopy(found)


def test_nothing_of_an_episode_stays_in_the_package() -> None:
    before = globals_of_the_package()
    assert before["posting_api.TwitterAPI.post_tweet"] == ([], [])
    for category in CATEGORIES:
        for index in range(0, 200, 7):
            play(WORLD.task(category, index), records(category)[index].calls)
    posting = tools("TwitterAPI")
    post = ToolCall("post_tweet", {"content": "a"})
    posting.run(ToolCall("authenticate_twitter", {"username": "john", "password": "john123"}))
    posting.run(post)
    mention = {"tweet_id": 0, "mentioned_usernames": ["@b"]}
    assert posting.run(ToolCall("mention", mention)).carried_out
    assert '"mentions": []' in posting.run(post).text
    vehicle = tools("VehicleControlAPI", long_context=True)
    weather = vehicle.run(ToolCall("get_outside_temperature_from_google", {}))
    assert '"outsideTemperature"' in weather.text
    travel = tools("TravelAPI", long_context=True)
    names = documents()["TravelAPI"]["authenticate_travel"].parameters["required"]
    token = travel.run(ToolCall("authenticate_travel", dict.fromkeys(names, "a")))
    booking = next(iter(before["long_context.BOOKING_RECORD_EXTENSION"]))
    cancel = {"access_token": json.loads(token.text)["access_token"], "booking_id": booking}
    assert travel.run(ToolCall("cancel_booking", cancel)).carried_out
    assert globals_of_the_package() == before


def test_tools_do_not_change_the_calls_they_are_given() -> None:
    posting = tools("TwitterAPI")
    posting.run(ToolCall("authenticate_twitter", {"username": "john", "password": "john123"}))
    post = ToolCall("post_tweet", {"content": "a", "mentions": ["@a"]})
    posting.run(post)
    posting.run(ToolCall("mention", {"tweet_id": 0, "mentioned_usernames": ["@b"]}))
    assert post.arguments["mentions"] == ["@a"]


def test_episodes_in_threads_come_to_the_same_verdicts() -> None:
    def verdict(index: int) -> tuple[str | None, str | None]:
        gold = records("base")[index].calls
        right = play(WORLD.task("base", index), gold).verdict.error
        wrong = play(WORLD.task("base", index), [turn[1:] for turn in gold]).verdict.error
        return right, wrong

    indices = range(0, 200, 5)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(verdict, indices)) == [verdict(index) for index in indices]


def test_the_tool_classes_have_no_way_out() -> None:
    """In the sources: nothing that runs code, opens files or talks to the system is used."""
    for name in MODULES:
        tree = ast.parse(Path(str(import_module(f"{SOURCES}.{name}").__file__)).read_text())
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert imported <= {"datetime", "math", "mpmath", "random", "subprocess"}
        assert "subprocess" not in imported or name == "gorilla_file_system"
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        forbidden = {"eval", "exec", "compile", "open", "input", "globals", "setattr", "getattr"}
        # getattr and vars only where two objects of the same class are compared.
        allowed = (
            {"getattr"} if name in ("message_api", "travel_booking", "vehicle_control") else {""}
        )
        assert not used & (forbidden | {"__import__", "breakpoint", "subprocess"}) - allowed, name


def test_playing_tasks_touches_neither_files_nor_network_nor_processes() -> None:
    """Watched by Python's audit hook, in a process of its own since a hook stays for good."""
    program = textwrap.dedent(
        """
        import sys
        from toolrl_box.envs.bfcl import CATEGORIES, BfclEnv
        from toolrl_box.envs.bfcl_package import documents

        world = BfclEnv()

        def play():
            seen = set()
            for category in CATEGORIES:
                for index in range(0, 200, 4):
                    task = world.task(category, index)
                    seen |= set(task.target["classes"])
            assert seen == set(documents()), seen

        play()  # what is imported or read once
        events = set()
        sys.addaudithook(lambda event, arguments: events.add(event))
        play()
        outside = ("open", "os.", "socket.", "subprocess.", "exec", "compile", "import", "shutil.")
        print(sorted(event for event in events if event.startswith(outside)))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- a run ----------------------------------------------------------------------------------


def test_the_world_sets_what_a_run_needs() -> None:
    config = load(options={"env": "bfcl"})
    assert config.model.name == "smollm2"
    assert config.grpo.lr == 1e-5  # that model's own
    assert config.rollout.max_messages == 30
    assert config.rollout.max_tokens == 8192
    assert len(documents()) == 8
    assert sum(len(specs) for specs in documents().values()) == 128
