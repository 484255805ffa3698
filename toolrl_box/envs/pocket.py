"""The pocket world: multi-turn, stateful tool episodes small enough for a 0.7M-parameter model.

Job: make seeded tasks (:func:`make_tasks`) and run episodes on them (:class:`PocketEnv`).
Input: a split, categories, a count and a seed. Output: :class:`~toolrl_box.types.Task` with a gold
dialogue that was obtained by *executing* the gold calls.

The turn loop is the paper's (arXiv 2606.26027 §protocol): an assistant message with no closed call
ends the user turn, the next user message arrives, and after the last one the episode is done.
Categories are those of BFCL v3 multi-turn: *base*; *miss_func* (the needed tool's document is
withheld for one turn, where the right move is to make no call, then supplied); *miss_param* (the
user leaves an argument out, the right move is to ask); *long_context* (many tools, long results).

Success is judged by state, never by strings: after every user turn the tables must equal those
that the gold calls leave behind, and every result that gold obtained in the turn must have been
obtained. Superfluous reads are therefore free, superfluous writes are not.

Left out: free-form language (utterances are templates) and any check of the assistant's prose.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jsonschema import Draft202012Validator

from toolrl_box.envs.pocket_words import (
    COMPOSITES,
    DAYS,
    INTENTS,
    KINDS,
    REPLIES,
    Effect,
    Intent,
    Split,
    ToolRow,
    side_of,
    tool_rows,
)
from toolrl_box.errors import unknown
from toolrl_box.types import Message, Parsed, Step, Task, ToolCall, ToolSpec

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
TRAIN_CATEGORIES = ("base", "miss_func", "miss_param")
SPLITS: tuple[Split, ...] = ("pretrain", "train", "heldout", "bank", "ood", "other")
SYSTEM = "You are a helpful assistant."
MAX_MESSAGES_PER_TURN = 4

Malformed = Literal["observe", "skip"]
State = dict[str, Any]
Result = dict[str, Any]


# --- the tools ------------------------------------------------------------------------------


def spec(row: ToolRow) -> ToolSpec:
    """The JSON-schema document of a tool."""
    return ToolSpec(
        name=row.name,
        parameters={
            "type": "object",
            "properties": {p: {"type": _json_type(p)} for p in row.params},
            "required": list(row.params),
        },
    )


def _json_type(param: str) -> str:
    return "integer" if param == "count" else "string"


@lru_cache(maxsize=1024)
def _validator(params: tuple[str, ...]) -> Draft202012Validator:
    schema = dict(spec(ToolRow("", params, "add", "")).parameters)
    return Draft202012Validator({**schema, "additionalProperties": False})


def execute(row: ToolRow, arguments: Mapping[str, Any], state: State) -> Result:
    """Run one call on ``state`` (changed in place) and return its JSON result."""
    if not _validator(row.params).is_valid(dict(arguments)):
        return {"error": "bad arguments"}
    table = state.setdefault(row.table, [] if row.effect == "add" else {})
    values = [arguments[p] for p in row.params]
    key = values[0]
    match row.effect:
        case "set":
            table[key] = values[1]
            return {"ok": True}
        case "add":
            table.append(values)
            return {"ok": True}
        case "get" if key in table:
            return {row.field: table[key], **({"log": state["log"]} if state["log"] else {})}
        case "new":
            code = state["codes"][len(table) % len(state["codes"])]
            table[code] = values
            return {"code": code}
        case "drop" if key in table:
            del table[key]
            return {"ok": True}
        case "arrival" if key in table:
            return {"day": DAYS[int(key[-1]) % len(DAYS)]}
    return {"error": f"no such {row.params[0]}"}


# --- episodes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PocketEnv:
    """Factory of episodes; ``malformed`` says what a closed but unreadable call block does.

    ``observe`` (the paper's loop: only a message with *no* closed call ends the turn): the model
    gets an error result. ``skip``: the message ends the user turn as if it held no call.
    """

    malformed: Malformed = "observe"

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def categories(self) -> tuple[str, ...]:
        return CATEGORIES

    @property
    def train_categories(self) -> tuple[str, ...]:
        return TRAIN_CATEGORIES

    @property
    def formats(self) -> tuple[str, ...]:
        return ("hermes", "pythonic", "xml")

    def tasks(
        self, split: str, count: int, seed: int, categories: Sequence[str] | None = None
    ) -> list[Task]:
        """See :func:`make_tasks`."""
        return make_tasks(split, count, seed, categories)

    def __call__(self) -> PocketEpisode:
        return PocketEpisode(self.malformed)


class PocketEpisode:
    """One episode. Implements :class:`~toolrl_box.types.Environment`."""

    def __init__(self, malformed: Malformed = "observe") -> None:
        self._malformed = malformed

    def reset(self, task: Task) -> tuple[Message, ...]:
        self._turns: Sequence[Mapping[str, Any]] = task.target["turns"]
        self._rows = {name: _row_from_json(row) for name, row in task.target["tools"].items()}
        self._offered = {tool.name for tool in task.tools}
        self._state: State = copy.deepcopy(task.target["state"])
        self._gold: State = copy.deepcopy(task.target["state"])
        self._turn = 0
        self._messages = 0
        self._results: list[Result] = []
        self._passed = 0
        return task.prompt

    def step(self, message: Parsed) -> Step:
        self._messages += 1
        blocks = len(message.calls) if self._malformed == "skip" else message.blocks
        if blocks == 0:
            return self._end_turn()
        results = [self._call(call) for call in message.calls]
        results += [{"error": "bad call"}] * (blocks - len(results))
        self._results += results
        if self._messages >= MAX_MESSAGES_PER_TURN:
            return Step((), True, "max_messages_per_turn", self._outcome())
        return Step(tuple(Message("tool", json.dumps(result)) for result in results))

    def _call(self, call: ToolCall) -> Result:
        if call.name not in self._offered:
            return {"error": "unknown tool"}
        return execute(self._rows[call.name], call.arguments, self._state)

    def _end_turn(self) -> Step:
        turn = self._turns[self._turn]
        gold = [
            execute(self._rows[call["name"]], call["arguments"], self._gold)
            for call in turn["calls"]
        ]
        self._passed += self._state == self._gold and all(r in self._results for r in gold)
        self._turn += 1
        self._messages = 0
        self._results = []
        if self._turn == len(self._turns):
            return Step((), True, "done", self._outcome())
        user = _user_message(self._turns[self._turn], self._rows)
        self._offered |= {tool.name for tool in user.tools}
        return Step((user,))

    def _outcome(self) -> dict[str, float]:
        return {
            "success": float(self._passed == len(self._turns)),
            "turns_passed": self._passed / len(self._turns),
        }


def _user_message(turn: Mapping[str, Any], rows: Mapping[str, ToolRow]) -> Message:
    tools = tuple(spec(rows[name]) for name in turn["tools"])
    return Message("user", turn["user"], tools=tools)


def _row_from_json(row: Sequence[Any]) -> ToolRow:
    name, params, effect, table, field = row
    return ToolRow(name, tuple(params), effect, table, field)


# --- tasks ----------------------------------------------------------------------------------


def make_tasks(
    split: str, count: int, seed: int, categories: Sequence[str] | None = None
) -> list[Task]:
    """``count`` tasks, categories in rotation (None: those that are trained on); the same
    arguments give the same tasks.

    Splits differ in their random streams; ``ood`` also in its words and tools, none of which
    occurs in any other split (content-OOD). So does ``other``: gold from another domain, for
    supervision. ``bank`` is for the probe, ``pretrain`` for the base.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    categories = TRAIN_CATEGORIES if categories is None else categories
    for category in categories:
        if category not in CATEGORIES:
            raise unknown("category", category, CATEGORIES)
    return [
        make_task(split, f"{split}-{seed}-{i}", categories[i % len(categories)])
        for i in range(count)
    ]


def make_task(split: Split, key: str, category: str, *, turns: int = 2, tools: int = 0) -> Task:
    """One task; ``key`` seeds it. ``tools`` fixes how many are listed (0: by category)."""
    rng = random.Random(f"pocket/{key}/{category}")
    plans = list(_plan_turns(rng, split, category, turns))
    rows = {row.name: row for plan in plans for row in plan.rows}
    withheld = {name for plan in plans for name in plan.withheld}
    listed = [row for name, row in rows.items() if name not in withheld]
    wanted = tools or (rng.randint(8, 10) if category == "long_context" else rng.randint(3, 5))
    if split == "bank" and category != "long_context":
        wanted = 2  # one fewer than any other task lists: the probe reads the bank at every step
    others = [row for row in tool_rows(rng, split) if row.name not in rows]
    rng.shuffle(others)
    listed += others[: max(0, wanted - len(listed))]
    rng.shuffle(listed)
    rows |= {row.name: row for row in listed}

    state = _initial_state(rng, plans, category)
    target: dict[str, Any] = {"state": copy.deepcopy(state), "tools": {}, "turns": []}
    gold: list[Message] = []
    for index, plan in enumerate(plans):
        gold += _play(plan, rng, state, rows, target["turns"], opening=index == 0)
    target["tools"] = {
        n: [r.name, list(r.params), r.effect, r.table, r.field] for n, r in rows.items()
    }
    return Task(
        id=key if key.startswith(split) else f"{split}-{key}",
        category=category,
        tools=tuple(spec(row) for row in listed),
        prompt=(Message("system", SYSTEM), Message("user", target["turns"][0]["user"])),
        gold=tuple(gold),
        target=target,
    )


@dataclass
class _Plan:
    """One user request: its intent, the drawn words, and what is missing at first."""

    intent: Intent
    words: dict[str, Any]
    rows: list[ToolRow]
    withheld: tuple[str, ...] = ()
    asked: str | None = None


def _plan_turns(rng: random.Random, split: Split, category: str, turns: int) -> Iterator[_Plan]:
    special = rng.randrange(turns)  # the turn in which miss_func / miss_param happens
    earlier: list[str] = []
    pool = INTENTS[side_of(split)]
    for index in range(turns):
        missing = index == special and category == "miss_param"
        withhold = index == special and category == "miss_func"
        choices = [
            intent
            for intent in pool
            if (not intent.after or intent.after in earlier)
            and (intent.partial or not missing)
            and not (withhold and set(intent.tools) & set(earlier))
        ]
        # A follow-up ("cancel that booking") is only possible now and then, so prefer it there.
        follow = [intent for intent in choices if intent.after]
        intent = rng.choice(follow if follow and rng.random() < 0.4 else choices)
        plan = _draw(rng, split, intent)
        while withhold and {row.name for row in plan.rows} & set(earlier):
            plan = _draw(rng, split, intent)  # a plugin that an earlier turn has called
        earlier += [row.name for row in plan.rows]
        if withhold:
            plan.withheld = (rng.choice(plan.rows).name,)
        if missing:
            assert plan.intent.partial is not None
            plan.asked = plan.intent.partial[0]
        yield plan


def _draw(rng: random.Random, split: Split, intent: Intent) -> _Plan:
    if intent.plugin:
        row = rng.choice(tool_rows(rng, split, plugins_only=True))
        words = {p: _word(rng, split, p) for p in row.params}
        first, second = row.params
        slots = {"TOOL": row.name, "A": first, "B": second}
        slots |= {"{a}": f"{{{first}}}", "{b}": f"{{{second}}}"}

        def named(template: str) -> str:
            for slot, name in slots.items():
                template = template.replace(slot, name)
            return template

        assert intent.partial is not None
        generic = Intent(
            name=row.name,
            says=tuple(named(template) for template in intent.says),
            steps=((row.name, {first: first, second: second}),),
            partial=(second, named(intent.partial[1])),
        )
        return _Plan(generic, words, [row])
    known = {row.name: row for row in tool_rows(rng, split)}
    words = {name: _word(rng, split, name.rstrip("2")) for name in intent.draws}
    return _Plan(intent, words, [known[name] for name in intent.tools])


def _word(rng: random.Random, split: Split, kind: str) -> Any:
    if kind == "count":
        return rng.randint(2, 9)
    side = side_of(split)
    if side != "train" or rng.random() < 0.35:
        return rng.choice(COMPOSITES[side])
    return rng.choice(KINDS[kind])


def _initial_state(rng: random.Random, plans: Sequence[_Plan], category: str) -> State:
    """Tables that hold what the plans will read, among other entries."""
    codes = [rng.choice(COMPOSITES["train"]) + str(rng.randint(0, 9)) for _ in range(4)]
    log = [rng.choice(KINDS["text"]) for _ in range(12)] if category == "long_context" else []
    state: State = {"codes": codes, "log": log}
    for plan in plans:
        for name, arguments in plan.intent.steps:
            row = next(r for r in plan.rows if r.name == name)
            if row.effect == "get":
                table = state.setdefault(row.table, {})
                for other in rng.sample(KINDS[row.params[0]], 2):
                    table.setdefault(other, rng.choice(KINDS[row.field]))
                key = plan.words[arguments[row.params[0]]]
                table.setdefault(key, rng.choice(KINDS[row.field]))
    return state


def _play(
    plan: _Plan,
    rng: random.Random,
    state: State,
    rows: Mapping[str, ToolRow],
    turns: list[dict[str, Any]],
    *,
    opening: bool,
) -> list[Message]:
    """Execute a plan on ``state``; append its user turns to ``turns``; return the gold messages
    (without the very first user message of the episode, which is part of the prompt)."""
    intent, words = plan.intent, dict(plan.words)
    says = intent.partial[1] if plan.asked and intent.partial else rng.choice(intent.says)
    gold: list[Message] = []

    def user(text: str, tools: Sequence[str] = ()) -> None:
        turns.append({"user": text, "calls": [], "tools": list(tools)})
        if not (opening and len(turns) == 1):
            gold.append(_user_message(turns[-1], rows))

    user(says.format(**words))
    if plan.asked:
        gold.append(Message("assistant", f"Which {plan.asked}?"))
        user(f"{words[plan.asked]}.")
    if plan.withheld:
        gold.append(Message("assistant", rng.choice(REPLIES["no_tool"])))
        user("here is another tool.", plan.withheld)
    words |= {k: v for turn in turns for k, v in turn.get("results", {}).items()}
    words |= plan.words
    for name, arguments in intent.steps:
        call = ToolCall(name, {p: words[w] for p, w in arguments.items()})
        result = execute(rows[name], call.arguments, state)
        assert "error" not in result, f"gold call failed: {call} -> {result}"
        turns[-1]["calls"].append({"name": call.name, "arguments": dict(call.arguments)})
        gold.append(Message("assistant", "", (call,)))
        gold.append(Message("tool", json.dumps(result)))
        learned = {k: v for k, v in result.items() if k not in ("ok", "log")}
        turns[-1].setdefault("results", {}).update(learned)
        words |= learned
    last = rows[intent.steps[-1][0]]
    kind: Effect = last.effect
    replies = REPLIES["told" if kind in ("get", "arrival") else "done"]
    answer = words.get(last.field or "day")
    gold.append(Message("assistant", rng.choice(replies).format(answer=answer)))
    return gold
