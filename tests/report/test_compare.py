"""Comparisons of invented runs: the arms, what is never dropped, the figures, and the pages."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolrl_box import cli, stats
from toolrl_box.errors import ConfigError, RunFolderError
from toolrl_box.report import write_comparison
from toolrl_box.report.arm_marks import mean_curve
from toolrl_box.report.arms import find_runs, group
from toolrl_box.report.compare import WORLDS, Comparison, compare
from toolrl_box.report.paper import ACEBENCH, BFCL, NAMES
from toolrl_box.runlog import RunLog
from toolrl_box.schemes import SCHEMES

STUDY = Path(__file__).parents[2] / "results" / "collapse"
CATEGORIES = ("base", "miss_func")
HOSTILE = "<script>alert(1)</script> | [x](http:evil)"


def config(scheme: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "scheme": {"name": scheme},
        "format": "hermes",
        "grpo": {"lr": 1e-3, "prompts_per_step": 2, "group_size": 4},
        "sft": {"batch_size": 16},
        "steps": 20,
        "seed": seed,
        "eval": {"every": 5},
    } | more


def build(
    path: Path, values: dict[str, Any], *, level: float = 0.3, end: float = 0.5, done: bool = True
) -> Path:
    """Twenty steps, every fifth an SFT update, from ``level`` to ``end``."""
    rng = np.random.default_rng(values["seed"])
    with RunLog.create(path, values, {}) as log:
        for step in range(21 if done else 12):
            kind = "" if not step else "sft" if step % 5 == 0 else "rl"
            row: dict[str, Any] = {"step": step, "phase_kind": kind, "bank_kl": step / 100}
            row |= {"lr": 1e-3, "seconds_step": 0.5} if step else {}
            score = level + (end - level) * step / 20
            if kind == "rl":
                row |= {"reward": score, "completion_tokens": 10.0}
                row |= {"state_healthy_call": 0.5, "state_healthy_response": 0.45}
                row |= {"state_text_pollution": 0.05, "state_collapsed": 0.0}
            if step % 5 == 0:
                noise = rng.normal(0, 0.02, size=len(CATEGORIES)) if step else np.zeros(2)
                scores = np.clip(score + noise, 0, 1)
                row |= {"eval_sampled": scores.mean(), "eval_greedy": scores.mean()}
                for category, share in zip(CATEGORIES, scores, strict=True):
                    row |= {f"eval_sampled_{category}": share, f"eval_greedy_{category}": share}
            log.metrics(row)
        log.event("best", step=0, score=level)
        if done:
            log.event("finish", step=20)
        log.commit()
    return path


def evaluate(run: Path, names: list[str], level: float) -> None:
    scores = {"success": level, "by_category": dict.fromkeys(CATEGORIES, level), "errors": 0}
    worlds = {
        world: {"split": "ood", "format": "xml", "greedy": scores, "sampled": scores}
        for world in WORLDS
    }
    made = [{"step": 20, "names": names, "tasks": 32, "worlds": worlds}]
    (run / "evaluation.json").write_text(json.dumps(made))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished arms, an arm of one run, a run that was cut off, and a cell that failed."""
    root = tmp_path_factory.mktemp("compared") / "study"
    for seed in range(4):
        run = build(root / "rl" / f"seed{seed}", config("rl", seed), end=0.0)
        evaluate(run, ["final"], 0.1)
        evaluate(build(root / "mix" / f"seed{seed}", config("reflection", seed)), ["best"], 0.4)
    build(root / "one" / "seed0", config("sft", 0))
    build(root / "mix" / "seed4", config("reflection", 4), done=False)
    cells = [
        {"run_dir": "mix/seed5", "arm": "mix", "seed": 5, "state": "failed"}
        | {"cause": f"exit code 2: error: no space {HOSTILE}"},
        {"run_dir": "mix/seed6", "arm": "mix", "seed": 6, "state": "waiting", "cause": None},
        {"run_dir": "mix/seed0", "arm": "mix", "seed": 0, "state": "finished", "cause": None},
    ]
    (root / "study.json").write_text(json.dumps(cells))
    return root


