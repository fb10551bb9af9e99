"""In Chromium: what the chat keeps with two tabs of one conversation or without storage, and where the focus goes."""

import pytest

pytestmark = pytest.mark.slow
DENIED = """
for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, {get() { throw new DOMException("denied", "SecurityError"); }});
"""
FULL = (
    "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };"
)
SPOILT = """
localStorage.setItem("rlhf.chat.conversation.a", '{"id": "a", "nodes": [null, 5]}');
localStorage.setItem("rlhf.chat.conversation.b", '"x"');
sessionStorage.setItem("rlhf.chat.current", "a");
"""
ANSWERS = """n => document.querySelectorAll("#chat-talk .turn.model").length >= n
  && !document.querySelector("#chat-live .turn")"""


def ask(page, question: str, answers: int) -> None:
    page.locator("#chat-box textarea").fill(question)
    page.keyboard.press("Enter")
    page.wait_for_function(ANSWERS, arg=answers)


def talk(page) -> str:
    return page.locator("#chat-talk").inner_text()


@pytest.fixture
def opened(chromium, server):
    """Opens pages of one profile, with a script that runs before the page's own: (page, errors)."""
    context = chromium.new_context(locale="en-US")
    errors = []

    def open_it(script: str = ""):
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and errors.append(line.text))
        page.goto(server.url)
        page.wait_for_selector("#chat-talk .welcome, #chat-talk .turn")
        return page, errors

    yield open_it
    context.close()


def test_two_tabs_of_one_conversation_lose_no_message(opened):
    first, _ = opened()
    ask(first, "from the start", 1)
    second, errors = opened()
    second.locator("#chat-side .title").first.click()
    second.wait_for_selector("#chat-talk .turn.model")
    ask(second, "from tab two", 2)
    first.wait_for_function(ANSWERS, arg=2)
    ask(first, "from tab one", 3)
    for page in (first, second):
        page.reload()
        page.wait_for_function(ANSWERS, arg=3)
        assert "from tab two" in talk(page) and "from tab one" in talk(page)
    assert not errors


def test_what_is_kept_elsewhere_meanwhile_is_not_overwritten(opened):
    page, _ = opened()
    ask(page, "first words", 1)
    # As another page would, while this one does not hear of it.
    page.evaluate("""() => {
      const key = Object.keys(localStorage).find((name) => name.startsWith("rlhf.chat.conversation."));
      const other = JSON.parse(localStorage.getItem(key));
      localStorage.setItem(key, JSON.stringify({...other, title: "other", updated: "2020-01-01T00:00:00Z"}));
    }""")
    ask(page, "more words", 2)
    page.wait_for_function("document.querySelectorAll('#chat-side .title').length === 2")
    assert "other" in page.locator("#chat-side ul").inner_text()


@pytest.mark.parametrize("script", [DENIED, FULL, SPOILT])
def test_a_browser_that_keeps_nothing_or_nonsense_can_chat(opened, script):
    page, errors = opened(script)
    ask(page, "hello", 1)
    page.locator("[data-act=retry]").last.click()
    page.wait_for_selector("#chat-talk .variants")
    ask(page, "again", 2)
    assert not errors


def test_the_focus_stays_where_somebody_works(opened):
    page, _ = opened()
    ask(page, "hello", 1)
    page.locator("[data-act=retry]").last.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat-talk .variants")
    assert page.evaluate("document.activeElement.closest('#chat-box') !== null")
    page.locator("[aria-label='Earlier version']").last.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.variants').innerText.includes('1/2')")
    page.wait_for_function("document.activeElement.getAttribute('aria-label') === 'Later version'")


@pytest.mark.parametrize("script", ["", FULL, DENIED])
def test_a_name_and_a_consent_are_for_the_next_visit(opened, script):
    page, errors = opened(script)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Your name").first.fill("Ada")
    page.get_by_label("My feedback may be published").locator("visible=true").check()
    page.get_by_role("tab", name="Chat").click()
    assert not errors
    page.reload()
    page.wait_for_selector("#chat-talk .welcome, #chat-talk .turn")
    page.get_by_role("tab", name="Compare").click()
    name = page.get_by_label("Your name").first
    name.wait_for()
    assert name.input_value() == ("" if script else "Ada")
    ticked = page.get_by_label("My feedback may be published").locator("visible=true").is_checked()
    assert ticked == (not script)
