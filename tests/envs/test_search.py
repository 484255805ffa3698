"""The search world: gold succeeds by searching, splits share nothing, bad files are named."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from toolrl_box.config import RunConfig, load
from toolrl_box.envs import build_world
from toolrl_box.envs.pocket_words import COMPOSITES
from toolrl_box.envs.search import CATEGORIES, SPLITS, Library, SearchEnv
from toolrl_box.envs.search_words import BAD_CALL, HELDOUT_RELATIONS, NOTHING, TRAINED_RELATIONS
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.formats import ALL_FORMATS
from toolrl_box.rewards import Rubric, apply
from toolrl_box.rollout import replay_gold, run_episodes
from toolrl_box.samples import dialogue_to_sample, rollout_to_sample
from toolrl_box.testing import ByteCodec, ScriptedPolicy
from toolrl_box.types import Sampling, Step, Task

WORLD = SearchEnv()
ICRL = ALL_FORMATS["icrl"]
CODEC = ByteCodec()


def play(task: Task, texts: Sequence[str], world: SearchEnv = WORLD) -> Step:
    """The last step of an episode in which the assistant says ``texts``."""
    episode = world()
    assert episode.reset(task) == task.prompt
    step = Step(())
    for text in texts:
        assert not step.done, "the episode ended early"
        step = episode.step(ICRL.parse(text))
    return step


def one(category: str = "one_hop") -> Task:
    return WORLD.tasks("train", 1, 0, (category,))[0]


def question(task: Task) -> str:
    return task.prompt[1].content


# --- gold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLD.formats)
@pytest.mark.parametrize("split", SPLITS)
def test_gold_succeeds_in_every_format_and_observes_what_it_says(split: str, name: str) -> None:
    fmt = ALL_FORMATS[name]
    for task in WORLD.tasks(split, 30, 1):
        rollout = replay_gold(task, fmt, WORLD, CODEC.encode)
        assert rollout.error is None
        assert rollout.stop_reason == "answered"
        hops = 1 + CATEGORIES.index(task.category)
        expected = {"success": 1.0, "accuracy": 1.0, "valid_calls": float(hops)}
        assert expected.items() <= rollout.outcome.items()
        observed = [m.content for turn in rollout.turns for m in turn.observations]
        assert observed == [m.content for m in task.gold if m.role == "tool"]
        assert rollout_to_sample(rollout).token_ids == (
            dialogue_to_sample(task, fmt, CODEC.encode).token_ids
        )


def test_gold_earns_the_full_composite_reward() -> None:
    rubric = Rubric({"accuracy": 0.8, "format": 0.2})
    for task in WORLD.tasks("heldout", 10, 0):
        rollout = apply(rubric, replay_gold(task, ICRL, WORLD, CODEC.encode))
        assert rollout.reward == pytest.approx(1.0)
        assert rollout.outcome["format"] == rollout.reward_parts["format"] == 1.0


def test_the_answer_stands_in_what_the_last_search_returns_and_not_in_the_question() -> None:
    for split in SPLITS:
        for task in WORLD.tasks(split, 60, 3):
            (answer,) = task.target["answers"]
            results = [m.content for m in task.gold if m.role == "tool"]
            assert f" is {answer}." in results[-1]
            assert all(len(result.splitlines()) <= 3 for result in results)
            assert not re.search(rf"\b{answer}\b", question(task))


def test_retrieved_text_carries_no_loss() -> None:
    sample = dialogue_to_sample(one(), ICRL, CODEC.encode)
    learned = CODEC.decode(
        [i for i, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m]
    )
    assert "<information>" not in learned
    assert " is " not in learned
    assert "<search>" in learned


# --- splits ---------------------------------------------------------------------------------


def test_no_split_asks_what_another_asks() -> None:
    first = {
        split: {
            task.gold[0].tool_calls[0].arguments["query"] for task in WORLD.tasks(split, 150, 0)
        }
        for split in ("train", "heldout", "bank")
    }
    assert not first["train"] & first["heldout"]
    assert not first["train"] & first["bank"]
    assert not first["heldout"] & first["bank"]


def test_ood_has_relations_and_things_that_occur_nowhere_else() -> None:
    def content(split: str) -> set[str]:
        texts = [m.content for t in WORLD.tasks(split, 60, 0) for m in (*t.prompt[1:], *t.gold)]
        return set(re.findall(r"\w+", " ".join(texts)))

    foreign = {*HELDOUT_RELATIONS, *COMPOSITES["ood"]}
    assert content("ood") & set(HELDOUT_RELATIONS)
    assert not content("ood") & {*TRAINED_RELATIONS, *COMPOSITES["train"]}
    for split in ("pretrain", "train", "heldout", "bank"):
        assert not content(split) & foreign


def test_pretraining_meets_many_corpora_and_never_the_one_of_training() -> None:
    corpora = {task.target["corpus"] for task in WORLD.tasks("pretrain", 64, 0)}
    assert len(corpora) == 4
    assert not corpora & {task.target["corpus"] for task in WORLD.tasks("train", 8, 0)}


def test_the_same_arguments_give_the_same_tasks_and_fewer_are_the_first_of_more() -> None:
    for split in SPLITS:
        many = WORLD.tasks(split, 40, 7)
        assert many == SearchEnv().tasks(split, 40, 7)
        assert many[:12] == WORLD.tasks(split, 12, 7)
        assert many != WORLD.tasks(split, 40, 8)
        assert len({task.id for task in many}) == 40
        assert len({question(task) for task in many}) == 40
    assert [t.category for t in WORLD.tasks("train", 3, 0)] == ["one_hop", "two_hop", "one_hop"]
    assert {t.category for t in WORLD.tasks("train", 6, 0, ("two_hop",))} == {"two_hop"}


def test_tasks_are_json_values() -> None:
    for task in WORLD.tasks("ood", 4, 0):
        assert json.loads(json.dumps(task.target)) == task.target


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trian", 1, 0), "did you mean 'train'"),
        (("train", 1, 0, ("one_hops",)), "did you mean 'one_hop'"),
        (("bank", 5000, 0), "questions of category 'one_hop' for split 'bank'; 5000 tasks"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        WORLD.tasks(*arguments)  # type: ignore[arg-type]


# --- episodes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "right"),
    [("{}", 1.0), (" The {}. ", 1.0), ("{} or so", 0.0), ("", 0.0), ("it is {}", 0.0)],
)
def test_an_answer_ends_the_episode_and_is_right_when_it_matches(write: str, right: float) -> None:
    task = one()
    said = write.format(task.target["answers"][0].upper())
    step = play(task, [f"<think>x</think><answer>{said}</answer>"])
    assert (step.done, step.stop_reason) == (True, "answered")
    assert step.outcome["success"] == step.outcome["accuracy"] == right
    assert step.outcome["valid_calls"] == 0.0
    assert step.outcome["format"] == pytest.approx(0.9 if said else 0.7)


def test_a_message_that_calls_nothing_ends_the_episode_unanswered() -> None:
    for text in ("I think it is kalo.", "<think>hm</think>", "<search>never closed", ""):
        step = play(one(), [text])
        assert (step.done, step.stop_reason, step.outcome["success"]) == (True, "no_call", 0.0)


def test_six_searches_are_answered_and_the_seventh_ends_the_episode() -> None:
    six = ["<search>capital</search>"] * 6
    assert not play(one(), six).done
    step = play(one(), [*six, "<search>capital</search>"])
    assert (step.done, step.stop_reason) == (True, "max_searches")
    assert step.outcome["valid_calls"] == 6.0
    answered = play(one(), [*six, f"<answer>{one().target['answers'][0]}</answer>"])
    assert answered.outcome["success"] == 1.0
    assert play(one(), ["<search>capital</search>" * 7]).stop_reason == "max_searches"


def test_what_cannot_be_searched_is_an_observation() -> None:
    def told(text: str) -> list[str]:
        return [message.content for message in play(one(), [text]).messages]

    assert told("<search>unheard words</search>") == [NOTHING]
    assert told("<search> </search>") == [BAD_CALL]
    assert told("<search>?!</search>") == [NOTHING]
    hermes = ALL_FORMATS["hermes"]
    for call in (
        '{"name": "search", "arguments": {"query": 3}}',
        '{"name": "search", "arguments": {}}',
        '{"name": "find", "arguments": {"query": "x"}}',
        "{",
    ):
        episode = WORLD()
        episode.reset(one())
        step = episode.step(hermes.parse(f"<tool_call>\n{call}\n</tool_call>"))
        assert [message.content for message in step.messages] == [BAD_CALL]


def test_a_whole_rollout_is_played_with_the_information_masked() -> None:
    task = one()
    answer = task.target["answers"][0]
    script = [["<think>a</think>\n<search>capital</search>", f"<answer>{answer}</answer>"]]
    (rollout,) = run_episodes(
        [task], ScriptedPolicy(script), ICRL, WORLD, CODEC.encode, CODEC.decode,
        Sampling(1.0, 200, 0),
    )  # fmt: skip
    assert rollout.outcome == {
        "success": 1.0, "accuracy": 1.0, "valid_calls": 1.0, "format": 1.0,
    }  # fmt: skip
    sample = rollout_to_sample(rollout)
    pairs = zip(sample.token_ids, sample.loss_mask, strict=True)
    assert "information" not in CODEC.decode([token for token, learned in pairs if learned])


def test_bm25_prefers_documents_that_share_more_and_rarer_words() -> None:
    library = Library(["the cat sat", "the dog sat", "a bird flew", "the the the"])
    assert library.search("Cat SAT!", 3)[0] == "the cat sat"
    assert library.search("bird", 3) == ["a bird flew"]
    assert library.search("", 3) == []
    assert Library(["only one"]).search("one", 3) == ["only one"]


# --- a user's files -------------------------------------------------------------------------

CORPUS = [
    {"id": i, "text": f"Town {i} lies on river {name}."} for i, name in enumerate("abcdefghij")
]
QUESTIONS = [
    {
        "id": f"q{i}",
        "question": f"On which river lies town {i}?",
        "answers": [f"River {name}", name],
    }
    for i, name in enumerate("abcdefghij")
]


def files(folder: Path, corpus: object = CORPUS, questions: object = QUESTIONS) -> SearchEnv:
    """A world over two files; a string is written as it is."""
    paths = folder / "corpus.jsonl", folder / "questions.jsonl"
    for path, rows in zip(paths, (corpus, questions), strict=True):
        text = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))  # type: ignore[call-overload]
        path.write_text(text)
    return SearchEnv(corpus=str(paths[0]), questions=str(paths[1]))


def test_a_users_questions_are_split_and_played(tmp_path: Path) -> None:
    world = files(tmp_path)
    assert (world.categories, world.splits) == (("question",), ("train", "heldout", "bank"))
    parts = [world.tasks("train", 7, 0), world.tasks("heldout", 2, 0), world.tasks("bank", 1, 0)]
    tasks = [task for part in parts for task in part]
    assert sorted(question(task) for task in tasks) == [row["question"] for row in QUESTIONS]
    for task in tasks:
        rollout = replay_gold(task, ICRL, world, CODEC.encode)
        assert rollout.outcome["success"] == rollout.outcome["format"] == 1.0
        second = task.target["answers"][1]
        assert play(task, [f"<answer>{second}</answer>"], world).outcome["success"] == 1.0
    town = re.findall(r"\d", question(tasks[0]))[0]
    found = play(tasks[0], [f"<search>town {town}</search>"], world).messages[0].content
    assert found.splitlines()[0].startswith(f"Town {town} lies")


def test_another_seed_never_trains_on_what_is_held_out(tmp_path: Path) -> None:
    world = files(tmp_path)
    for seed in range(5):
        trained = {question(task) for task in world.tasks("train", 7, seed)}
        assert trained == {question(task) for task in world.tasks("train", 7, 0)}


@pytest.mark.parametrize(
    ("corpus", "questions", "says"),
    [
        ('{"id": 1, "text": "a"}\n{"id": 2', QUESTIONS, r"corpus.jsonl, line 2: not JSON"),
        ('\n\n[1]', QUESTIONS, r"corpus.jsonl, line 3: must be a JSON object"),
        ('{"id": 1}', QUESTIONS, r"corpus.jsonl, line 1: 'text' must be a text .* not None"),
        ('{"id": 1, "text": " "}', QUESTIONS, r"line 1: 'text' must be a text that is not empty"),
        ('{"id": 1, "text": "\\ud800"}', QUESTIONS, r"line 1: 'text' must be a text"),
        ('{"text": "a"}', QUESTIONS, r"line 1: 'id' must be a text or a whole number"),
        ([CORPUS[0], CORPUS[0]], QUESTIONS, r"line 2: the id '0' is also on line 1"),
        ("", QUESTIONS, r"corpus.jsonl holds no lines"),
        (CORPUS, '{"id": 1, "question": "a"}', r"questions.jsonl, line 1: 'answers' must be a"),
        (CORPUS, '{"id": 1, "question": "a", "answers": []}', r"line 1: 'answers' must be a list"),
        (CORPUS, '{"id": 1, "question": "a", "answers": "b"}', r"line 1: 'answers' must be a list"),
        (CORPUS, '{"id": 1, "question": "a", "answers": [""]}', r"line 1: 'answers' must be a li"),
        (CORPUS, '{"id": 1, "question": 4, "answers": ["b"]}', r"line 1: 'question' must be a"),
        (CORPUS, "[" * 100_000, r"questions.jsonl, line 1: not JSON"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_file_and_number(
    tmp_path: Path, corpus: object, questions: object, says: str
) -> None:
    world = files(tmp_path, corpus, questions)
    with pytest.raises(DataError, match=says) as raised:
        world.tasks("train", 1, 0)
    assert "\n" not in str(raised.value)


def test_missing_files_and_too_few_questions_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none.jsonl: No such file"):
        SearchEnv(corpus="none.jsonl", questions=str(tmp_path / "none.jsonl")).tasks("train", 1, 0)
    with pytest.raises(ConfigError, match=r"has 2 questions for split 'heldout' \(of 10"):
        files(tmp_path).tasks("heldout", 3, 0)
    with pytest.raises(ConfigError, match="unknown split 'ood'"):
        files(tmp_path).tasks("ood", 1, 0)


# --- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"corpus": "a.jsonl"}, "env.questions is missing"),
        ({"questions": "a.jsonl"}, "env.corpus is missing"),
        ({"results": 0}, "env.results = 0: must be at least 1"),
        ({"max_searches": "many"}, "env.max_searches = 'many': "),
        ({"korpus": "x"}, "unknown key 'env.korpus' for world 'search'; did you mean 'corpus'?"),
    ],
)
def test_a_wrong_setting_of_the_world_is_explained(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        build_world("search", knobs)


def test_a_worlds_own_settings_are_no_other_worlds() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'env\.corpus' for world 'pocket'"):
        build_world("pocket", {"corpus": "x"})
    with pytest.raises(ConfigError, match=r"env\.malformed = 'ignore': "):
        build_world("pocket", {"malformed": "ignore"})
    with pytest.raises(ConfigError, match="unknown environment 'serch'; did you mean 'search'"):
        build_world("serch", {})


def test_naming_the_world_brings_its_format_and_reward_unless_the_user_says_otherwise() -> None:
    config = load(sets=["env=search"])
    assert (config.format, config.rewards) == ("icrl", {"accuracy": 0.8, "format": 0.2})
    config = load(sets=["env=search", "format=hermes", "rewards={task_success: 1.0}"])
    assert (config.format, config.rewards) == ("hermes", {"task_success": 1.0})
    assert load() == RunConfig()
