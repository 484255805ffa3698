"""The pocket world: gold succeeds, everything that changes the outcome fails, nothing leaks."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from toolrl_box.envs.pocket import (
    CATEGORIES,
    SPLITS,
    SYSTEM,
    PocketEnv,
    execute,
    make_task,
    make_tasks,
    spec,
)
from toolrl_box.envs.pocket_words import COMPOSITES, REPLIES, TOOLS, plugin_names
from toolrl_box.errors import ConfigError
from toolrl_box.types import Environment, Message, Parsed, ParseError, Step, Task, ToolCall

READS = {row.name for row in TOOLS if row.effect in ("get", "arrival")}
MALFORMED = Parsed("", (), 1, (ParseError("invalid_json", 0, 1, "bad"),))


def parsed(message: Message) -> Parsed:
    return Parsed(message.content, message.tool_calls, len(message.tool_calls), ())


def text(content: str = "Done.") -> Message:
    return Message("assistant", content)


def call(name: str, **arguments: object) -> Message:
    return Message("assistant", "", (ToolCall(name, arguments),))


def gold(task: Task) -> list[Message]:
    return [message for message in task.gold if message.role == "assistant"]


def play(task: Task, messages: Iterable[Message], env: PocketEnv = PocketEnv()) -> Step:  # noqa: B008
    """The last step of an episode in which the assistant says ``messages``."""
    episode = env()
    assert episode.reset(task) == task.prompt
    step = Step(())
    for message in messages:
        assert not step.done, "the episode ended early"
        step = episode.step(parsed(message))
    return step


def succeeds(task: Task, messages: Iterable[Message]) -> bool:
    step = play(task, messages)
    assert step.done
    return step.outcome["success"] == 1.0


def calls_of(task: Task) -> list[int]:
    """Places of the calls in :func:`gold`."""
    return [place for place, message in enumerate(gold(task)) if message.tool_calls]


def some_tasks(count: int = 120) -> list[Task]:
    return make_tasks("train", count, 0, CATEGORIES)


def writes(task: Task, message: Message) -> bool:
    return bool(message.tool_calls) and message.tool_calls[0].name not in READS


# --- gold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_gold_dialogues_succeed_and_observe_what_they_say(split: str, category: str) -> None:
    for task in make_tasks(split, 60, 1, (category,)):
        episode = PocketEnv()()
        episode.reset(task)
        written = iter(task.gold)
        step = Step(())
        for message in written:
            assert message.role == "assistant"
            step = episode.step(parsed(message))
            assert list(step.messages) == [next(written) for _ in step.messages]
        assert step.done
        assert step.stop_reason == "done"
        assert step.outcome == {"success": 1.0, "turns_passed": 1.0}


@pytest.mark.parametrize("turns", [1, 3])
def test_gold_succeeds_with_other_numbers_of_turns_and_tools(turns: int) -> None:
    for index in range(40):
        task = make_task("train", f"train-x-{index}", CATEGORIES[index % 4], turns=turns, tools=6)
        assert len(task.target["turns"]) >= turns
        assert succeeds(task, gold(task))


def test_a_dialogue_begins_with_the_system_message_and_every_listed_tool_is_known() -> None:
    for task in some_tasks():
        assert [message.role for message in task.prompt] == ["system", "user"]
        assert task.prompt[0].content == SYSTEM
        assert {tool.name for tool in task.tools} <= task.target["tools"].keys()
        assert len({tool.name for tool in task.tools}) == len(task.tools)


def test_there_are_at_least_twelve_tools_over_many_tables() -> None:
    assert len(TOOLS) >= 12
    assert len({row.table for row in TOOLS}) >= 6


# --- what must fail, and what must not ------------------------------------------------------


def test_dropping_any_call_fails() -> None:
    for task in some_tasks():
        for place in calls_of(task):
            messages = gold(task)
            del messages[place]
            assert not succeeds(task, messages), task.id


def test_a_wrong_argument_fails_whichever_it_is() -> None:
    for task in some_tasks():
        for place in calls_of(task):
            (right,) = gold(task)[place].tool_calls
            for name in right.arguments:
                messages = gold(task)
                messages[place] = call(right.name, **{**right.arguments, name: "nonsuch"})
                assert not succeeds(task, messages), (task.id, right, name)


def test_an_extra_write_fails() -> None:
    tried = 0
    for task in some_tasks():
        for place in calls_of(task):
            (right,) = gold(task)[place].tool_calls
            if right.name in READS or right.name == "cancel_booking" or "count" in right.arguments:
                continue
            extra = dict.fromkeys(right.arguments, "nonsuch")
            messages = gold(task)
            messages.insert(place, call(right.name, **extra))
            assert not succeeds(task, messages), (task.id, extra)
            tried += 1
    assert tried > 50


def test_superfluous_reads_are_free() -> None:
    tried = 0
    for task in some_tasks():
        messages = [
            replace(message, tool_calls=message.tool_calls * 2)
            if message.tool_calls and not writes(task, message)
            else message
            for message in gold(task)
        ]
        tried += messages != gold(task)
        assert succeeds(task, messages)
    assert tried > 20


def test_saying_nothing_but_text_passes_only_the_turns_before_the_first_call_is_due() -> None:
    for task in some_tasks():
        turns = task.target["turns"]
        step = play(task, [text() for _ in turns])
        assert step.done
        idle = next(i for i, turn in enumerate(turns) if turn["calls"])
        assert step.outcome["success"] == 0.0
        assert idle / len(turns) <= step.outcome["turns_passed"] < 1.0


def test_the_wording_of_replies_does_not_matter() -> None:
    for task in some_tasks(40):
        messages = [m if m.tool_calls else text("as you wish") for m in gold(task)]
        assert succeeds(task, messages)


def test_a_call_that_comes_a_turn_too_late_fails() -> None:
    for task in make_tasks("train", 40, 0, ("base",)):
        first = calls_of(task)[0]
        messages = gold(task)
        late = messages.pop(first)
        end = next(i for i, message in enumerate(messages) if not message.tool_calls)
        messages.insert(end + 1, late)
        if len(calls_of(task)) < 4:  # four messages end the turn
            assert not succeeds(task, messages)


# --- categories -----------------------------------------------------------------------------


def test_miss_func_withholds_the_tool_for_one_turn_and_supplies_it_in_the_next() -> None:
    for task in make_tasks("train", 60, 0, ("miss_func",)):
        (supplying,) = [message for message in task.gold if message.tools]
        (late,) = supplying.tools
        at = task.gold.index(supplying)
        assert late.name not in {tool.name for tool in task.tools}
        assert task.gold[at - 1].content in REPLIES["no_tool"]
        assert late.name in {c.name for m in task.gold[at:] for c in m.tool_calls}
        assert late.name not in {c.name for m in task.gold[:at] for c in m.tool_calls}


def refusal(task: Task) -> int:
    """Where gold makes no call because the tool is withheld."""
    return next(i for i, message in enumerate(gold(task)) if message.content in REPLIES["no_tool"])


def test_a_call_that_changes_the_state_while_the_tool_is_withheld_fails() -> None:
    tried = 0
    for task in make_tasks("train", 60, 0, ("miss_func",)):
        tool = next((t for t in task.tools if t.name not in READS | {"cancel_booking"}), None)
        if tool is None:
            continue
        values = {
            name: 1 if schema["type"] == "integer" else "nonsuch"
            for name, schema in tool.parameters["properties"].items()
        }
        messages = gold(task)
        messages.insert(refusal(task), call(tool.name, **values))
        assert not succeeds(task, messages)
        tried += 1
    assert tried > 40


def test_calling_the_withheld_tool_itself_gives_an_error_and_changes_nothing() -> None:
    for task in make_tasks("train", 30, 0, ("miss_func",)):
        (late,) = [tool for message in task.gold for tool in message.tools]
        place = refusal(task)
        eager = next(
            message
            for message in gold(task)[place:]
            if late.name in {c.name for c in message.tool_calls}
        )
        episode = PocketEnv()()
        episode.reset(task)
        for message in gold(task)[:place]:
            episode.step(parsed(message))
        (answer,) = episode.step(parsed(eager)).messages
        assert json.loads(answer.content) == {"error": "unknown tool"}
        messages = gold(task)
        messages.insert(place, eager)
        assert succeeds(task, messages)


def test_miss_param_asks_for_what_the_user_left_out() -> None:
    for task in make_tasks("train", 60, 0, ("miss_param",)):
        (asked,) = [m for m in gold(task) if m.content.startswith("Which ")]
        at = task.gold.index(asked)
        param = asked.content.removeprefix("Which ").removesuffix("?")
        answer = task.gold[at + 1]
        assert answer.role == "user"
        value = answer.content.removesuffix(".")
        (following,) = task.gold[at + 2].tool_calls
        assert str(following.arguments[param]) == value
        request = [m for m in (*task.prompt, *task.gold[:at]) if m.role == "user"][-1]
        assert value not in re.findall(r"\w+", request.content) or value in following.arguments


def test_long_context_lists_many_tools_and_reads_long_results() -> None:
    tasks = make_tasks("train", 60, 0, ("long_context",))
    results = [json.loads(m.content) for task in tasks for m in task.gold if m.role == "tool"]
    assert all(len(task.tools) >= 8 for task in tasks)
    assert all(len(task.tools) <= 5 for task in make_tasks("train", 60, 0, ("base",)))
    assert any(len(result.get("log", [])) == 12 for result in results)


# --- splits and seeds -----------------------------------------------------------------------


def words(task: Task) -> set[str]:
    """Every lower-case word of a task; an underscore separates, so a plugin's name is two."""
    plain = replace(task, id="", category="", target={})
    return set(re.findall(r"[a-z]+", repr(plain) + json.dumps(task.target)))


