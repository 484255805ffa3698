"""What each format gives: roles, prompts, calls, steps, rewards, tools, facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from toolrl_box.diagnose.records import Damage, LoggedCall, LoggedRollout, Record, Scalars
from toolrl_box.diagnose.sources import read
from toolrl_box.types import ToolSpec

LOGS = Path(__file__).parent.parent / "data" / "logs"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro'
RESULT = '{"sky": "clear", "celsius": 21}'
ANSWER = "Clear, 21 degrees."
WEATHER = ToolSpec(
    name="weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    description="Weather in a city.",
)
NATIVE = (LoggedCall("weather", '{"city": "Rome"}'),)


def records(name: str, forced: str | None = None) -> list[Record]:
    return list(read([LOGS / name], forced))


def rollouts(name: str, forced: str | None = None) -> list[LoggedRollout]:
    found = records(name, forced)
    assert not [record for record in found if isinstance(record, Damage)]
    return [record for record in found if isinstance(record, LoggedRollout)]


def scalars(name: str) -> list[Scalars]:
    return [record for record in records(name) if isinstance(record, Scalars)]


def own(rollout: LoggedRollout) -> list[tuple[str, str]]:
    """What follows the prompt."""
    return [(message.role, message.text) for message in rollout.messages[rollout.prompt_length :]]


def roles(rollout: LoggedRollout) -> list[str]:
    return [message.role for message in rollout.messages]


# --- TRL, real ----------------------------------------------------------------------------------


def test_trl_texts_are_split_into_prompt_and_completion() -> None:
    found = rollouts("trl/text")
    assert len(found) == 24
    assert [rollout.step for rollout in found] == [step for step in (1, 2, 3) for _ in range(8)]
    table = pq.read_table(LOGS / "trl/text/completions/completions_00001.parquet").to_pylist()
    for rollout, row in zip(found, table, strict=False):
        assert roles(rollout) == ["system", "user", "assistant"]
        assert rollout.prompt_length == 2
        assert own(rollout) == [("assistant", row["completion"])]
        assert rollout.messages[2].calls is None
        assert rollout.reward_parts == {"exact": row["exact"], "short": row["short"]}
        assert rollout.reward == row["exact"] + row["short"]
        assert rollout.advantage == row["advantage"]
    assert {tool.name for tool in found[0].tools} >= {"write_note"}


def test_trl_rollouts_of_one_prompt_share_a_group() -> None:
    groups = [rollout.group for rollout in rollouts("trl/text")]
    assert [len(set(groups[start : start + 4])) for start in range(0, 24, 4)] == [1] * 6
    assert len(set(groups)) == 6


def test_the_sum_of_trls_rewards_is_the_reward_that_trl_logged() -> None:
    found = rollouts("trl/text")
    for row in scalars("trl/text"):
        logged = [r.reward for r in found if r.step == row.step and r.reward is not None]
        assert sum(logged) / len(logged) == pytest.approx(row.values["reward"], rel=1e-5)


def test_trl_messages_keep_their_structured_calls() -> None:
    found = rollouts("trl/tools")
    assert len(found) == 24
    calls = [
        (message.calls, rollout)
        for rollout in found
        for message in rollout.messages
        if message.role == "assistant"
    ]
    assert all(held is not None for held, _ in calls)
    for held, _ in calls:
        for call in held or ():
            # Without the keys that parquet adds because other rows' objects have them.
            assert None not in json.loads(call.arguments).values()
    whole = [rollout for rollout in found if "tool" in roles(rollout)]
    assert whole
    assert [sum(bool(m.calls) for m in r.messages) for r in found] == [r.reward for r in found]


def test_trainer_state_gives_scalars_under_common_names() -> None:
    found = scalars("trl/text")
    assert [row.step for row in found] == [1, 2, 3]
    common = {"reward", "reward_std", "kl", "entropy", "grad_norm", "clip_fraction", "loss"}
    common |= {"learning_rate", "response_length", "truncated"}
    assert common <= found[0].values.keys()
    assert "rewards/exact/mean" in found[0].values  # what has no common name keeps its own


# --- our own, real ------------------------------------------------------------------------------


def test_our_own_run_folder_is_read() -> None:
    found = rollouts("toolrl")
    assert len(found) == 96
    assert {rollout.prompt_length for rollout in found} == {2}
    assert len({rollout.id for rollout in found}) == 96
    assert len({rollout.group for rollout in found}) == 12
    assert {rollout.category for rollout in found} <= {"base", "miss_func", "miss_param"}
    for rollout in found:
        assert rollout.facts["max_logprob"] <= 0
        assert rollout.facts["response_tokens"] > 0
    rows = {row.step: row.values for row in scalars("toolrl")}
    for step in (1, 2):
        rewards = [r.reward for r in found if r.step == step and r.reward is not None]
        assert sum(rewards) / len(rewards) == pytest.approx(rows[step]["reward"])
    assert "kl" not in rows[1]  # NaN in that table: there was none


def test_an_experts_rollout_is_prompt_altogether(tmp_path: Path) -> None:
    table = pq.read_table(LOGS / "toolrl/rollouts/step_000001.parquet").slice(0, 1)
    at = table.column_names.index("source")
    path = tmp_path / "step_000001.parquet"
    pq.write_table(table.set_column(at, "source", [["expert"]]), path)
    [rollout] = read([path])
    assert isinstance(rollout, LoggedRollout)
    assert rollout.prompt_length == len(rollout.messages)


# --- made by their schemas ----------------------------------------------------------------------


def test_verls_stripped_turns_become_messages() -> None:
    good, answered, _, broken = rollouts("verl")
    assert (good.step, broken.step) == (9, 10)
    assert good.prompt_length == 2
    assert own(good) == [
        ("assistant", CALL),
        ("user", f"<tool_response>\n{RESULT}\n</tool_response>"),
        ("assistant", ANSWER),
    ]
    assert own(broken) == [("assistant", BROKEN)]
    assert (good.reward, broken.reward) == (1.0, -1.0)
    assert good.reward_parts == {"acc": 1.0, "format": 1.0}
    assert good.tools == (WEATHER,)
    assert good.id == "r9-0"
    assert good.group == answered.group


def test_verls_file_logger_gives_scalars() -> None:
    first, _ = scalars("verl")
    assert first.step == 9
    assert first.values == {
        "reward": 0.0,
        "entropy": 0.3,
        "grad_norm": 1.5,
        "response_length": 40.0,
        "truncated": 0.25,
    }


def test_verl_tools_observations_are_told_from_the_models_text() -> None:
    appended, framed = rollouts("verl_tool")
    assert [role for role, _ in own(appended)] == ["assistant", "tool", "assistant"]
    assert own(appended)[1][1] == "```output\n21\n```\n"
    assert [role for role, _ in own(framed)] == ["assistant", "user", "assistant"]
    assert (appended.reward, appended.reward_parts) == (1.0, {"accuracy": 1.0})
    assert (appended.id, appended.step, appended.category) == ("q1", 3, "weather")
    assert appended.facts == {"ended_with_eos": 1.0}


def test_verifiers_results_hold_calls_as_json_text() -> None:
    good, broken = (r for r in rollouts("verifiers") if r.origin.file.name == "results.jsonl")
    assert [message.calls for message in good.messages[2:]] == [NATIVE, None, ()]
    assert good.facts == {"response_tokens": 30.0}
    assert (good.reward, good.reward_parts, good.group) == (1.0, {"right": 1.0}, "7")
    assert good.tools == (WEATHER,)
    assert own(broken) == [("assistant", BROKEN)]
    assert broken.messages[-1].truncated
    # Tools were declared, so the server would have held a call apart.
    assert broken.messages[-1].calls == ()


@pytest.mark.parametrize("name", ["verifiers", "prime_rl"])
def test_each_branch_of_a_trace_is_a_rollout_and_nothing_is_judged_twice(name: str) -> None:
    found = [r for r in rollouts(name) if r.origin.file.name == "traces.jsonl"]
    first, second = found[:2]
    assert roles(first) == roles(second) == ["system", "user", "assistant", "tool", "assistant"]
    assert (first.prompt_length, second.prompt_length) == (2, 4)
    assert not first.messages[-1].truncated
    assert second.messages[-1].truncated
    assert first.messages[2].calls == NATIVE
    assert first.reward == 2.5
    assert first.reward_parts == {"right": 1.0, "short": 0.5, "turns": 2.0}
    assert (first.advantage, first.group, first.category) == (0.5, "group-1", "weather")
    assert (first.model, first.tools) == ("small", (WEATHER,))
    facts = {"response_tokens": 3.0, "max_logprob": -0.1, "observation_in_loss": 0.25}
    assert first.facts == facts


def test_prime_rls_step_is_the_folders() -> None:
    assert [rollout.step for rollout in rollouts("prime_rl")] == [2, 2, 11, 11]


def test_chat_tells_calls_held_apart_from_calls_in_the_text() -> None:
    native, cut, inline = rollouts("chat")
    assert [message.calls for message in native.messages[2:]] == [NATIVE, None, ()]
    assert cut.messages[2].calls == (LoggedCall("weather", '{"city": "Ro'),)
    assert inline.messages[-1].calls is None
    assert [rollout.step for rollout in (native, cut, inline)] == [1, 2, 3]
    assert [rollout.reward for rollout in (native, cut, inline)] == [1.0, 0.0, None]
    assert inline.reward_parts == {"task": 1.0, "format": 0.5}
    assert (native.id, cut.category, cut.model) == ("a", "base", "small")
    assert [message.truncated for message in cut.messages] == [False] * 4 + [True]
    assert native.tools == inline.tools == (WEATHER,)


def one(tmp_path: Path, row: dict[str, Any]) -> LoggedRollout:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    [record] = read([path], "chat")
    assert isinstance(record, LoggedRollout), record
    return record


def test_chat_takes_a_null_for_calls_as_no_sign(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": CALL, "tool_calls": None}
    assert one(tmp_path, {"messages": [said]}).messages[0].calls is None
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert one(tmp_path, {"messages": [said], "tools": tools}).messages[0].calls == ()


def test_chat_reads_parts_older_calls_and_sharegpt(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, "b"]
    call = {"name": "weather", "arguments": {"city": "Róma"}}
    messages = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "clear"},
    ]
    found = one(tmp_path, {"messages": messages})
    assert roles(found) == ["system", "user", "assistant", "tool"]
    assert found.messages[1].text == "ab"
    assert found.messages[2].calls == (LoggedCall("weather", '{"city": "Róma"}'),)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert roles(one(tmp_path, {"conversations": turns})) == ["user", "assistant"]


def test_chat_takes_the_prompt_from_the_record_where_it_stands_apart(tmp_path: Path) -> None:
    shown = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "example"}]
    said = [{"role": "assistant", "content": "a"}]
    assert one(tmp_path, {"prompt": shown, "completion": said}).prompt_length == 2
    assert one(tmp_path, {"prompt": "q", "completion": said}).prompt_length == 1
    assert one(tmp_path, {"completion": said}).prompt_length == 0
    texts = one(tmp_path, {"prompt": "q", "response": "a", "step": 1, "reward": 0.5})
    assert (roles(texts), texts.prompt_length) == (["user", "assistant"], 1)


def test_an_unknown_role_is_damage_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "narrator", "content": ""}]}')
    [record] = read([path])
    assert isinstance(record, Damage)
    assert record.reason.startswith("unknown role 'narrator'; one of: system, ")


def test_tau_benchs_list_is_read_with_the_lines_of_its_items() -> None:
    good, failed = rollouts("tau_bench")
    assert (good.id, good.group, good.reward, good.step) == ("0/0", "0", 1.0, None)
    assert good.reward_parts == {"r_actions": 1.0}
    assert [message.calls for message in good.messages[2:]] == [NATIVE, None, ()]
    assert failed.prompt_length == len(failed.messages) == 2
    text = (LOGS / "tau_bench/tool-calling-small-0.0_range_0-2.json").read_text().splitlines()
    assert '"task_id": 1' in text[failed.origin.line]


def test_bfcls_log_is_a_dialogue_and_its_result_alone_the_models_messages() -> None:
    logged, bare, single = rollouts("bfcl")
    assert [(m.role, m.calls) for m in logged.messages] == [
        ("user", None),
        ("assistant", NATIVE),
        ("tool", None),
        ("assistant", ()),
    ]
    assert (logged.prompt_length, logged.category) == (1, "multi_turn_base")
    assert own(bare) == [("assistant", "[weather(city='Rome')]"), ("assistant", ANSWER)]
    assert [message.calls for message in bare.messages] == [None, None]
    assert [message.calls for message in single.messages] == [NATIVE]


def test_scalars_alone_are_read_from_csv_and_jsonl() -> None:
    csv = [row for row in scalars("scalars") if row.origin.file.suffix == ".csv"]
    assert [row.step for row in csv] == [1, 2]
    assert csv[0].values == {"reward": 0.5, "kl": 0.01, "entropy": 1.2, "grad_norm": 0.3}
    assert csv[1].values["kl"] != csv[1].values["kl"]  # NaN stays: it is evidence
    lines = [row for row in scalars("scalars") if row.origin.file.suffix == ".jsonl"]
    assert lines[0].values == {"reward": 0.5, "response_length": 30.0}


def test_a_csv_line_of_another_length_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('Step,run - reward\n1,0.5\n2\n3,"0.25"\n,1\n')
    found = list(read([path]))
    assert [record.reason for record in found if isinstance(record, Damage)] == [
        "1 cells under a header of 2",
        "no step with figures",
    ]
    assert [(r.step, dict(r.values)) for r in found if isinstance(r, Scalars)] == [
        (1, {"reward": 0.5}),
        (3, {"reward": 0.25}),
    ]


def test_transcripts_are_read_with_marks_with_headings_and_bare() -> None:
    marked = rollouts("transcript/rendered.txt")
    assert [roles(rollout) for rollout in marked] == [
        ["system", "user", "assistant", "user", "assistant"]
    ] * 2
    assert marked[0].tools == (WEATHER,)
    assert marked[1].origin.line > marked[0].origin.line
    headed = rollouts("transcript/headed.txt")
    assert [roles(rollout) for rollout in headed] == [
        ["user", "assistant", "tool", "assistant"]
    ] * 2
    assert own(headed[1]) == [("assistant", CALL), ("tool", RESULT), ("assistant", ANSWER)]
    bare = rollouts("transcript/messages.txt", "transcript")
    assert [own(rollout) for rollout in bare] == [
        [("assistant", CALL)],
        [("assistant", BROKEN)],
        [("assistant", ANSWER)],
    ]


def test_a_rule_inside_a_message_of_a_transcript_separates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("User: q\nAssistant: one\n\n---\n\ntwo\n\n---\nUser: r\nAssistant: three\n")
    first, second = (record for record in read([path]) if isinstance(record, LoggedRollout))
    assert own(first) == [("assistant", "one\n\n---\n\ntwo")]
    assert own(second) == [("assistant", "three")]