@pytest.fixture(scope="module")
def written(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison([study], folder)
    return folder


def of(comparison: Comparison, name: str) -> Any:
    return next(figures for figures in comparison.arms if figures.arm.name == name)


# --- arms -------------------------------------------------------------------------------------


def test_runs_are_grouped_by_everything_but_the_seed(study: Path) -> None:
    arms = {arm.name: arm for arm in group(find_runs([study]))}
    assert sorted(arms) == ["reflection", "rl", "sft"]
    assert [run.seed for run in arms["rl"].finished] == [0, 1, 2, 3]
    assert all(not arm.mixed for arm in arms.values())


def test_arms_of_one_scheme_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    build(tmp_path / "a", config("rl", 0))
    build(tmp_path / "b", config("rl", 0, grpo={"lr": 2e-4, "group_size": 4}))
    build(tmp_path / "c", config("sft", 0))
    build(tmp_path / "d", config("rl", 1, eval={"every": 10}))
    names = [arm.name for arm in group(find_runs([tmp_path]))]
    assert names == ["rl, lr 0.001", "rl, lr 0.0002", "sft"]


def test_a_setting_that_older_runs_do_not_know_splits_no_arm_but_is_said(tmp_path: Path) -> None:
    build(tmp_path / "old", config("rl", 0))
    build(tmp_path / "new", config("rl", 1, warmup_updates=0))
    comparison = compare(group(find_runs([tmp_path])))
    assert [len(figures.arm.runs) for figures in comparison.arms] == [2]
    assert "Arm 'rl' mixes runs with different warmup_updates: 0, –." in comparison.notes


def test_any_setting_can_be_asked_for_and_a_mix_is_named(tmp_path: Path) -> None:
    build(tmp_path / "a", config("rl", 0))
    build(tmp_path / "b", config("rl", 1, format="xml"))
    build(tmp_path / "c", config("sft", 2, format="xml"))
    runs = find_runs([tmp_path])
    assert [arm.name for arm in group(runs, ["scheme"])] == ["rl", "sft"]
    assert [arm.name for arm in group(runs, ["format"])] == ["hermes", "xml"]
    assert [arm.name for arm in group(runs, ["grpo.lr"])] == ["lr 0.001"]
    both = [arm.name for arm in group(runs, ["scheme", "format"])]
    assert both == ["rl, hermes", "rl, xml", "sft, xml"]
    notes = compare(group(runs, ["scheme"])).notes
    assert "Arm 'rl' mixes runs with different format: hermes, xml." in notes
    with pytest.raises(ConfigError, match=r"unknown setting 'grpo.lrr'; did you mean 'grpo.lr'"):
        group(runs, ["grpo.lrr"])


def test_the_same_run_given_twice_counts_once_and_copies_are_named(tmp_path: Path) -> None:
    one = build(tmp_path / "a" / "seed0", config("rl", 0))
    build(tmp_path / "b" / "seed0", config("rl", 0))
    assert len(find_runs([one, tmp_path / "a"])) == 1
    both = find_runs([tmp_path / "a", tmp_path / "b"])
    assert {run.name for run in both} == {str(tmp_path / x / "seed0") for x in "ab"}
    assert any("copies of seed 0" in note for note in compare(group(both)).notes)


def test_no_run_is_dropped_and_each_has_its_cause(study: Path, tmp_path: Path) -> None:
    runs = {run.name: run for run in find_runs([study])}
    assert (runs["mix/seed4"].state, runs["mix/seed4"].cause) == (
        "unfinished",
        "stopped at step 11, 9 of them RL",
    )
    assert runs["mix/seed5"].state == "failed"
    assert "no space" in str(runs["mix/seed5"].cause)
    assert (runs["mix/seed6"].state, runs["mix/seed6"].cause) == (
        "waiting",
        "it was never started",
    )
    mix = next(arm for arm in group(list(runs.values())) if arm.name == "reflection")
    assert (len(mix.runs), len(mix.finished)) == (7, 4)
    damaged = build(tmp_path / "damaged", config("rl", 0))
    (damaged / "metrics.parquet").write_bytes(b"PAR1")
    begun = tmp_path / "begun"
    RunLog.create(begun, config("rl", 1), {}).close()
    with RunLog.create(tmp_path / "now", config("rl", 2), {}):
        states = {run.name: run.state for run in find_runs([tmp_path])}
    assert states == {"begun": "unfinished", "damaged": "unreadable", "now": "running"}


def test_a_path_without_runs_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder and holds none"):
        find_runs([tmp_path])
    for words in (["compare", "none"], ["compare", str(STUDY), "--by", "shceme"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--output", str(tmp_path / "out")])
        assert ended.value.code == cli.USER_ERROR
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# --- figures ----------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_finished_runs(study: Path) -> None:
    comparison = compare(group(find_runs([study])))
    rl, mix = of(comparison, "rl"), of(comparison, "reflection")
    assert comparison.categories == CATEGORIES
    assert rl.collapse["collapsed"].hits == 4
    assert rl.collapse["collapsed"].interval == stats.proportion_interval(4, 4)
    assert mix.collapse["collapsed"].hits == 0
    assert mix.success["final", "sampled", "all"].value == pytest.approx(0.5, abs=0.03)
    assert rl.success["best", "sampled", "all"].value == pytest.approx(0.3, abs=0.02)
    assert mix.success["final", "greedy", "miss_func"].runs == 4
    assert rl.scores_R_K.shape == (4, 2)
    over = comparison.improvement["reflection", "rl"]
    assert (over.value, over.interval) == (1.0, (1.0, 1.0))
    assert rl.cost["sft_updates"].value == 4
    assert rl.cost["sft_sequences_at_most"].value == 64
    assert rl.cost["sampled_tokens"].value == 16 * 10 * 8
    assert rl.ood["final", "both_ood", "sampled"].value == 0.1
    assert {key[0] for key in mix.ood} == {"best"}


def test_one_run_has_no_interval_over_runs_and_it_is_said(study: Path) -> None:
    comparison = compare(group(find_runs([study])))
    one = of(comparison, "sft")
    assert one.success["final", "sampled", "all"].interval is None
    assert one.iqm["whole_runs"].interval is None
    assert one.collapse["collapsed"].interval == stats.proportion_interval(0, 1)
    assert comparison.improvement["sft", "rl"].interval is None
    assert any("'sft' has one finished run: no interval" in note for note in comparison.notes)


def test_a_run_too_short_to_judge_is_in_no_collapse_rate_and_it_is_said(tmp_path: Path) -> None:
    with RunLog.create(tmp_path / "short", config("rl", 0), {}) as log:
        log.metrics({"step": 1, "phase_kind": "rl", "reward": 0.2, "eval_greedy": 0.3})
        log.event("finish", step=1)
        log.commit()
    comparison = compare(group(find_runs([tmp_path])))
    assert comparison.arms[0].collapse == {}
    assert any("1 finished run(s) too short" in note for note in comparison.notes)
    assert any("1 finished run(s) without an evaluation" in note for note in comparison.notes)


def test_the_base_stands_in_the_papers_table_whichever_arm_it_was_tried_in(
    study: Path, tmp_path: Path
) -> None:
    run = build(tmp_path / "runs" / "a", config("guarded", 0))
    evaluate(run, ["base", "final"], 0.25)
    write_comparison([study, tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "compare.md").read_text().replace("\\", "")
    assert "| (base) | untouched | 0.250 (1 run) | 0.250 (1 run) | 26 | 31.6 |" in text


def test_an_arm_keeps_its_intervals_when_another_one_joins(study: Path) -> None:
    alone = compare(group(find_runs([study / "rl"])))
    together = compare(group(find_runs([study])))
    assert of(alone, "rl").success == of(together, "rl").success
    assert of(alone, "rl").iqm == of(together, "rl").iqm


def test_a_shorter_run_keeps_its_last_value_in_the_mean_curve(study: Path) -> None:
    runs = [run for run in find_runs([study / "mix"]) if run.name in ("seed0", "seed4")]
    steps, curves = mean_curve(runs, "bank_kl")
    assert (steps[-1], curves.shape) == (20, (2, 21))
    assert curves[1, 11:].tolist() == [0.11] * 10


def test_the_committed_study_gives_the_figures_of_its_own_table() -> None:
    comparison = compare(group(find_runs([STUDY])))
    summary = json.loads((STUDY / "summary.json").read_text())
    arms = {"interleaved": "interleaved", "rl": "rl, grpo.lr 0.0012", "sft-only": "sft"}
    for theirs, ours in {**arms, "rl-low-lr": "rl, grpo.lr 0.0002"}.items():
        figures, expected = of(comparison, ours), summary[theirs]
        assert figures.collapse["below_half_of_base"].hits == expected["collapsed"]
        exact = figures.collapse["below_half_of_base"].interval
        assert exact == pytest.approx(expected["collapse_interval"])
        final = figures.success["final", "sampled", "all"]
        assert final.value == pytest.approx(expected["final"])
        assert final.interval == pytest.approx(expected["final_interval"], abs=0.01)
        assert figures.cost["sft_updates"].value == expected["sft_updates"]


def test_the_paper_names_only_schemes_that_are_or_are_to_be_here() -> None:
    planned = {"untouched", "off_policy", "hint", "erroneous", "reflection"}
    named = set(NAMES) | set(ACEBENCH) | {name for table in BFCL.values() for name in table}
    assert named == set(NAMES) <= planned | set(SCHEMES)


# --- pages ------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_comparison_is_four_texts_and_its_pictures(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        *("compare.html", "compare.md", "compare.csv", "runs.csv"),
        *("curves.png", "categories.png", "aggregates.png", "profile.png"),
        *("improvement.png", "signals.png", "ood.png"),
    }
    page = Page((written / "compare.html").read_text())
    assert len(page.addresses) == 7
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)


def test_nothing_from_the_data_becomes_mark_up(written: Path) -> None:
    html, text = ((written / f"compare.{kind}").read_text() for kind in ("html", "md"))
    assert "script" not in Page(html).tags
    assert "&lt;script&gt;" in html
    assert r"\<script\>" in text
    assert not re.search(r"(?<!\\)<", text)
    row = next(line for line in text.splitlines() if "no space" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 5


def test_the_pages_list_what_failed_and_show_the_paper_beside_ours(written: Path) -> None:
    for name in ("compare.html", "compare.md"):
        text = (written / name).read_text().replace("\\", "")
        assert "3 arms, 9 of 12 runs finished" in text
        assert "stopped at step 11, 9 of them RL" in text
        assert "3 of 7 runs did not finish" in text
        assert "PRS, process reflection" in text
        assert "25.75" in text
        assert "as reported" in text
        assert "(1 run)" in text


def test_the_csv_is_tidy_and_leaves_what_is_not_there_empty(written: Path) -> None:
    with (written / "compare.csv").open() as file:
        rows = {(row["arm"], row["figure"], row["part"]): row for row in csv.DictReader(file)}
    one = rows["sft", "final_sampled", "all"]
    assert (one["runs"], one["low"], one["high"], one["interval"]) == ("1", "", "", "")
    rate = rows["rl", "collapse_rate", "collapsed"]
    assert (rate["value"], rate["interval"]) == ("1.0", "exact binomial")
    assert ("rl", "probability_of_improvement", "over reflection") in rows
    with (written / "runs.csv").open() as file:
        runs = {row["run"]: row for row in csv.DictReader(file)}
    assert len(runs) == 12
    assert runs["mix/seed5"]["state"] == "failed"
    assert runs["rl/seed0"]["verdict"] == "reward_collapse"


def test_comparing_twice_gives_the_same_files(study: Path, written: Path, tmp_path: Path) -> None:
    write_comparison([study], tmp_path)
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_runs_that_have_not_finished_are_compared_without_figures(tmp_path: Path) -> None:
    build(tmp_path / "runs" / "a", config("rl", 0), done=False)
    write_comparison([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "compare.md").read_text().replace("\\", "")
    assert "1 arm, 0 of 1 runs finished" in text
    assert "has no finished run: it has no figures" in text
    assert not list((tmp_path / "out").glob("*.png"))


def test_text_that_a_spreadsheet_would_run_is_kept_from_it(tmp_path: Path) -> None:
    build(tmp_path / "runs" / "=1+1", config("rl", 0))
    write_comparison([tmp_path / "runs"], tmp_path / "out")
    assert "\n'=1+1,rl" in (tmp_path / "out" / "runs.csv").read_text()
