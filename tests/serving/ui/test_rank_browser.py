"""Compare and rank by keyboard in Chromium: models are in no response before the decision, and injected text is inert."""

import re
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import gradio as gr
import pytest
import uvicorn
from fastapi import FastAPI

from rlhf.feedback.store import Store
from rlhf.serving.engine.requests import Completion, Limits, StreamEnd, TextChunk
from rlhf.serving.ui import blind, compare, rank, texts

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system"),
]
OUTSIDE = "http://outside.example"
CORPUS = (
    "<script>window.hit = 1</script>",
    f"<img src={OUTSIDE}/a onerror='window.hit = 1'>",
    f"![x]({OUTSIDE}/b)",
    f"<style>body {{background: url({OUTSIDE}/c)}}</style>",
    f"<svg onload='window.hit = 1'><image href='{OUTSIDE}/d'/></svg>",
    f"<a href='{OUTSIDE}' style='position:fixed;inset:0'>x</a>",
    "${window.hit = 1} {{value}} {{{value}}} ${value}",
    "javascript:window.hit=1",
)

# Keeps what the page gets from the server about its questions.
KEEP_STREAMS = """
window.received = "";
const fetched = window.fetch;
window.fetch = async (...given) => {
  const response = await fetched(...given);
  if (String(given[0].url || given[0]).includes("queue/data")) {
    const reader = response.clone().body.getReader(), decoder = new TextDecoder();
    const read = async () => {
      const {done, value} = await reader.read();
      if (!done) { window.received += decoder.decode(value); await read(); }
    };
    read().catch(() => {});  // the page ends its streams
  }
  return response;
};
"""


class ScriptedEngine:
    """Three models whose answers are the whole corpus. Their names appear nowhere else."""

    runs = {"hidden-one": "1", "hidden-two": "2", "hidden-<i>three</i>": "3"}
    reward_runs: dict = {}
    limits = Limits()

    def stream(self, model, messages, settings, *, request, client):
        yield TextChunk(" ".join(CORPUS))
        time.sleep(0.3)  # so that a frame is sent while the answers grow
        yield TextChunk(f" number {list(self.runs).index(model)}")
        yield StreamEnd(3, 10.0, "stop", 0, settings.seed)

    def sample(self, model, messages, settings, n, *, request, client):
        return [Completion(f"{CORPUS[settings.seed % 8]} {settings.seed}", 3, "stop")]

    def cancel(self, request):
        return True


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, store) of a page with the two tabs."""
    store = Store(tmp_path_factory.mktemp("judged") / "feedback")
    service = SimpleNamespace(engine=ScriptedEngine(), feedback=store)
    for module in (blind, compare, rank):
        texts.add_texts(module.TEXTS)
    with gr.Blocks(analytics_enabled=False) as page:
        with gr.Tabs():
            for module, name in ((compare, "compare.tab"), (rank, "rank.tab")):
                with gr.Tab(texts.label(name), id=name):
                    module.build(service, page)
    app = gr.mount_gradio_app(
        FastAPI(), page, path="/", css=blind.CSS + rank.CSS, i18n=texts.i18n(), ssr_mode=False
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}", store
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def page(served, chromium):
    """A page in Chromium, which notes requests to other hosts and the bodies that came back for questions."""
    address, _ = served
    page = chromium.new_page(locale="en-US", viewport={"width": 390, "height": 844})
    page.outside, page.problems = [], []
    page.on("request", lambda r: r.url.startswith(address) or page.outside.append(r.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.add_init_script(KEEP_STREAMS)
    page.goto(address)
    page.wait_for_selector("#compare-prompt textarea")
    yield page
    page.context.close()


def unharmed(page) -> None:
    assert page.evaluate("window.hit") is None
    assert [url for url in page.outside if not url.startswith(("data:", "blob:"))] == []
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_compare_by_keyboard_stays_blind_until_the_verdict(page, served):
    page.fill("#compare-prompt textarea", CORPUS[1])
    page.press("#compare-prompt textarea", "Shift+Enter")
    page.wait_for_selector("#compare-left:not([disabled])")
    assert page.locator("#compare-answers .judge-card .words").count() == 2
    assert page.locator("#compare-answers .words").nth(1).inner_text().startswith(CORPUS[0])
    page.wait_for_function("window.received.includes('number 0')")
    bodies = page.evaluate("window.received")
    bodies = re.sub(
        r'"choices":\[\[.*?\]\]', "", bodies
    )  # of the picker, in which the user chose them
    assert (
        "hidden-" not in bodies and bodies.count(CORPUS[6]) >= 4
    )  # frames of growing answers, too
    assert "hidden-" not in page.locator("#compare-answers").inner_html()
    page.wait_for_function("document.activeElement.id === 'compare-left'")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#compare-answers .reveal")
    assert "hidden-" in page.locator("#compare-answers").inner_text()
    page.wait_for_selector("#compare-strengths table")
    [event] = served[1].events()
    assert event.verdict == "right" and event.messages[0]["content"] == CORPUS[1]
    unharmed(page)


def test_rank_by_keyboard_with_a_tie_and_an_own_answer(page, served):
    page.get_by_role("tab").nth(1).click()
    page.fill("#rank-prompt textarea", "Hi!")
    page.press("#rank-prompt textarea", "Shift+Enter")
    page.wait_for_selector("#rank-answers .rank-card")
    page.wait_for_function("document.activeElement.dataset.letter === 'A'")
    assert "hidden-" not in page.locator("#rank-answers").inner_html()
    for key in "2122":
        page.keyboard.press(key)
    assert page.locator(".rank-order").inner_text().split() == "B › A = C = D".split()
    page.fill("#rank-written textarea, #rank-written input", CORPUS[0])
    page.locator("#rank-answers .rank-card").nth(3).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#rank-answers .reveal")
    event = list(served[1].events())[-1]
    assert sorted(event.ranks) == [0, 1, 2, 2, 2] and event.answers[-1].text == CORPUS[0]
    assert event.ranks[event.shown[1]] == 1
    unharmed(page)
