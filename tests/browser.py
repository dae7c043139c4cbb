"""The Chromium that browser tests drive. A machine without one fails them, unless it says that it has none.

`HOOSH_TEST_WITHOUT_BROWSER=1` skips them.
"""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import Browser, Playwright, expect

NAMES = ("chromium", "chromium-browser", "google-chrome")  # what tools/ensure_system.sh is content with
WITHOUT = "HOOSH_TEST_WITHOUT_BROWSER"
WAIT_MS = 45_000  # for what a page shall show or do; two cores are shared with all that is tested

expect.set_options(timeout=WAIT_MS)

needs_browser = pytest.mark.skipif(os.environ.get(WITHOUT) == "1", reason=f"{WITHOUT} is set")


def chromium(path: str | None = None) -> str:
    """The program, looked for in `path` (by default the usual one). Fails the test when there is none."""
    where = f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin:/sbin" if path is None else path
    found = next((program for name in NAMES if (program := shutil.which(name, path=where))), None)
    if found is None:
        pytest.fail(f"No Chromium here ({', '.join(NAMES)}). Run tools/ensure_system.sh, or set {WITHOUT}=1.")
    return found


def launch(playwright: Playwright) -> Browser:
    """A headless browser; close it."""
    return playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
