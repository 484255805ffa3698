"""The page of a diagnosis in a real browser, without a network: what a reader can do with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from toolrl_box.diagnose import page as pages
from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.page import visible, write_page
from toolrl_box.diagnose.records import Judged

Loaded = tuple[Diagnosis, list[Judged]]
ONSET = 16
expect.set_options(timeout=30_000)  # a busy machine is slow, and that is no failure
Open = Callable[..., Page]


@pytest.fixture(scope="session")
def one(collapsed: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "one.html"
    write_page(*collapsed, file)
    return file


@pytest.fixture(scope="session")
def two(collapsed: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Against the first half of the same run, of which only even steps are there."""
    diagnosis, messages = collapsed
    rows = tuple(row for row in diagnosis.steps[:31] if row.step is not None and row.step % 2 == 0)
    half = diagnosis.model_copy(update={"name": "half", "steps": rows})
    kept = [m for m in messages if m.step is not None and m.step <= 30 and m.step % 2 == 0]
    file = tmp_path_factory.mktemp("page") / "two.html"
    write_page(diagnosis, messages, file, against=(half, kept))
    return file


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a page without a network; fails when it asked for one, or complained."""
    complaints: list[str] = []
    contexts = []

    def look(file: Path, **options: Any) -> Page:
        defaults: dict[str, Any] = {
            "viewport": {"width": 1200, "height": 900},
            "offline": True,
            "reduced_motion": "reduce",
        }
        context = browser.new_context(**(defaults | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda line: complaints.append(f"console: {line.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: complaints.append(f"request: {request.url[:99]}"))
        page.goto(file.as_uri())
        complaints.remove(f"request: {file.as_uri()[:99]}")
        return page

    yield look
    for context in contexts:
        context.close()
    assert complaints == []


def count(page: Page, run: str = "a") -> int:
    """How many messages the page says it found."""
    text = page.locator(f"#{run} .count").inner_text()
    return int(text.replace(",", "").split()[0])


def in_step(messages: list[Judged], step: int) -> list[Judged]:
    return [message for message in messages if message.step == step]


def choose(page: Page, field: str, label: str, run: str = "a") -> None:
    page.locator(f"#{run} select[name={field}]").select_option(label=label)


def click_step(page: Page, step: int, run: str = "a") -> None:
    """Click into the timeline above a step."""
    columns = json.loads(page.locator(f"#{run}-data").text_content() or "")["columns"]
    x = next(column["x"] for column in columns if column["step"] == step)
    plot = page.locator(f"#{run} .track.states .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * x / 100, box["y"] + box["height"] / 2)


def test_it_opens_at_the_onset_with_the_offending_spans_marked(
    opened: Open, one: Path, collapsed: Loaded
) -> None:
    page = opened(one)
    first = in_step(collapsed[1], ONSET)
    expect(page.locator("#a .message")).to_have_count(len(first))
    expect(page.locator("#a .here")).to_contain_text(f"Step {ONSET}, 48 rollouts")
    for shown, judged in zip(page.locator("#a .message").all(), first, strict=True):
        text = shown.locator("pre")
        assert text.text_content() == judged.text
        marked = [judged.text[judged.start : judged.end]] if "healthy" not in judged.state else []
        assert text.locator("mark").all_text_contents() == marked
        assert f"{judged.origin.file}:{judged.origin.line}" in shown.inner_text()


def test_pointing_at_a_step_shows_its_figures_and_a_click_opens_its_messages(
    opened: Open, one: Path, collapsed: Loaded
) -> None:
    page = opened(one)
    click_step(page, 40)
    expect(page.locator("#a .count")).to_contain_text("of step 40")
    expect(page.locator("#a .message")).to_have_count(len(in_step(collapsed[1], 40)))
    expect(page.locator("#a-messages-title")).to_be_in_viewport()
    reward = next(row.reward for row in collapsed[0].steps if row.step == 40)
    assert page.locator("#a .track.reward .value").inner_text() == f"{reward:g}"
    page.locator("#a .figures summary").click()
    expect(page.locator("#a .figures p")).to_contain_text("Learning rate 0.0012")
    page.locator("#a .track.reward .plot").hover(position={"x": 1, "y": 9})
    expect(page.locator("#a .here")).to_contain_text("Step 0, 0 rollouts")
    page.mouse.move(5, 5)
    expect(page.locator("#a .here")).to_contain_text("Step 40,")


def test_filters_leave_what_they_name(opened: Open, one: Path, collapsed: Loaded) -> None:
    _, messages = collapsed
    page = opened(one)
    choose(page, "step", "all")
    expect(page.locator("#a .count")).to_contain_text(f"{len(messages)} messages of all steps")
    choose(page, "state", "collapsed")
    left = [message for message in messages if message.state == "collapsed"]
    expect(page.locator("#a .count")).to_contain_text(f"{len(left)} of {len(messages)}")
    assert set(page.locator("#a .message .tag b").all_text_contents()) == {"collapsed"}
    choose(page, "category", "miss_func")
    left = [message for message in left if message.category == "miss_func"]
    expect(page.locator("#a .count")).to_contain_text(f"{len(left)} of {len(messages)}")
    page.get_by_role("button", name="Clear").click()
    choose(page, "step", "all")
    page.get_by_role("searchbox", name="Text").fill("READ_message")
    left = [message for message in messages if "read_message" in message.text]
    expect(page.locator("#a .count")).to_contain_text(f"{len(left)} of {len(messages)}")
    page.get_by_role("searchbox", name="Text").fill("nothing like that")
    expect(page.locator("#a .count")).to_contain_text(f"0 of {len(messages)}")
    expect(page.locator("#a .message")).to_have_count(0)


def test_long_lists_are_shown_in_parts(opened: Open, one: Path, collapsed: Loaded) -> None:
    page = opened(one)
    choose(page, "step", "all")
    expect(page.locator("#a .message")).to_have_count(25)
    page.get_by_role("button", name=re.compile("^Show 25 more")).click()
    expect(page.locator("#a .message")).to_have_count(50)
    expect(page.locator("#a .message").nth(25)).to_be_focused()


def test_everything_can_be_reached_by_keyboard(opened: Open, one: Path) -> None:
    page = opened(one)
    slider = page.get_by_role("slider")
    for _ in range(20):
        page.keyboard.press("Tab")
        if slider.evaluate("element => element === document.activeElement"):
            break
    expect(slider).to_be_focused()
    assert str(slider.get_attribute("aria-valuetext")).startswith(f"Step {ONSET}: 48 rollouts")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageDown")
    page.keyboard.press("Home")
    assert str(slider.get_attribute("aria-valuetext")).startswith("Step 0:")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert "Step 59: 48 rollouts" in str(slider.get_attribute("aria-valuetext"))
    assert "Reward 0, Success in evaluation –" in str(slider.get_attribute("aria-valuetext"))
    page.keyboard.press("Enter")
    expect(page.locator("#a .count")).to_contain_text("of step 59")
    expect(page.locator("#a-messages-title")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Previous step")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#a .count")).to_contain_text("of step 58")


@pytest.mark.parametrize(
    "text",
    [
        "<script>window.owned = 1</script>",
        "</script><script>window.owned = 1</script>",
        "<img src=x onerror='window.owned = 1'><svg onload='window.owned = 1'>",
        "]]> <!-- <script> --!> &lt;b&gt; \\u003cb\\u003e",
        "\u202egpj.exe\u2066 and \x00 and \x1b]8;;https://evil\x07link",
        "x" * 1_000_000 + "<script>window.owned = 1</script>",
    ],
    ids=["script", "end of script", "handlers", "ends and escapes", "controls", "one megabyte"],
)
def test_hostile_messages_are_shown_and_do_nothing(
    opened: Open, collapsed: Loaded, tmp_path: Path, text: str
) -> None:
    diagnosis, messages = collapsed
    bad = [
        replace(
            m, text=text, rollout=text, category=text, model=f"{text[:99]}{n % 2}", start=0, end=9
        )
        for n, m in enumerate(in_step(messages, ONSET))
    ]
    excerpt = diagnosis.first_wrong and diagnosis.first_wrong.model_copy(update={"excerpt": text})
    spoiled = diagnosis.model_copy(update={"name": text, "first_wrong": excerpt})
    write_page(spoiled, bad, tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    expect(page.locator("#a .message")).to_have_count(len(bad))
    choose(page, "step", "all")
    page.locator("#a select[name=model]").select_option(index=1)
    expect(page.locator("#a .message").first).to_be_visible()
    shown = str(page.locator("#a .message pre").first.text_content()).rstrip("…")
    assert visible(text, len(text)).startswith(shown)
    assert len(shown) >= min(len(text), 1000)
    assert page.evaluate("window.owned") is None
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_javascript_verdict_curves_and_table_are_there(
    opened: Open, one: Path, collapsed: Loaded
) -> None:
    page = opened(one, java_script_enabled=False)
    expect(page.get_by_role("heading", name=collapsed[0].verdict.headline)).to_be_visible()
    assert page.locator("#a .track.states clipPath").nth(2).locator("rect").count() == 60
    page.get_by_text("The same as a table").click()
    expect(
        page.get_by_role("row", name=re.compile("^16 48 0.0208 283 54% 41% 5% unreadable call, "))
    ).to_be_visible()
    expect(page.get_by_text("Reading single messages needs JavaScript")).to_be_visible()
    expect(page.locator("#a form")).to_be_hidden()


def test_two_runs_move_together_and_open_the_nearest_step(opened: Open, two: Path) -> None:
    page = opened(two, viewport={"width": 1700, "height": 1000})
    click_step(page, 21, "a")
    expect(page.locator("#a .count")).to_contain_text("of step 21")
    expect(page.locator("#b .count")).to_contain_text(re.compile("of step 2[02]"))
    tops = [page.locator(f"#{run} section.timeline h2").bounding_box() for run in ("a", "b")]
    assert tops[0] is not None
    assert tops[1] is not None
    assert tops[0]["y"] == tops[1]["y"]
    assert tops[0]["x"] < tops[1]["x"]
    choose(page, "state", "text pollution", "b")
    expect(page.locator("#b .count")).to_contain_text(" of ")
    assert count(page, "b") < count(page, "a") + 8
    expect(page.locator("#a .count")).not_to_contain_text(" of 7")


def test_a_log_without_steps_and_one_without_anything_open_as_well(
    opened: Open, collapsed: Loaded, tmp_path: Path
) -> None:
    diagnosis, messages = collapsed
    update = {"onsets": (), "last_healthy": None, "first_wrong": None}
    undated = diagnosis.steps[ONSET].model_copy(update={"step": None})
    snapshot = diagnosis.model_copy(update=update | {"steps": (undated,)})
    empty = diagnosis.model_copy(update=update | {"steps": ()})
    kept = [replace(message, step=None) for message in in_step(messages, ONSET)]
    write_page(empty, [], tmp_path / "page.html", against=(snapshot, kept))
    page = opened(tmp_path / "page.html")
    expect(page.locator("#b .message")).to_have_count(len(kept))
    expect(page.locator("#b .count")).to_contain_text("of no step")
    choose(page, "step", "all")
    expect(page.locator("#a .count")).to_contain_text("0 messages")


def test_steps_that_lie_behind_the_script_open_as_well(
    opened: Open, collapsed: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PACK", 1000)
    write_page(*collapsed, tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    for step in (ONSET, 1, 60):
        choose(page, "step", str(step))
        expect(page.locator("#a .message")).to_have_count(len(in_step(collapsed[1], step)))
    choose(page, "step", "all")
    expect(page.locator("#a .count")).to_contain_text(f"{len(collapsed[1])} messages")


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_narrow_window_needs_no_scrolling_sideways(
    opened: Open, name: str, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(name), viewport={"width": 400, "height": 800})
    expect(page.locator("#a .message").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_light_and_dark_follow_the_system_and_the_button(opened: Open, one: Path) -> None:
    page = opened(one, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Change to the light theme").click()
    light = page.evaluate(paper)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150
    assert sum(map(int, re.findall(r"\d+", light))) > 700
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Change to the dark theme").click()
    assert page.evaluate(paper) == dark


def test_on_paper_there_is_neither_dark_nor_a_form(opened: Open, one: Path) -> None:
    page = opened(one, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    expect(page.locator("#a form")).to_be_hidden()
    expect(page.locator("#a .message").first).to_be_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
