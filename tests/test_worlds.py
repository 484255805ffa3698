"""Every world can be trained on: tasks, formats and the probe's bank come from it."""

from __future__ import annotations

import pytest

from toolrl_box.config import RunConfig, load
from toolrl_box.envs import ENVS, build_world
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.formats import ALL_FORMATS
from toolrl_box.lab import TaskStream, check_format, gold_bank
from toolrl_box.probe.bank import SLOTS
from toolrl_box.testing import ByteCodec
from toolrl_box.types import World

every_world = pytest.mark.parametrize("name", ENVS)


def made(name: str) -> tuple[RunConfig, World]:
    config = load(
        sets=[f"env={name}", "env.train_tasks=9", "grpo.prompts_per_step=3", "probe.episodes=3"]
    )
    return config, build_world(name, config.env.knobs)


@every_world
def test_a_world_says_what_it_has(name: str) -> None:
    config, world = made(name)
    assert {"train", "heldout", "bank"} <= set(world.splits)
    assert set(world.train_categories) <= set(world.categories)
    assert set(world.formats) <= set(ALL_FORMATS)
    assert config.format == world.formats[0]
    for split in world.splits:
        tasks = world.tasks(split, 2 * len(world.categories), 0, world.categories)
        assert {task.category for task in tasks} == set(world.categories)


@every_world
def test_a_runs_tasks_come_from_its_world(name: str) -> None:
    config, world = made(name)
    stream = TaskStream(config, world)
    assert stream.tasks == world.tasks("train", 9, 0)
    epoch = [task.id for step in range(3) for task in stream.at(step)]
    assert set(epoch[:9]) == {task.id for task in stream.tasks}


@every_world
def test_the_probes_bank_is_gold_of_any_world_in_any_of_its_formats(name: str) -> None:
    config, world = made(name)
    for wanted in world.formats:
        bank = gold_bank(config, ALL_FORMATS[wanted], world, ByteCodec().encode)
        assert len(bank.sequences) == 3
        assert {"start_call_due", "after_call"} <= {SLOTS[slot] for slot in bank.slots_N}


def test_a_format_that_cannot_write_the_worlds_calls_is_refused() -> None:
    config = load(sets=["env=pocket", "format=icrl"])
    with pytest.raises(ConfigError, match="format 'icrl' cannot write the calls of world 'pocket'"):
        check_format(config, build_world("pocket", {}))
    check_format(load(sets=["env=search"]), build_world("search", {}))


def test_gold_that_fails_stops_the_run_and_says_why() -> None:
    config, _ = made("search")
    world = build_world("search", {"max_searches": 1})
    config = config.model_copy(update={"probe": config.probe.model_copy(update={"episodes": 4})})
    with pytest.raises(DataError, match=r"'bank-0-\d+' does not succeed: max_searches"):
        gold_bank(config, ALL_FORMATS["icrl"], world, ByteCodec().encode)
