"""Schemes that bring supervision into the RL steps: their phases, their knobs, short real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolrl_box import lab
from toolrl_box.config import load
from toolrl_box.errors import ConfigError, DataError
from toolrl_box.phases import RL, Context, Outcome, Phase
from toolrl_box.runlog import RunLog
from toolrl_box.schemes import build_scheme
from toolrl_box.signals import Experts, Hints, SFTTerm


def phases(name: str, steps: int = 60, **knobs: Any) -> list[Phase]:
    generator = build_scheme(name, knobs).phases(Context(steps, {}))
    found = [next(generator)]
    while True:
        try:
            found.append(generator.send(Outcome(found[-1].steps or 0)))
        except StopIteration:
            return found


def test_each_is_one_rl_phase_with_its_signal() -> None:
    assert phases("off_policy") == [RL(60, experts=Experts(1, False, 0.1))]
    assert phases("off_policy", gamma=0, only_failed=True) == [RL(60, experts=Experts(1, True, 0))]
    assert phases("hint") == [RL(60, hints=Hints(2, "system", "gold"))]
    assert phases("hint", position="user", rl_lr=1e-4) == [RL(60, lr=1e-4, hints=Hints(2, "user"))]
    assert phases("mixed", weighting="decayed", weight=1) == [
        RL(60, sft=SFTTerm(1.0, "decayed", 0.0, 60))
    ]


def test_icrl_takes_demonstrations_away_stage_by_stage() -> None:
    assert phases("icrl") == [RL(20, shots=3), RL(20, shots=2), RL(20, shots=0)]
    assert phases("icrl", shots=[3, 2, 1, 0], lengths=[3, 1, 1, 1], rl_lr=[1e-3]) == [
        RL(30, lr=1e-3, shots=3),
        RL(10, lr=1e-3, shots=2),
        RL(10, lr=1e-3, shots=1),
        RL(10, lr=1e-3, shots=0),
    ]
    assert phases("icrl", shots=[0]) == [RL(60)]


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("off_policy", {"count": -1}, "count = -1"),
        ("off_policy", {"gamma": -0.1}, "gamma = -0.1"),
        (
            "hint",
            {"position": "middle"},
            "scheme.position = 'middle'.*'system', 'user' or 'prefix'",
        ),
        ("hint", {"source": "oracle"}, "scheme.source = 'oracle'.*'gold' or 'llm'"),
        ("mixed", {"weighting": "entrpy"}, "scheme.weighting = 'entrpy'.*'entropy'"),
        ("mixed", {"weight": -1}, "weight = -1"),
        ("icrl", {"shots": [0, 2]}, "goes up from 0 to 2"),
        ("icrl", {"shots": []}, "must name stages"),
        ("icrl", {"lengths": [1, 2]}, "names 2 stages"),
    ],
)
def test_a_bad_knob_is_named_with_its_rule(name: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_scheme(name, knobs)


def test_a_budget_too_short_for_the_curriculum_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 steps are too few for the 3 stages"):
        phases("icrl", steps=2)


SMALL = ("env.eval_tasks=4", "eval.every=100", "eval.ood=false", "grpo.prompts_per_step=2",
         "grpo.group_size=4", "probe.episodes=3", "env.train_tasks=12")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sets", "expected"),
    [
        ("off_policy", (), {"policy": 6, "expert": 2}),
        ("off_policy", ("grpo.mini_batches=1",), {"policy": 6, "expert": 2}),
        ("off_policy", ("scheme.gamma=0",), {"policy": 6, "expert": 2}),
        ("hint", (), {"policy": 4, "hinted": 4}),
        ("mixed", ("scheme.weighting=uncertainty",), {"policy": 8}),
        ("icrl", (), {"policy": 8}),
    ],
)
def test_a_short_real_run(
    tmp_path: Path, name: str, sets: tuple[str, ...], expected: dict[str, int]
) -> None:
    options = {"scheme.name": name, "steps": 3}
    assert lab.start(load(None, [*SMALL, *sets], options), tmp_path / "run") == "done"
    log = RunLog.open(tmp_path / "run")
    assert log.rollouts(1)["source"].value_counts().to_dict() == expected
    metrics = log.metrics().iloc[1:]
    assert metrics["grad_norm"].notna().all()
    assert (metrics["sft_term_nll"].notna() == (name == "mixed")).all()
    own = log.rollouts(1).query("source == 'policy'")
    assert metrics["reward"].iloc[0] == pytest.approx(own["reward"].mean())
    outcome = log.journal()[-1]
    assert outcome["event"] == "finish"


def test_an_impossible_phase_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    for sets, error in (
        (["scheme.count=8"], ConfigError),
        (["scheme.source=llm"], ConfigError),
    ):
        with pytest.raises(error):
            lab.start(load(None, [*SMALL, *sets], {"scheme.name": "hint"}), tmp_path / "run")
    with pytest.raises(DataError, match="demonstration pool"):
        lab.start(
            load(None, [*SMALL, "env.train_tasks=3"], {"scheme.name": "icrl"}), tmp_path / "run"
        )
    assert list(tmp_path.iterdir()) == []
