"""A browser, and the console in it."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The Chromium on the PATH, which `make test` installs on Debian and Ubuntu as root.

    Playwright keeps an event loop running in this thread for as long as it is open, and tests of
    other files start one of their own.
    """
    if os.environ.get("VLSERVE_NO_BROWSER"):
        pytest.skip("VLSERVE_NO_BROWSER is set")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "no Chromium is on the PATH: install one, or set VLSERVE_NO_BROWSER=1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()