@pytest.mark.parametrize("foreign", ["ood", "other"])
def test_no_tool_and_no_composite_of_a_foreign_split_occurs_in_any_other(foreign: str) -> None:
    own = set(COMPOSITES[foreign])
    names = {
        name for task in make_tasks(foreign, 100, 0, CATEGORIES) for name in task.target["tools"]
    }
    assert names <= set(plugin_names(foreign))
    assert not own & set(COMPOSITES["train"])
    for split in SPLITS:
        if split == foreign:
            continue
        for task in make_tasks(split, 300, 0, CATEGORIES):
            assert not own & words(task), task.id
            assert not names & task.target["tools"].keys()


@pytest.mark.parametrize("foreign", ["ood", "other"])
def test_foreign_dialogues_speak_only_words_that_no_other_split_knows(foreign: str) -> None:
    for task in make_tasks(foreign, 100, 0, CATEGORIES):
        values = {v for m in task.gold for c in m.tool_calls for v in c.arguments.values()}
        assert values <= set(COMPOSITES[foreign])


def content(task: Task) -> str:
    return repr((task.tools, task.prompt, task.gold))


def test_the_tasks_of_different_splits_and_seeds_differ() -> None:
    pools = [make_tasks(split, 300, 0) for split in SPLITS] + [make_tasks("train", 300, 1)]
    contents = [content(task) for pool in pools for task in pool]
    assert len(set(contents)) == len(contents)
    ids = [task.id for pool in pools for task in pool]
    assert len(set(ids)) == len(ids)


