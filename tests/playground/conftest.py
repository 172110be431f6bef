import os
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "real"))

from harness import Server  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

CONFIG = """
[[models]]
id = "multilingual"
path = "builtin:default"

[[models]]
id = "org/tiny"
path = '{tiny}'
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text(CONFIG.format(tiny=ROOT / "tests/fixtures/checkpoints/llama"))
    with Server(config=config) as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, and tests in containers run as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the playground in a new browser context. The test fails if the console has errors or warnings."""
    contexts, complaints = [], []

    def open_page(url=None, ready=True, **context):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.complaints = complaints
        page.goto(url or server.url + "/")
        if ready:
            page.wait_for_selector("#tokens ol li")
            page.wait_for_selector("#ranking li")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
