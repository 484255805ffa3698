"""BFCL multi-turn: the 800 tasks of the Berkeley Function Calling Leaderboard (v3 multi-turn).

Job: its tasks as :class:`~toolrl_box.types.Task` with gold dialogues obtained by executing the
ground truth, and episodes on them (:class:`BfclEnv`). Data and tool classes come from the package
``bfcl-eval`` (``bfcl_package``); calls are run by ``bfcl_tools``, never by the package's executor,
which evaluates what a model wrote and keeps its state in module globals.

Turn loop (arXiv 2606.26027 §protocol): a message with no closed call ends the user turn, the next
user message arrives, and after the last one the episode is done. A document that is withheld
(category miss_func) arrives with the user message that supplies it. Tool state lives as long as
the episode.

The verdict is the official checker's, turn by turn: gold calls are played beside the model's; in
a turn that gold acts in there must be a call, the states must be equal, and every result of gold's
must be among the model's results so far. Turns without gold calls are not judged, unless
``irrelevance`` asks for it.

Left out: BFCL's other categories, its prompting mode, and its limit of 20 messages a turn
(``rollout.max_messages`` limits an episode).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolrl_box.envs.bfcl_package import Record, check_installed, documents, records
from toolrl_box.envs.bfcl_tools import FAILED, Answer, Toolbox
from toolrl_box.errors import ConfigError, unknown
from toolrl_box.types import Message, Parsed, Step, Task, ToolCall, ToolSpec

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
TRAIN_CATEGORIES = ("base", "miss_func", "miss_param")
SPLITS = ("train", "heldout", "bank")
HALF = 100
"""Tasks of each category in the training half, and in the other."""
SYSTEM = "You are a helpful assistant."
SUPPLIED = "I have updated some more functions you can choose from. What about now?"
"""The user's words with documents that were withheld: the leaderboard's."""
UNREADABLE = Answer(FAILED + "the call cannot be read", carried_out=False, typed=True)

ASK = "Something that I need for this is missing. Could you tell me the details?"
REFUSE = "I cannot do this with the functions that I have."
"""Gold's texts where it calls nothing: an argument was left out, or no function serves."""

