"""How fast a diagnosis page with very many messages is written and opened.

    python benchmarks/page.py [--messages 50000] [--characters 500] [--repeats 5] [--browser PATH]

Takes the messages of ``tests/data/collapsed.json`` again and again, followed by random digits
up to so many characters, which compress badly, and gives them to 60 steps. Prints seconds and size
of writing, then the medians of a headless Chromium that opens the file: first contentful paint,
the timeline answering, the first step's messages shown; then another step, and all steps at once.
Needs the dev extra and Debian's chromium. Seconds depend on the machine and its load.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.page import write_page
from toolrl_box.diagnose.records import Judged

DATA = Path(__file__).parent.parent / "tests" / "data"
sys.path.insert(0, str(DATA))
from make_collapsed import load  # noqa: E402

NAMES = ("first paint", "timeline answers", "messages shown", "another step", "all steps")


def many(count: int, characters: int) -> tuple[Diagnosis, list[Judged]]:
    """The real run with ``count`` messages, as many in each step."""
    rng = random.Random(0)
    diagnosis, few = load(DATA / "collapsed.json")
    steps = [row.step for row in diagnosis.steps if row.messages]
    messages = [
        replace(
            few[number % len(few)],
            step=steps[number * len(steps) // count],
            text=f"{few[number % len(few)].text} {rng.getrandbits(4 * characters):x}"[:characters],
        )
        for number in range(count)
    ]
    states, kinds = Counter((m.step, m.state) for m in messages), Counter()
    kinds.update((m.step, m.kind) for m in messages)
    rows = tuple(
        row.model_copy(
            update={
                "messages": sum(n for (step, _), n in states.items() if step == row.step),
                "states": {name: n for (step, name), n in states.items() if step == row.step},
                "kinds": {name: n for (step, name), n in kinds.items() if step == row.step},
            }
        )
        for row in diagnosis.steps
    )
    totals = diagnosis.totals.model_copy(update={"messages": count})
    return diagnosis.model_copy(update={"steps": rows, "totals": totals}), messages


def open_once(browser: Browser, file: Path) -> list[float]:
    """Milliseconds of :data:`NAMES`; the first three since navigation began."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri(), wait_until="commit")
    page.locator("#a .message").first.wait_for()
    page.wait_for_timeout(500)  # until the browser has noted its paint
    named = "name => performance.getEntriesByName(name)[0].startTime"
    marks = ("first-contentful-paint", "toolrl-ready", "toolrl-open")
    taken = [float(page.evaluate(named, mark)) for mark in marks]
    change = """async ([name, value]) => {
      const field = document.querySelector(`#a form [name=${name}]`);
      const status = document.querySelector('#a .count');
      const begin = performance.now();
      const observe = (done) => new MutationObserver(done).observe(status, {childList: true});
      const shown = new Promise(observe);
      field.value = value;
      field.dispatchEvent(new Event('input', {bubbles: true}));
      await shown;
      return performance.now() - begin;
    }"""
    taken.append(float(page.evaluate(change, ["step", "40"])))
    taken.append(float(page.evaluate(change, ["step", "all"])))
    page.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--characters", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--browser", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    if arguments.browser is None:
        sys.exit("no chromium found: apt-get install chromium, or --browser PATH")
    diagnosis, messages = many(arguments.messages, arguments.characters)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        file = Path(folder) / "page.html"
        begin = time.perf_counter()
        write_page(diagnosis, messages, file)
        seconds = time.perf_counter() - begin
        text = sum(len(message.text) for message in messages) / 1e6
        print(f"{len(messages):,} messages, {text:.1f}M characters of text")
        print(f"{'written in':18}{seconds:8.2f} s, {file.stat().st_size / 1e6:.1f} MB")
        browser = driver.chromium.launch(executable_path=arguments.browser)
        rounds = [open_once(browser, file) for _ in range(arguments.repeats)]
        browser.close()
    for name, column in zip(NAMES, zip(*rounds, strict=True), strict=True):
        print(f"{name:18}{statistics.median(column) / 1e3:8.2f} s (worst {max(column) / 1e3:.2f})")


if __name__ == "__main__":
    main()
