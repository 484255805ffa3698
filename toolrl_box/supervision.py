"""Reflections on failed rollouts: what went wrong, shown in the log, and what had been right.

Job: turn a failed rollout into at most two short dialogues (PRS, arXiv 2606.26027 §4): root cause
with evidence from the log and the right calls; a near case that needs another call. Input: the
task, what was said, and the environment, whose own verdict finds the first wrong step. Output:
:class:`Dialogue`, as a task (:meth:`Dialogue.task`) or as a question for an LLM judge
(:func:`judge_prompt`), which may write the texts in the analyst's place.

Calls are written ``name(key="value")`` and quotations carry no angle brackets: a text that is
trained must not teach control tokens where none belong.

Left out: rewards below 1 of episodes that the environment calls solved (nothing went wrong).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from toolrl_box.errors import DataError
from toolrl_box.types import Environment, Message, Parsed, Role, Task, ToolCall, ToolFormat

MAX_LINE, MAX_EVIDENCE = 160, 64
"""Characters of one quoted message in the log, and in a text that is learned."""
WRONG = "What went wrong?"
SEPARATOR = "---"
_BRACKETS = str.maketrans("<>", "[]")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One question and its answer."""

    question: str
    answer: str

    def task(self, task_id: str, about: Task) -> Task:
        """As a task whose gold is the answer: only that is learned. System text as in ``about``."""
        system = (message for message in about.prompt if message.role == "system")
        return Task(
            id=task_id,
            category="reflection",
            tools=(),
            prompt=(*system, Message("user", self.question)),
            gold=(Message("assistant", self.answer),),
        )


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a rollout after its system message, as the run log keeps it."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The first wrong step, as :func:`diagnose` finds it.

    ``step`` counts assistant messages from 1; ``turn`` user turns from 0; ``missing`` are the
    gold calls of that turn that were due when the step was taken, ``reply`` its gold text.
    """

    step: int
    turn: int
    missing: tuple[ToolCall, ...]
    reply: str


class Analyst:
    """Writes reflections offline. ``pool`` is where near cases come from."""

    def __init__(
        self, fmt: ToolFormat, make_env: Callable[[], Environment], pool: Sequence[Task]
    ) -> None:
        self._fmt = fmt
        self._make_env = make_env
        self._cases = [case for task in pool for case in _opening_case(task)]

    def __call__(self, task: Task, log: Sequence[Said]) -> tuple[Dialogue, ...]:
        """At most two dialogues; none for an episode that the environment calls solved."""
        found = diagnose(task, log, self._fmt, self._make_env)
        if found is None:
            return ()
        wrong = _place(log, found.step)
        request = next(said.text for said in reversed(log[:wrong]) if said.role == "user")
        said = _step_text(log[wrong].text, self._fmt, MAX_EVIDENCE)
        lines = [f"Step {found.step} is wrong: {said}."]
        lines.append(f'The user said "{quote(request)}"')
        if wrong + 1 < len(log) and log[wrong + 1].role == "tool":
            lines.append(f"The answer is {quote(log[wrong + 1].text, MAX_EVIDENCE)}.")
        right = ", ".join(write_call(call) for call in found.missing)
        lines.append(f"Right is {right or json.dumps(found.reply)}.")
        dialogues = [Dialogue(question(log, self._fmt), "\n".join(lines))]
        near = self._near(request, {call.name for call in found.missing})
        if near is not None:
            asked, call = near
            dialogues.append(
                Dialogue(
                    f'{_requests(log)}\nWhat is right for "{asked}"',
                    f'For "{asked}" right is {write_call(call)}.',
                )
            )
        return tuple(dialogues)

    def _near(self, request: str, names: set[str]) -> tuple[str, ToolCall] | None:
        """The most similar request that needs another tool, and its call."""
        words = _words(request)

        def distance(case: tuple[str, ToolCall]) -> tuple[float, str]:
            other = _words(case[0])
            return -len(words & other) / max(1, len(words | other)), case[0]

        others = [case for case in self._cases if case[1].name not in names]
        return min(others, key=distance, default=None)


def diagnose(
    task: Task, log: Sequence[Said], fmt: ToolFormat, make_env: Callable[[], Environment]
) -> Diagnosis | None:
    """The first wrong step: played up to just before it, gold can still finish the episode; played
    with it, it cannot. Where that is a message that merely ended the user turn, and the turn had
    called a tool that was due with arguments that were not, it is that call. None when the
    environment calls the episode solved.

    Raises DataError when gold does not solve the task from the start.
    """
    spoken = [fmt.parse(said.text) for said in log if said.role == "assistant"]
    turns = _gold_turns(task)
    if _solves(task, make_env, spoken):
        return None
    before = None
    for step in range(len(spoken) + 1):
        turn = _turn_of(log, step)
        missing, rest = _rest(turns, turn, _made(log, step, fmt))
        if turn >= len(turns) or not _solves(task, make_env, [*spoken[:step], *rest]):
            break
        before = Diagnosis(step + 1, turn, missing, turns[turn][-1].content)
    if before is None:
        raise DataError(f"gold dialogue of task '{task.id}' does not succeed")
    if not spoken:
        return None  # it broke at its start: nobody said anything
    # An episode that was cut off while it could still be saved is wrong in its last step.
    fatal = min(before.step, len(spoken))
    due = {call.name for call in before.missing}
    gold = [call for message in turns[before.turn] for call in message.tool_calls]
    for step in range(1, fatal):
        called = {call.name for call in spoken[step - 1].calls if call not in gold}
        if _turn_of(log, step - 1) == before.turn and called & due and not spoken[fatal - 1].calls:
            fatal = step
            break
    return replace(before, step=fatal)


def question(log: Sequence[Said], fmt: ToolFormat) -> str:
    """The log, one line a message, and what is asked about it."""
    return "\n".join([*_lines(log, fmt), WRONG])


def judge_prompt(task: Task, log: Sequence[Said], fmt: ToolFormat) -> list[dict[str, str]]:
    """Messages for an OpenAI-compatible judge; its answer is read by :func:`judged`."""
    names = "\n".join(f"{t.name}({', '.join(t.parameters['properties'])})" for t in task.tools)
    right = "\n".join(
        f"{number}. " + (", ".join(write_call(c) for m in turn for c in m.tool_calls) or "no call")
        for number, turn in enumerate(_gold_turns(task), start=1)
    )
    system = (
        "You review failed tool-use episodes. Answer with two short paragraphs, a line "
        f"{SEPARATOR} between them. First: the root cause, with one line of the log as evidence, "
        "and one fix with the right calls. Second: a similar request that needs another call, with "
        'that call. Write calls as name(key="value"), without tags or code fences.'
    )
    user = (
        f"Tools:\n{names}\n\nLog:\n" + "\n".join(_lines(log, fmt)) + "\n\n"
        f"Right calls, by user turn:\n{right}\n\n{WRONG}"
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def judged(text: str, log: Sequence[Said], fmt: ToolFormat) -> tuple[Dialogue, ...]:
    """A judge's answer as at most two dialogues."""
    parts = [part.strip() for part in re.split(rf"^\s*{SEPARATOR}+\s*$", text, flags=re.M)]
    asked = (question(log, fmt), f"{_requests(log)}\nWhat is right for a near case?")
    texts = [part.translate(_BRACKETS) for part in parts if part]
    return tuple(Dialogue(q, a) for q, a in zip(asked, texts, strict=False))


