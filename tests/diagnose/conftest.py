"""A run of ours that really collapsed, and a real browser where there is one."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from toolrl_box.diagnose.diagnosis import Diagnosis
from toolrl_box.diagnose.records import Judged

DATA = Path(__file__).parent.parent / "data"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Loaded = tuple[Diagnosis, list[Judged]]


@pytest.fixture(scope="session")
def collapsed() -> Loaded:
    """A diagnosis and some of its messages, from ``tests/data/make_collapsed.py``."""
    spec = importlib.util.spec_from_file_location("make_collapsed", DATA / "make_collapsed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load: Callable[[Path], Loaded] = module.load
    return load(DATA / "collapsed.json")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; playwright is only its driver and downloads nothing."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium` runs these tests, too")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found)
        yield started
        started.close()