def test_the_same_arguments_give_the_same_tasks_and_a_longer_list_begins_alike() -> None:
    assert make_tasks("train", 30, 7) == make_tasks("train", 30, 7)
    assert make_tasks("train", 30, 7) == make_tasks("train", 50, 7)[:30]
    assert [task.category for task in make_tasks("train", 4, 0, ("base", "miss_func"))] == [
        *("base", "miss_func"),
        *("base", "miss_func"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", 1, 0), r"unknown split 'trian'; did you mean 'train'\?"),
        (("train", 1, 0, ("bse",)), r"unknown category 'bse'; did you mean 'base'\?"),
    ],
)
def test_unknown_splits_and_categories_are_refused(
    arguments: tuple[str, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_tasks(*arguments)


def test_a_target_holds_json_values_only() -> None:
    for task in some_tasks(40):
        restored = json.loads(json.dumps(task.target))
        assert restored == task.target
        assert succeeds(replace(task, target=restored), gold(task))


# --- the turn loop --------------------------------------------------------------------------


def first_of(category: str) -> Task:
    return make_tasks("train", 1, 0, (category,))[0]


def test_a_malformed_call_is_observed_or_ends_the_turn() -> None:
    task = first_of("base")
    observing, skipping = PocketEnv("observe")(), PocketEnv("skip")()
    observing.reset(task)
    skipping.reset(task)
    (observed,) = observing.step(MALFORMED).messages
    (following,) = skipping.step(MALFORMED).messages
    assert observed == Message("tool", '{"error": "bad call"}')
    assert following.role == "user"


def test_beside_a_malformed_call_a_good_one_is_executed_either_way() -> None:
    task = first_of("base")
    good = gold(task)[0].tool_calls
    both = Parsed("", good, 2, MALFORMED.errors)
    for malformed, results in (("observe", 2), ("skip", 1)):
        episode = PocketEnv(malformed)()  # type: ignore[arg-type]
        episode.reset(task)
        messages = episode.step(both).messages
        assert len(messages) == results
        assert "error" not in json.loads(messages[0].content)


def test_a_malformed_call_can_be_made_good_in_the_same_turn() -> None:
    task = first_of("base")
    episode = PocketEnv()()
    episode.reset(task)
    step = episode.step(MALFORMED)
    for message in gold(task):
        step = episode.step(parsed(message))
    assert step.outcome["success"] == 1.0


def test_the_fourth_message_with_a_call_ends_the_episode() -> None:
    step = play(first_of("base"), [call("nothing")] * 4)
    assert (step.done, step.stop_reason) == (True, "max_messages_per_turn")
    assert step.outcome == {"success": 0.0, "turns_passed": 0.0}


def test_every_call_of_a_message_gets_its_result_in_order() -> None:
    task = next(t for t in some_tasks() if gold(t)[0].tool_calls)
    (good,) = gold(task)[0].tool_calls
    three = Message("assistant", "", (ToolCall("nothing", {}), good, ToolCall("nothing", {})))
    results = [json.loads(message.content) for message in play(task, [three]).messages]
    assert results[0] == results[2] == {"error": "unknown tool"}
    assert "error" not in results[1]


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("send_message", {"person": "anna"}, "bad arguments"),
        ("send_message", {"person": "anna", "text": "hi", "more": 1}, "bad arguments"),
        ("send_message", {"person": ["anna"], "text": "hi"}, "bad arguments"),
        ("order_item", {"item": "pens", "count": "3"}, "bad arguments"),
        ("order_item", {"item": "pens", "count": True}, "bad arguments"),
        ("read_note", {"title": "plans"}, "no such title"),
        ("track_order", {"code": "x1"}, "no such code"),
        ("cancel_booking", {"code": "x1"}, "no such code"),
    ],
)
def test_a_bad_call_is_answered_with_what_is_wrong(
    name: str, arguments: dict[str, object], error: str
) -> None:
    row = next(row for row in TOOLS if row.name == name)
    state = {"codes": ["a1"], "log": []}
    assert execute(row, arguments, state) == {"error": error}