def write_call(call: ToolCall) -> str:
    """``move_file(file="report", folder="work")``, free of any format's syntax."""
    pairs = (f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call.arguments.items())
    return quote(f"{call.name}({', '.join(pairs)})")


def quote(text: str, limit: int = MAX_LINE) -> str:
    """On one line, of bounded length, without angle brackets."""
    flat = " ".join(text.translate(_BRACKETS).split())
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."


# --- the log --------------------------------------------------------------------------------


def _lines(log: Sequence[Said], fmt: ToolFormat) -> Iterator[str]:
    step = 0
    for said in log:
        step += said.role == "assistant"
        text = _step_text(said.text, fmt) if said.role == "assistant" else quote(said.text)
        yield {"user": "user: ", "assistant": f"{step}. "}.get(said.role, "") + text


def _step_text(text: str, fmt: ToolFormat, limit: int = MAX_LINE) -> str:
    """What a message did: its calls when it is nothing else, or what it said."""
    parsed = fmt.parse(text)
    if parsed.calls and not parsed.errors:
        return ", ".join(write_call(call) for call in parsed.calls)
    return json.dumps(quote(text, limit), ensure_ascii=False)


def _requests(log: Sequence[Said]) -> str:
    return "\n".join(f"user: {quote(said.text)}" for said in log if said.role == "user")


