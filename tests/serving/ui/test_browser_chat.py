"""The chat in Chromium: what only a browser can show."""

import json

import pytest

from rlhf.serving.ui.conversation import add, add_answers, new_conversation

HOSTILE = (
    '<script>window.hit=1</script><img src="http://evil.example/a" onerror="window.hit=1">'
    '<svg onload="window.hit=1"></svg><style>@import url(http://evil.example/s);body{display:none}</style>'
    '<a href="http://evil.example" style="position:fixed;top:0;left:0;width:100vw;height:100vh">x</a>'
    "![i](http://evil.example/leak) [j](javascript:window.hit=1) [d](data:text/html,<script>window.hit=1</script>)"
    '<iframe src="http://evil.example"></iframe><link rel=stylesheet href="http://evil.example/l">'
    "{{constructor}} ${window.hit=1} `${window.hit=1}`"
)


def send(page, text):
    """Send a message and wait for the end of its answer."""
    before = page.locator(".turn").count()
    page.locator("#chat-box textarea").fill(text)
    page.locator("#chat-box textarea").press("Enter")
    page.wait_for_function(
        "count => document.querySelectorAll('#chat-talk .turn').length >= count && "
        "!document.querySelector('#chat-live .turn')",
        arg=before + 2,
    )


def bubbles(page, role):
    return page.locator(f".turn.{role} .bubble").all_inner_texts()


def check_inert(page):
    """Nothing ran, nothing was asked of another host, and no element came out of a text."""
    assert page.evaluate("window.hit") is None
    assert page.abroad == [] and page.errors == []
    assert page.locator("#chat :is(img, script, iframe, link, style, svg[onload])").count() == 0
    assert page.locator("#chat-box textarea").is_visible()


@pytest.mark.slow
def test_nothing_that_is_typed_or_answered_runs_or_asks_another_host(open_page):
    page = open_page()
    send(page, "say " + HOSTILE)  # also the title in the list
    page.wait_for_timeout(100)
    check_inert(page)
    assert bubbles(page, "user") == ["say " + HOSTILE]


@pytest.mark.slow
def test_nothing_that_is_imported_or_kept_runs_or_asks_another_host(open_page):
    page = open_page()
    conversation, index = add(new_conversation(), -1, "user", HOSTILE)
    details = {"model": HOSTILE, "system": HOSTILE, "reward_model": HOSTILE, "seed": 1}
    conversation = add_answers(conversation, index, [{"text": HOSTILE, "details": details}])
    conversation["title"] = HOSTILE[:80]
    page.locator("#chat-side input[type=file]").set_input_files(
        {
            "name": "<img src=x>.json",
            "mimeType": "application/json",
            "buffer": json.dumps(conversation).encode(),
        }
    )
    page.wait_for_selector(".turn.model .foot")
    page.locator(".meta summary").click()
    page.wait_for_timeout(100)
    check_inert(page)
    page.reload()
    page.wait_for_selector(".turn")
    page.wait_for_timeout(200)
    check_inert(page)
    assert bubbles(page, "user") == [HOSTILE]


@pytest.mark.slow
def test_conversations_outlive_a_reload_and_a_deletion(open_page):
    page = open_page()
    send(page, "first")
    page.locator(".act[data-act=retry]").click()
    page.wait_for_selector("text=2/2")
    page.get_by_role("button", name="New chat").click()
    page.wait_for_selector(".welcome")
    send(page, "2*3*4 vector<int> <thinking>\n  x")
    page.reload()
    page.wait_for_selector(".turn")
    assert bubbles(page, "user") == ["2*3*4 vector<int> <thinking>\n  x"]
    # rename, delete, undo
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Rename").fill("mine")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete: mine").click()
    page.wait_for_selector(".welcome")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(".turn")
    titles = page.locator("#chat-side .title span").all_inner_texts()
    assert sorted(titles) == ["first", "mine"]
    # the other one still has both variants
    page.locator("#chat-side .title", has_text="first").click()
    page.wait_for_selector("text=2/2")
    page.get_by_role("button", name="Earlier version").click()
    page.wait_for_selector("text=1/2")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as Markdown").click()
    assert download.value.suggested_filename == "first.md"
    assert page.errors == []


@pytest.mark.slow
def test_a_refused_message_returns_to_the_box_and_notices_do_not_pile_up(open_page):
    page = open_page()
    box = page.locator("#chat-box textarea")
    send(page, "hi")
    for _ in range(3):
        box.fill("refuse this")
        box.press("Enter")
        page.wait_for_selector("#chat-notice >> text=99 tokens <b>")
    assert box.input_value() == "refuse this"
    assert page.locator(".toast-body").count() == 0 and page.locator(".turn").count() == 2
    assert page.locator("#chat-notice [role=status]").count() == 1
    box.fill("   ")
    box.press("Enter")
    page.wait_for_timeout(500)
    send(page, "again")
    assert bubbles(page, "user") == ["hi", "again"] and box.input_value() == ""
    assert page.locator("#chat-notice .notice").inner_text() == ""