def test_a_tools_document_is_a_schema_that_names_every_parameter() -> None:
    for row in TOOLS:
        document = spec(row)
        assert document.name == row.name
        assert document.parameters["required"] == list(row.params)
        assert document.parameters["properties"].keys() == set(row.params)


# --- isolation ------------------------------------------------------------------------------


def spoiled(task: Task) -> Sequence[Message]:
    """Gold with every call said twice: it leaves another state than gold does."""
    return [replace(m, tool_calls=m.tool_calls * 2) for m in gold(task)]


def test_an_episode_leaves_no_trace_in_the_next_or_in_the_task() -> None:
    env = PocketEnv()
    tasks = some_tasks(40)
    before = copy.deepcopy(tasks)
    reused = env()
    for task in tasks:
        play(task, spoiled(task), env)
        reused.reset(task)
        reused.step(parsed(spoiled(task)[0]))
    assert tasks == before
    for task in tasks:
        assert succeeds(task, gold(task))
        reused.reset(task)
        steps = [reused.step(parsed(message)) for message in gold(task)]
        assert steps[-1].outcome["success"] == 1.0
    assert tasks == before == some_tasks(40)


def test_episodes_that_run_side_by_side_do_not_meet() -> None:
    task = first_of("base")
    env: Environment = PocketEnv()()
    other: Environment = PocketEnv()()
    env.reset(task)
    other.reset(task)
    last = Step(())
    for noisy, message in zip(spoiled(task), gold(task), strict=True):
        other.step(parsed(noisy))
        last = env.step(parsed(message))
    assert last.outcome["success"] == 1.0