def _place(log: Sequence[Said], step: int) -> int:
    """Where assistant message number ``step`` (from 1) stands in the log."""
    return [i for i, said in enumerate(log) if said.role == "assistant"][step - 1]


def _turn_of(log: Sequence[Said], steps: int) -> int:
    """The user turn in which one stands after so many assistant messages."""
    turn, done = -1, 0
    for said in log:
        if said.role == "assistant":
            if done == steps:
                break
            done += 1
        turn += said.role == "user"
    return turn


def _made(log: Sequence[Said], steps: int, fmt: ToolFormat) -> list[ToolCall]:
    """Calls of the first ``steps`` messages that belong to the user turn in which they end."""
    made: list[ToolCall] = []
    done = 0
    for said in log:
        if said.role == "assistant":
            if done == steps:
                break
            done += 1
            made += fmt.parse(said.text).calls
        elif said.role == "user":
            made.clear()
    return made


# --- gold -----------------------------------------------------------------------------------


def _gold_turns(task: Task) -> list[list[Message]]:
    """The gold assistant messages of each user turn."""
    turns: list[list[Message]] = [[]]
    for message in task.gold:
        if message.role == "user":
            turns.append([])
        elif message.role == "assistant":
            turns[-1].append(message)
    return turns


def _rest(
    turns: Sequence[Sequence[Message]], turn: int, made: Sequence[ToolCall]
) -> tuple[tuple[ToolCall, ...], list[Parsed]]:
    """Gold calls that this turn still lacks, and all messages that gold would go on with."""
    if turn >= len(turns):
        return (), []
    missing = [call for message in turns[turn] for call in message.tool_calls]
    for call in made:
        if call in missing:
            missing.remove(call)
    now = [Message("assistant", "", tuple(missing))] if missing else []
    now += [message for message in turns[turn] if not message.tool_calls]
    later = [message for messages in turns[turn + 1 :] for message in messages]
    return tuple(missing), [_as_parsed(message) for message in (*now, *later)]


def _as_parsed(message: Message) -> Parsed:
    return Parsed(message.content, message.tool_calls, len(message.tool_calls), ())


def _solves(task: Task, make_env: Callable[[], Environment], messages: Sequence[Parsed]) -> bool:
    """Whether an episode with these messages succeeds; one that breaks its environment fails."""
    env = make_env()
    env.reset(task)
    for message in messages:
        try:
            step = env.step(message)
        except Exception:  # the environment's own, as in `rollout`
            return False
        if step.done:
            return step.outcome.get("success") == 1.0
    return False


def _opening_case(task: Task) -> Iterator[tuple[str, ToolCall]]:
    """The task's first request, when a single call is all that it needs."""
    calls = [call for message in _gold_turns(task)[0] for call in message.tool_calls]
    if len(calls) == 1:
        yield quote(task.prompt[-1].content), calls[0]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