@pytest.mark.slow
def test_everything_has_a_name_and_works_by_keyboard(open_page):
    page = open_page()
    box = page.locator("#chat-box textarea")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.get_by_role("button", name="Can you tell me a joke?").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.model .foot")
    page.wait_for_function("document.activeElement.tagName == 'TEXTAREA'")
    box.press("ArrowUp")
    assert box.input_value() == "Can you tell me a joke?"
    box.press("Shift+Enter")
    assert "\n" in box.input_value()
    for role, name in (
        ("textbox", "Message"), ("button", "Send"), ("combobox", "Model"), ("log", "Conversation"), ("button", "Copy"),
        ("textbox", "System prompt"), ("textbox", "Seed"), ("button", "Good answer"), ("button", "Edit"),
    ):  # fmt: skip
        assert page.get_by_role(role, name=name, exact=True).count() >= 1, name
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('#chat :is(button, input, textarea)')]
        .filter((e) => e.offsetParent && !e.innerText && !e.getAttribute('aria-label') && !(e.labels && e.labels.length))
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    page.locator(".act[data-act=thumb]").first.click()
    page.keyboard.press("Escape")
    assert page.locator("form.ask").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(390, 844), (320, 640)])
def test_a_phone_has_room_for_all_of_it(open_page, width, height):
    page = open_page(viewport={"width": width, "height": height}, has_touch=True)
    send(page, "say " + "a long line of words " * 60 + "averylongword" * 20)
    sizes = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    assert sizes[0] <= width and sizes[1] <= height + 40
    button = page.locator("#chat-send").bounding_box()
    assert button["x"] + button["width"] <= width and button["y"] + button["height"] <= height
    small = page.evaluate(
        """() => [...document.querySelectorAll('#chat button')].filter((e) => e.offsetParent)
        .map((e) => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()])
        .filter(([, r]) => r.width < 24 || r.height < 24).map(([html]) => html)"""
    )
    assert small == []
    # the newest is in sight; after scrolling up there is a way back
    page.locator("#chat-thread").evaluate("e => e.scrollTo(0, 0)")
    page.get_by_role("button", name="Jump to newest").click()
    page.wait_for_function(
        "(() => { const e = document.querySelector('#chat-thread');"
        "return e.scrollHeight - e.scrollTop - e.clientHeight < 80; })()"
    )
    page.get_by_role("button", name="Settings").click()
    assert page.get_by_role("textbox", name="Seed").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('#chat').dataset.drawer")


@pytest.mark.slow
def test_what_is_typed_while_an_answer_is_awaited_stays(open_page):
    page = open_page()
    box = page.locator("#chat-box textarea")
    box.fill("slow")
    box.press("Enter")
    box.fill("the next one")  # before the server has said a word
    page.wait_for_selector(".turn.user .bubble >> text=slow")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("#chat-send", state="visible")
    assert box.input_value() == "the next one"


@pytest.mark.slow
def test_korean_dark_and_stop(open_page):
    page = open_page(locale="ko-KR", color_scheme="dark")
    assert page.get_by_role("tab", name="채팅").is_visible()
    page.locator("#chat-box textarea").fill("slow")
    page.locator("#chat-box textarea").press("Enter")
    page.get_by_role("button", name="멈추기").click()
    page.wait_for_selector(".meta >> text=멈춤")
    for name in ("보내기", "다시 답하기", "이어 쓰기", "새 대화"):
        assert page.get_by_role("button", name=name).first.is_visible()
    colours = page.evaluate(
        """['.turn.user .bubble', '.turn.model .bubble', 'body'].map((name) => {
          const style = getComputedStyle(document.querySelector(name)); return [style.backgroundColor, style.color]; })"""
    )
    assert colours[0][0] != colours[2][0]  # a bubble can be told from the page
    assert all(colour[1] != colours[2][0] for colour in colours)


@pytest.mark.slow
def test_a_server_that_stops_leaves_the_text_and_says_so(open_page, served):
    own = served.server(served.service(served.engine()))
    page = open_page(own.url)
    page.locator("#chat-box textarea").fill("half a thought")
    page.clock.install()
    own.stop()
    for _ in range(3):
        page.clock.run_for(10_000)
        page.wait_for_timeout(100)
    page.wait_for_selector("#chat-notice >> text=does not answer")
    assert page.locator("#chat-box textarea").input_value() == "half a thought"