EMPTY = "multi_turn:empty_turn_model_response"
STATE = "multi_turn:instance_state_mismatch"
RESPONSE = "multi_turn:execution_response_mismatch"
IRRELEVANCE = "multi_turn:irrelevance_error:decoder_success"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``error`` is the official name of what went wrong first, in user turn ``turn`` (from 0);
    None while nothing has, and ``turn`` is then how many have passed."""

    error: str | None
    turn: int


# --- episodes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BfclEnv:
    """``irrelevance``: a call in a turn without gold calls fails the episode (the package has that
    check and does not use it). ``strict_types``: a call with an argument of another type than
    documented is not carried out (the package carries it out, so verdicts may differ from its).
    ``call_seconds``: processor time of one call."""

    irrelevance: bool = False
    strict_types: bool = False
    call_seconds: float = 0.5

    def __post_init__(self) -> None:
        check_installed()
        if not self.call_seconds > 0:
            raise ConfigError(f"env.call_seconds = {self.call_seconds}: must be above 0")

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

    def __call__(self) -> BfclEpisode:
        return BfclEpisode(self)

    def toolbox(self, task: Task, *, trusted: bool = False) -> Toolbox:
        """Fresh tools in the task's initial state. ``trusted``: for gold, whose calls all end."""
        return Toolbox(
            task.target["classes"],
            task.target["config"],
            long_context=task.category == "long_context",
            seconds=None if trusted else self.call_seconds,
            strict_types=self.strict_types,
        )

    def tasks(
        self, split: str, count: int, seed: int, categories: Sequence[str] | None = None
    ) -> list[Task]:
        """See :class:`~toolrl_box.types.World`. ``seed`` orders a split; what is in it is fixed."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        wanted = TRAIN_CATEGORIES if categories is None else tuple(categories)
        for category in wanted:
            if category not in CATEGORIES:
                raise unknown("category", category, CATEGORIES)
        rotation = [wanted[index % len(wanted)] for index in range(count)]
        for category, asked in Counter(rotation).items():
            if asked > HALF:
                raise ConfigError(
                    f"split '{split}' of world 'bfcl' has {HALF} tasks of category '{category}', "
                    f"not {asked}"
                )
        orders = {category: iter(_order(split, seed, category)) for category in wanted}
        return [self.task(category, next(orders[category])) for category in rotation]

    def task(self, category: str, index: int) -> Task:
        """Task ``index`` (0 to 199) of a category, its gold dialogue played."""
        record = records(category)[index]
        withheld = {name for names in record.supplied.values() for name in names}
        specs = _documented(record.classes)
        turns: list[dict[str, Any]] = [
            {
                "user": SUPPLIED if question is None else question,
                "tools": list(record.supplied.get(turn, ())),
                "calls": [[call.name, dict(call.arguments)] for call in record.calls[turn]],
            }
            for turn, question in enumerate(record.questions)
        ]
        users = [
            Message("user", turn["user"], tools=tuple(specs[name] for name in turn["tools"]))
            for turn in turns
        ]
        blank = Task(
            id=record.id,
            category=category,
            tools=tuple(spec for name, spec in specs.items() if name not in withheld),
            prompt=(Message("system", SYSTEM), users[0]),
            gold=(),
            target={"classes": list(record.classes), "config": record.config, "turns": turns},
        )
        return replace(blank, gold=tuple(self._play(blank, record, users)))

    def _play(self, task: Task, record: Record, users: Sequence[Message]) -> Iterator[Message]:
        """The gold dialogue: one call a message, because later arguments come from earlier results;
        what the tools really answer; a closing text that ends each user turn."""
        tools = self.toolbox(task, trusted=True)
        for turn, calls in enumerate(record.calls):
            if turn:
                yield users[turn]
            for call in calls:
                yield Message("assistant", "", (call,))
                yield Message("tool", tools.run(call).text)
            yield Message("assistant", closing(task.category, calls, last=turn + 1 == len(users)))


def _documented(classes: Sequence[str]) -> dict[str, ToolSpec]:
    return {name: spec for kind in classes for name, spec in documents()[kind].items()}


def closing(category: str, calls: Sequence[ToolCall], *, last: bool) -> str:
    """The text that ends a user turn of gold: what was called, or why nothing was."""
    if calls:
        names = list(dict.fromkeys(call.name for call in calls))
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        return f"I have called {listed}."
    return ASK if category == "miss_param" and not last else REFUSE


def _order(split: str, seed: int, category: str) -> list[int]:
    indices = list(range(2 * HALF))
    random.Random(42).shuffle(indices)  # the paper's split, the same in all categories
    # The probe's bank is gold that training may see: test tasks should not steer a run.
    indices = indices[HALF:] if split == "heldout" else indices[:HALF]
    random.Random(f"bfcl/{split}/{seed}/{category}").shuffle(indices)
    return indices


class BfclEpisode:
    """One episode. Implements :class:`~toolrl_box.types.Environment`; ``verdict`` is the one on the
    user turns that have ended."""

    def __init__(self, world: BfclEnv) -> None:
        self._world = world

    def reset(self, task: Task) -> tuple[Message, ...]:
        self._turns: Sequence[Mapping[str, Any]] = task.target["turns"]
        self._classes: Sequence[str] = task.target["classes"]
        self._tools = self._world.toolbox(task)
        self._gold = self._world.toolbox(task, trusted=True)
        self._results: list[str] = []
        self._called = False
        self._junk = self._mistyped = 0
        self.verdict = Verdict(None, 0)
        self._turn = 0
        return task.prompt

    def step(self, message: Parsed) -> Step:
        if message.blocks == 0:
            return self._end_turn()
        answers = [self._tools.run(call) for call in message.calls]
        answers += [UNREADABLE] * (message.blocks - len(answers))
        self._called = True
        self._results += [answer.text for answer in answers]
        self._junk += sum(not answer.carried_out for answer in answers)
        self._mistyped += sum(not answer.typed for answer in answers)
        return Step(tuple(Message("tool", answer.text) for answer in answers))

    def _end_turn(self) -> Step:
        if self.verdict.error is None:
            self.verdict = self._judge()
        self._turn += 1
        self._called = False
        if self._turn == len(self._turns):
            return Step((), True, "done", self._outcome())
        turn = self._turns[self._turn]
        specs = _documented(self._classes)
        tools = tuple(specs[name] for name in turn["tools"])
        return Step((Message("user", turn["user"], tools=tools),))

    def _judge(self) -> Verdict:
        calls = [ToolCall(name, arguments) for name, arguments in self._turns[self._turn]["calls"]]
        due = [self._gold.run(call).text for call in calls]
        error = None
        if not calls:
            error = IRRELEVANCE if self._world.irrelevance and self._called else None
        elif not self._called:
            error = EMPTY
        elif not self._tools.same_state(self._gold):
            error = STATE
        elif Counter(due) - Counter(self._results):
            error = RESPONSE
        return Verdict(error, self._turn + (error is None))

    def _outcome(self) -> dict[str, float]:
        return {
            "success": float(self.verdict.error is None),
            "turns_passed": self.verdict.turn / len(self._turns),
            "junk_calls": float(self._junk),
            "mistyped_calls": float(self._mistyped),
        }
