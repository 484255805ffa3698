"""Whatever a file holds, reading it ends, names the damage and raises nothing."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolrl_box.diagnose.readers import READERS, Source
from toolrl_box.diagnose.readers._open import head
from toolrl_box.diagnose.readers._values import values
from toolrl_box.diagnose.records import Damage, LoggedRollout, Record
from toolrl_box.diagnose.sources import detect, read

LOGS = Path(__file__).parent.parent / "data" / "logs"
ROLLOUT = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
    "reward": 1.0,
    "step": 1,
}
LINE = json.dumps(ROLLOUT).encode() + b"\n"
SCRATCH = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def source(path: Path, limit: int = 1 << 20) -> Source:
    return Source(path, (path.name,), head(path), limit)


def damage(records: Iterator[Record]) -> list[str]:
    return [record.reason for record in records if isinstance(record, Damage)]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", LINE + b'{"messages": [\n' + LINE)
    found = list(read([path]))
    assert [type(record) for record in found] == [LoggedRollout, Damage, LoggedRollout]
    assert str(found[1].origin) == f"{path}:2"  # type: ignore[union-attr]
    assert found[2].origin.line == 3  # type: ignore[union-attr]


def test_a_line_above_the_limit_is_skipped_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(LINE + b'{"messages": "')
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + LINE)
    tracemalloc.start()
    found = list(detect([path], limit=1 << 20).records())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(record) for record in found] == [LoggedRollout, Damage, LoggedRollout]
    assert damage(iter(found)) == ["a line of 50.0 MB is longer than 1.0 MB"]
    assert peak < 10 << 20


def test_a_message_of_50_mb_is_read_when_the_limit_allows(tmp_path: Path) -> None:
    said = "x" * (50 << 20)
    line = b'{"messages": [{"role": "assistant", "content": "%s"}]}\n' % said.encode()
    [record] = read([written(tmp_path / "a.jsonl", line)])
    assert isinstance(record, LoggedRollout)
    assert record.messages[0].text == said


def test_a_list_item_above_the_limit_ends_the_file_with_damage(tmp_path: Path) -> None:
    rows = [{**ROLLOUT, "note": "x" * size} for size in (10, 400_000, 10)]
    path = written(tmp_path / "a.json", json.dumps(rows).encode())
    found = list(READERS["chat"].read(source(path, limit=100_000)))
    assert [type(record) for record in found] == [LoggedRollout, Damage]
    assert damage(iter(found)) == ["a value is longer than 0.1 MB; what follows is not read"]


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"messages":[{"role":"user","content":['])
@pytest.mark.parametrize("name", ["chat", "tau-bench", "verifiers", "scalars", "trainer_state"])
def test_deep_nesting_is_damage(tmp_path: Path, name: str, opening: bytes) -> None:
    path = written(tmp_path / "a.jsonl", opening * 100_000 + b"\n")
    assert damage(READERS[name].read(source(path)))


def test_deep_arguments_are_damage_and_deep_schemas_are_left_out(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    call = {"function": {"name": "f", "arguments": deep}}
    said = {"role": "assistant", "tool_calls": [call]}
    tool = {"function": {"name": "f", "parameters": deep}}
    rows = [{"messages": [said]}, {**ROLLOUT, "tools": [tool]}]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    broken, whole = read([path])
    assert damage(iter([broken])) == ["nested too deeply"]
    assert isinstance(whole, LoggedRollout)
    assert whole.tools == ()


def test_invalid_utf8_and_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    lines = [
        LINE.replace(b"hello", b"a\xff\xfeb"),
        LINE.replace(b"hello", b"c\\ud83dd \\ud83d\\ude00"),
    ]
    first, second = read([written(tmp_path / "a.jsonl", b"".join(lines))])
    assert isinstance(first, LoggedRollout)
    assert isinstance(second, LoggedRollout)
    assert first.messages[1].text == "a��b"
    assert second.messages[1].text == "c�d 😀"


def test_a_byte_order_mark_and_crlf_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n") + b"\r\n   \r\n" + LINE.rstrip()
    found = list(read([written(tmp_path / "a.jsonl", data)]))
    assert [record.origin.line for record in found if isinstance(record, LoggedRollout)] == [1, 4]


def test_numbers_that_no_float_holds_are_taken_as_far_as_they_go(tmp_path: Path) -> None:
    rewards = ["NaN", "1e999", "1" + "0" * 400, '"1.0"', "true", "1" * 5000]
    lines = [LINE.replace(b"1.0", reward.encode()) for reward in rewards]
    found = list(read([written(tmp_path / "a.jsonl", b"".join(lines))]))
    shown = [str(record.reward) for record in found if isinstance(record, LoggedRollout)]
    assert shown == ["nan", "inf", "inf", "None", "1.0"]
    assert len(damage(iter(found))) == 1  # more digits than Python converts


def test_path_like_ids_are_only_text(tmp_path: Path) -> None:
    row = {**ROLLOUT, "id": "../../etc/passwd", "model": "/etc/shadow", "group": "\0"}
    [record] = read([written(tmp_path / "a.jsonl", json.dumps(row).encode())])
    assert isinstance(record, LoggedRollout)
    assert (record.id, record.model, record.group) == ("../../etc/passwd", "/etc/shadow", "\0")


@pytest.mark.parametrize("packer", ["gz", "zst"])
def test_a_truncated_packed_file_gives_what_it_holds_and_damage(
    tmp_path: Path, packer: str
) -> None:
    plain = b"".join(LINE.replace(b"hello", str(n * 7919 % 10007).encode()) for n in range(20_000))
    packed = gzip.compress(plain) if packer == "gz" else pa.compress(plain, "zstd", asbytes=True)
    path = written(tmp_path / f"a.jsonl.{packer}", packed[: len(packed) * 2 // 3])
    found = list(read([path]))
    assert sum(isinstance(record, LoggedRollout) for record in found) > 1000
    assert any("cannot be read on" in reason for reason in damage(iter(found)))


@pytest.mark.parametrize("packer", ["gz", "zst"])
def test_packed_files_read_like_plain_ones_also_without_the_ending(
    tmp_path: Path, packer: str
) -> None:
    pack = gzip.compress if packer == "gz" else lambda data: pa.compress(data, "zstd", asbytes=True)
    data = pack(LINE) + pack(LINE)  # files put together, as `cat` does
    for name in (f"7.jsonl.{packer}", "7.jsonl"):
        found = list(read([written(tmp_path / name, data)]))
        assert [record.origin.line for record in found if isinstance(record, LoggedRollout)] == [
            1,
            2,
        ]


@pytest.mark.parametrize("name", READERS)
def test_an_empty_file_has_no_records(tmp_path: Path, name: str) -> None:
    found = list(READERS[name].read(source(written(tmp_path / "a", b""))))
    assert all(isinstance(record, Damage) for record in found)


@pytest.mark.parametrize("name", READERS)
@given(
    data=st.binary(max_size=300),
    start=st.sampled_from(
        [
            b"",
            b"{",
            b"[",
            b"PAR1",
            b"\x1f\x8b\x08",
            b"step,reward\n",
            b"User: ",
            b"\x28\xb5\x2f\xfd",
        ]
    ),
)
@SCRATCH
def test_arbitrary_bytes_never_raise(tmp_path: Path, name: str, data: bytes, start: bytes) -> None:
    path = written(tmp_path / "a.jsonl", start + data)
    reader = READERS[name]
    reader.fits(source(path))
    for record in reader.read(source(path)):
        assert record is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
EXAMPLES = {
    "verl": "verl/rollouts/9.jsonl",
    "verl-tool": "verl_tool/verl_step_records/torl-run/torl-step-3.json",
    "verifiers": "verifiers/results.jsonl",
    "prime-rl": "prime_rl/rollouts/step_2/train/traces.jsonl",
    "tau-bench": "tau_bench/tool-calling-small-0.0_range_0-2.json",
    "bfcl": "bfcl/small/multi_turn/BFCL_v4_multi_turn_base_result.json",
    "chat": "chat/rollouts.jsonl",
    "scalars": "verl/metrics.jsonl",
    "trainer_state": "trl/text/checkpoint-3/trainer_state.json",
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something else could stand."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


@pytest.mark.parametrize("name", EXAMPLES)
@given(data=st.data())
@SCRATCH
def test_a_record_with_anything_in_any_place_never_raises(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    text = (LOGS / EXAMPLES[name]).read_text()
    row = json.loads(text) if name == "trainer_state" else None
    if row is None:
        row = json.loads(text)[0] if text.startswith("[") else json.loads(text.splitlines()[0])
    row = copy.deepcopy(row)
    *way, last = data.draw(st.sampled_from(list(places(row))))
    target = row
    for key in way:
        target = target[key]
    target[last] = data.draw(JSON)
    path = written(tmp_path / "a.jsonl", json.dumps(row).encode())
    READERS[name].fits(source(path))
    for record in READERS[name].read(source(path)):
        assert record is not None


@pytest.mark.parametrize("column", ["prompt", "completion", "advantage", "step", "messages"])
@pytest.mark.parametrize(
    "values",
    [[1], ["x"], [None], [[1]], [[{"role": 1}]], [[{"role": "user", "content": [1]}]], [b"\xff"]],
)
def test_parquet_columns_of_odd_types_never_raise(
    tmp_path: Path, column: str, values: list[Any]
) -> None:
    for name, example in (
        ("trl", "trl/tools/completions/completions_00001.parquet"),
        ("toolrl", "toolrl/rollouts/step_000001.parquet"),
    ):
        table = pq.read_table(LOGS / example).slice(0, 1)
        if column not in table.column_names:
            continue
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
        path = tmp_path / "completions_00001.parquet"
        pq.write_table(table, path)
        READERS[name].fits(source(path))
        assert len(list(READERS[name].read(source(path)))) == 1


def test_a_trace_whose_branches_would_fill_the_memory_is_damage(tmp_path: Path) -> None:
    message = {"role": "user", "content": ""}
    chain = [{"parent": at - 1 if at else None, "message": message} for at in range(2000)]
    leaves = [{"parent": 1999, "message": message}] * 2000
    row = {"task": {}, "nodes": chain + leaves}
    path = written(tmp_path / "traces.jsonl", json.dumps(row).encode())
    assert damage(read([path])) == ["branches of 4002000 messages are more than 100000"]


def test_a_trace_with_a_circle_is_damage(tmp_path: Path) -> None:
    message = {"role": "user", "content": ""}
    row = {"task": {}, "nodes": [{"parent": 1, "message": message}, {"parent": 0}]}
    path = written(tmp_path / "traces.jsonl", json.dumps(row).encode())
    assert damage(read([path])) == ["node 0 has parent 1, which is not before it"]


@pytest.mark.parametrize("said", ["\nuser\n", "<|im_end|>", "<|im_start|>", "---\n", "[INST] "])
def test_a_megabyte_of_markers_is_read_in_linear_time(tmp_path: Path, said: str) -> None:
    row = {"prompt": "q", "response": said * 200_000, "tool_interact_info": [{"obs": "x"}] * 50}
    path = written(tmp_path / "a.jsonl", json.dumps(row).encode())
    start = time.process_time()
    assert list(READERS["verl-tool"].read(source(path, limit=1 << 24)))
    assert time.process_time() - start < 5


def test_a_truncated_parquet_file_is_damage(tmp_path: Path) -> None:
    data = (LOGS / "trl/text/completions/completions_00001.parquet").read_bytes()
    path = written(tmp_path / "completions_00001.parquet", data[: len(data) // 2])
    assert damage(READERS["trl"].read(source(path)))


def test_a_hundred_thousand_records_are_not_held(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"messages": []}\n' * 100_000)
    records = read([path], "chat")
    tracemalloc.start()
    traced = sum(1 for _ in itertools.islice(records, 10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert traced + sum(1 for _ in records) == 100_000


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=9), JSON, max_size=4), max_size=6),
    indent=st.sampled_from([None, 0, 4]),
    size=st.sampled_from([0, 40_000, 70_000]),
)
@SCRATCH
def test_a_list_is_read_as_the_standard_library_reads_it(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None, size: int
) -> None:
    for row in rows:
        row["filler"] = "\n]},[{" * (size // 6)
    text = json.dumps(rows, indent=indent)
    found = list(values(source(written(tmp_path / "a.json", text.encode()))))
    again = [item[1] for item in found if not isinstance(item, Damage)]
    assert [json.dumps(json.loads(item)) for item in again] == [json.dumps(row) for row in rows]
    lines = text.split("\n")
    assert all("{" in lines[item[0].line - 1] for item in found if not isinstance(item, Damage))


@pytest.mark.parametrize(
    "text", ["[1 2]", '[{"a": 1}', '[{"a": 1}}', '{"a"', '[{"a": tru', "]", ",", "[,", "1e"]
)
def test_a_broken_list_ends_with_damage_or_nothing(tmp_path: Path, text: str) -> None:
    reader = READERS["tau-bench"]
    found = list(reader.read(source(written(tmp_path / "a.json", text.encode()))))
    assert all(isinstance(record, Damage) for record in found)
