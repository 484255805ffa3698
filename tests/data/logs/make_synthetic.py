"""Writes the logs of frameworks that are not run here, each by the schema its reader cites.

    python tests/data/logs/make_synthetic.py tests/data/logs

Invented dialogues, a few rollouts a format; every file shows what is special in its framework.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SYSTEM = (
    "You are a helpful assistant.\n\n# Tools\n\nYou may call one or more functions to assist with "
    "the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:"
    '\n<tools>\n{"type": "function", "function": {"name": "weather", "description": "Weather in a '
    'city.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, '
    '"required": ["city"]}}}\n</tools>\n\nFor each function call, return a json object.'
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
FLAT_TOOL = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro'
RESULT = '{"sky": "clear", "celsius": 21}'
ASK, ANSWER = "What is the weather in Rome?", "Clear, 21 degrees."


def lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def document(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")


def call(arguments: str = '{"city": "Rome"}', *, flat: bool = False) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": "call_1", "type": "function"} | (function if flat else {"function": function})


def native(arguments: str = '{"city": "Rome"}', *, flat: bool = False) -> list[dict[str, Any]]:
    return [
        {"role": "assistant", "content": None, "tool_calls": [call(arguments, flat=flat)]},
        {"role": "tool", "tool_call_id": "call_1", "content": RESULT},
        {"role": "assistant", "content": ANSWER},
    ]


PROMPT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASK}]


def verl(root: Path) -> None:
    source = f"system\n{SYSTEM}\nuser\n{ASK}\nassistant\n"
    good = f"{CALL}\nuser\n<tool_response>\n{RESULT}\n</tool_response>\nassistant\n{ANSWER}"
    for step, outputs in ((9, [good, ANSWER]), (10, [good, BROKEN])):
        rows = [
            {"input": source, "output": output, "gts": "21", "score": score, "step": step}
            | {"acc": score > 0, "format": 1.0, "request_id": f"r{step}-{index}"}
            for index, (output, score) in enumerate(zip(outputs, (1.0, -1.0), strict=True))
        ]
        lines(root / "rollouts" / f"{step}.jsonl", rows)
    figures = {"actor/entropy": 0.3, "actor/grad_norm": 1.5, "critic/score/mean": 0.0}
    figures |= {"response_length/mean": 40.0, "response_length/clip_ratio": 0.25}
    lines(root / "metrics.jsonl", [{"step": step, "data": figures} for step in (9, 10)])
    (root / "checkpoints" / "global_step_10" / "actor").mkdir(parents=True, exist_ok=True)
    (root / "checkpoints" / "global_step_10" / "data.pt").write_bytes(b"not read")


def verl_tool(root: Path) -> None:
    start, end = "<|im_start|>", "<|im_end|>"
    prompt = f"{start}system\n{SYSTEM}{end}\n{start}user\n{ASK}{end}\n{start}assistant\n"
    code = "I compute it.\n```python\nprint(20 + 1)\n```\n"
    seen = "```output\n21\n```\n"
    turns = f"{CALL}{end}\n{start}user\n{RESULT}{end}\n{start}assistant\n{ANSWER}{end}"
    common = {"data_source": "weather", "prompt": prompt, "ground_truth": "21"}
    rows = [
        {"id": "q1", **common, "response": f"{code}{seen}The answer is 21.{end}"}
        | {"score": {"accuracy": 1, "score": 1.0}, "reward": 1.0}
        | {
            "tool_interact_info": [
                {"trajectory_id": "t1", "action": code, "obs": seen, "done": False}
                | {"valid_action": 1, "finish": False, "invalid_reason": None},
                {"trajectory_id": "t1", "action": None, "obs": "", "done": True}
                | {"valid_action": 0, "finish": True, "invalid_reason": None},
            ]
        },
        {"id": "q2", **common, "response": turns, "score": {"accuracy": 0, "score": -1.25}}
        | {"reward": -1.25, "tool_interact_info": [{"action": CALL, "obs": RESULT}]},
    ]
    document(root / "verl_step_records" / "torl-run" / "torl-step-3.json", rows)


def verifiers(root: Path) -> None:
    said = native()
    said[0]["tool_calls"] = [json.dumps(call(flat=True))]
    base = {"example_id": 7, "prompt": PROMPT, "timing": {}, "is_completed": True}
    rows = [
        {**base, "completion": said, "reward": 1.0, "is_truncated": False}
        | {"metrics": {"right": 1.0}, "right": 1.0, "tool_defs": [FLAT_TOOL]}
        | {"token_usage": {"input_tokens": 120.0, "output_tokens": 30.0}},
        {**base, "completion": [{"role": "assistant", "content": BROKEN}], "reward": 0.0}
        | {"is_truncated": True, "metrics": {"right": 0.0}, "right": 0.0}
        | {"tool_defs": [FLAT_TOOL], "stop_condition": "max_tokens"},
    ]
    lines(root / "results.jsonl", rows)
    lines(root / "eval" / "traces.jsonl", [episode(None)])


def episode(step: int | None) -> dict[str, Any]:
    """One episode whose trace has two branches: after the call, two answers were sampled."""
    said = native(flat=True)

    def node(parent: int | None, message: Any, **more: Any) -> dict[str, Any]:
        return {"parent": parent, "message": message, "sampled": False, "timestamp": 0.0, **more}

    def own(parent: int, message: Any, logprobs: list[float]) -> dict[str, Any]:
        mask = [False] + [True] * len(logprobs)
        return (
            node(parent, message)
            | {"sampled": True, "mask": mask, "logprobs": logprobs}
            | {
                "token_ids": list(range(len(mask))),
                "advantages": [0.5] * len(logprobs),
            }
        )

    nodes = [
        node(None, PROMPT[0]),
        node(0, PROMPT[1]),
        own(1, said[0], [-0.1, -0.2]),
        node(2, said[1], token_ids=[1, 2, 3, 4], mask=[False, False, False, True]),
        own(3, said[2], [-0.3]),
        own(3, {"role": "assistant", "content": "Clear, 2"}, [-0.7]),
    ]
    trace = {
        "version": 1,
        "id": "trace-1",
        "task": {"type": "WeatherTask", "data": {"idx": 0}},
        "agent": {"config": {}, "name": "agent", "trainable": True},
        "tools": [FLAT_TOOL],
        "nodes": nodes,
        "calls": [
            {"node": index, "model": "small", "finish_reason": reason}
            for index, reason in ((2, "tool_calls"), (4, "stop"), (5, "length"))
        ],
        "rewards": {"right": {"score": 1.0, "weight": 2.0}, "short": {"score": 0.5}},
        "metrics": {"turns": 2.0},
        "is_completed": True,
        "ok": True,
    }
    whole = {"id": "episode-1", "env": {"id": "weather"}, "task": trace["task"], "traces": [trace]}
    whole |= {"group": {"id": "group-1"}, "ok": True}
    if step is not None:
        whole["run"] = {"type": "train", "id": "run-1", "work": {"type": "train", "step": step}}
    return whole


def prime_rl(root: Path) -> None:
    for step in (2, 11):
        lines(root / "rollouts" / f"step_{step}" / "train" / "traces.jsonl", [episode(step)])
    (root / "weights" / "step_2").mkdir(parents=True, exist_ok=True)
    (root / "weights" / "step_2" / "STABLE").write_text("")


def chat(root: Path) -> None:
    rows = [
        {"messages": [*PROMPT, *native()], "tools": [TOOL], "reward": 1, "step": 1, "id": "a"},
        {"messages": [*PROMPT, *native('{"city": "Ro')], "tools": [TOOL], "reward": 0, "step": 2}
        | {"finish_reason": "length", "category": "base", "model": "small"},
        {"messages": [*PROMPT, {"role": "assistant", "content": CALL}], "step": 3}
        | {"rewards": {"task": 1.0, "format": 0.5}},
    ]
    lines(root / "rollouts.jsonl", rows)


def tau_bench(root: Path) -> None:
    info = {
        "task": {"user_id": "u", "actions": [{"name": "weather", "kwargs": {"city": "Rome"}}]},
        "reward_info": {"reward": 1.0, "info": {"r_actions": 1.0, "gt_data_hash": "0"}},
    }
    prompt = [{"role": "system", "content": "# Policy"}, {"role": "user", "content": ASK}]
    rows = [
        {"task_id": 0, "reward": 1.0, "info": info, "traj": [*prompt, *native()], "trial": 0},
        {"task_id": 1, "reward": 0.0, "info": {"error": "…"}, "traj": prompt, "trial": 0},
    ]
    document(root / "tool-calling-small-0.0_range_0-2.json", rows)


def bfcl(root: Path) -> None:
    turn = {
        "begin_of_turn_query": [{"role": "user", "content": ASK}],
        "step_0": [
            {"role": "assistant", "content": [{"weather": '{"city": "Rome"}'}]},
            {"role": "handler_log", "content": "Successfully decoded model response."},
            {"role": "tool", "content": RESULT},
        ],
        "step_1": [{"role": "assistant", "content": ANSWER}],
    }
    state = [{"role": "state_info", "class_name": "Weather", "content": {}}]
    rows = [
        {"id": "multi_turn_base_3", "result": [[[{"weather": '{"city": "Rome"}'}], ANSWER]]}
        | {"inference_log": [state, turn, state], "input_token_count": [[90, 120]]},
        {"id": "multi_turn_base_4", "result": [["[weather(city='Rome')]", ANSWER]]},
    ]
    path = root / "small" / "multi_turn" / "BFCL_v4_multi_turn_base_result.json"
    lines(path, rows)
    single = path.parent.parent / "non_live" / "BFCL_v4_simple_python_result.json"
    lines(single, [{"id": "simple_python_0", "result": [{"weather": '{"city": "Rome"}'}]}])


def scalars(root: Path) -> None:
    rows = ["step,reward,kl,entropy,grad_norm,note", "1,0.5,0.01,1.2,0.3,", "2,0.4,nan,1.0,9.5,x"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "metrics.csv").write_text("\n".join(rows) + "\n")
    figures = {"reward": 0.5, "completions/mean_length": 30.0, "name": "left out"}
    lines(root / "metrics.jsonl", [{"global_step": step, **figures} for step in (1, 2)])


def transcript(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    start, end = "<|im_start|>", "<|im_end|>"
    dialogue = "".join(
        f"{start}{role}\n{text}{end}\n"
        for role, text in (
            ("system", SYSTEM),
            ("user", ASK),
            ("assistant", CALL),
            ("user", f"<tool_response>\n{RESULT}\n</tool_response>"),
            ("assistant", ANSWER),
        )
    )
    (root / "rendered.txt").write_text(dialogue + dialogue)
    headed = f"User: {ASK}\nAssistant: {CALL}\nTool: {RESULT}\nAssistant: {ANSWER}\n"
    (root / "headed.txt").write_text(f"{headed}---\n{headed}")
    (root / "messages.txt").write_text(f"{CALL}\n---\n{BROKEN}\n---\n{ANSWER}\n")


MAKERS = {
    "verl": verl,
    "verl_tool": verl_tool,
    "verifiers": verifiers,
    "prime_rl": prime_rl,
    "chat": chat,
    "tau_bench": tau_bench,
    "bfcl": bfcl,
    "scalars": scalars,
    "transcript": transcript,
}

if __name__ == "__main__":
    for name, make in MAKERS.items():
        make(Path(sys.argv[1]) / name)
