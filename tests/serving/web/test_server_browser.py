"""The real page behind its guard, in the system's Chromium: it works, asks no other host, and cannot be framed."""

import runpy
from pathlib import Path

import pytest

from rlhf.serving.catalogue import find_models
from rlhf.serving.engine.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.service import Service
from rlhf.serving.web.access import Access, hash_password
from rlhf.serving.web.server import build_app

SCRIPTED = runpy.run_path(str(Path(__file__).with_name("scripted.py")))
serving = SCRIPTED["serving"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))["make_runs"](root)
    models = find_models(root)
    engine = Engine(models["causal"], reward_runs=models["reward"])
    access = Access({}, {"mina": hash_password("correct horse")})
    with serving(build_app(Service(engine, Encoders({}), root), access=access)) as address:
        yield address


def watched_page(chromium, url: str, events: list[str]):
    """A new page that writes errors of its console and requests to other hosts into `events`."""
    page = chromium.new_context(locale="en-US").new_page()

    def on_console(message):
        if message.type == "error":
            events.append(f"console: {message.text}")

    def on_request(request):
        if not request.url.startswith((url, "data:", "blob:")):
            events.append(f"request: {request.url}")

    page.on("console", on_console)
    page.on("request", on_request)
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    return page


def test_log_in_and_use_the_page_without_an_error_or_another_host(chromium, url):
    events: list[str] = []
    page = watched_page(chromium, url, events)
    page.goto(url)
    assert page.url == f"{url}/login"
    page.fill("#username", "mina")
    page.fill("#password", "wrong password")
    page.click("button")
    assert "wrong" in page.inner_text("[role=alert]")
    assert page.input_value("#username") == "mina"
    events.clear()  # the console tells of the 401
    page.fill("#password", "correct horse")
    page.click("button")
    page.wait_for_selector("textarea", timeout=60_000)
    assert page.url == f"{url}/"
    page.get_by_text("Use via API").first.click()
    page.get_by_text("API documentation", exact=False).first.wait_for(timeout=20_000)
    page.wait_for_timeout(500)
    assert events == []
    assert page.evaluate("document.cookie") == ""  # scripts cannot read the session


def test_another_site_cannot_frame_the_page(chromium, url):
    page = chromium.new_page()
    other = "http://other.example/"
    frame = f"<iframe src='{url}/login'></iframe>"
    page.route(other, lambda route: route.fulfill(body=frame, content_type="text/html"))
    page.goto(other)
    page.wait_for_timeout(1000)
    urls = [frame.url for frame in page.frames]
    assert len(urls) == 2 and urls[0] == other
    assert urls[1].startswith("chrome-error:")  # not the login page
