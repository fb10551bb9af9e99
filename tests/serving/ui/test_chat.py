"""The chat tab: the panel, the transcript, what depends on the model, and the endpoints' wiring."""

import json
from html.parser import HTMLParser

import gradio as gr
import pytest

from rlhf.errors import UserError
from rlhf.serving.engine.requests import SamplingSettings, Waiting
from rlhf.serving.ui import chat, settings_panel, texts, theme
from rlhf.serving.ui.answers import Progress
from rlhf.serving.ui.chat_actions import Screen
from rlhf.serving.ui.chat_texts import SCRIPT_TEXTS, TEXTS
from rlhf.serving.ui.conversation import add, add_answers, new_conversation
from rlhf.serving.ui.settings_panel import read_controls
from rlhf.serving.ui.transcript import Look, conversation_html, facts_html, live_html

texts.add_texts(TEXTS)
PANEL = ("ppo · demo", "", 0.7, 0.95, 128, "", 0, 1.0, "", 1)
LOOK = Look("en", ratable=True)
DETAILS = {
    "model": "ppo · demo", "seed": 5, "settings": {"temperature": 0.7, "top_p": 0.95}, "system": "be kind",
    "tokens": 2, "speed": 40.4, "finish": "stop", "cut": 2, "score": 0.25, "reward_model": "reward · demo",
}  # fmt: skip


class Reader(HTMLParser):
    """Texts by the class of the element that holds them, and the attributes of all buttons."""

    def __init__(self, content):
        super().__init__()
        self.open, self.texts, self.buttons, self.tags = [], {}, [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "path":
            return
        self.open.append((tag, attrs.get("class", "")))
        if tag == "button":
            self.buttons.append(attrs)

    def handle_endtag(self, tag):
        if tag == "path":
            return
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, names in self.open:
            for name in names.split():
                self.texts[name] = self.texts.get(name, "") + data


def exchange(question="hi", answer="ho", **details):
    conversation, index = add(new_conversation(), -1, "user", question)
    return add_answers(conversation, index, [{"text": answer, "details": DETAILS | details}])


# ---- the panel ---------------------------------------------------------------------------------------------------


def test_settings_from_the_panel():
    assert read_controls(*PANEL).settings.seed is None
    controls = read_controls("m", " s ", 0, 0.9, 64.0, " 12 ", 40.0, 1.1, "", 1.0)
    assert controls.settings == SamplingSettings(0, 0.9, 40, 64, 1.1, 12)
    assert controls.system == "s" and controls.best_of == 1


@pytest.mark.parametrize("seed", ["twelve", "-1", 1.5, "9007199254740993", True, "1e3"])
def test_a_bad_seed_is_explained_in_plain_words(seed):
    with pytest.raises(UserError) as refused:
        read_controls(*PANEL[:5], seed, *PANEL[6:])
    assert "whole number, such as 42" in str(refused.value)
    assert "9007199254740992" not in str(refused.value) and "seed=" not in str(refused.value)
    assert "정수" in texts.told(refused.value, "ko")


def test_best_of_needs_a_reward_model():
    with pytest.raises(UserError, match="reward model"):
        read_controls(*PANEL[:-1], 3)
    for count in (0, 1.5, "x", None):
        with pytest.raises(UserError, match="best_of"):
            read_controls(*PANEL[:-2], "reward", count)


# ---- what depends on the model -----------------------------------------------------------------------------------


def test_the_longest_answer_follows_the_model(served):
    short = chat.longest_answer(served.facts(context=128, max_new_tokens=127), 128)
    assert (short["maximum"], short["value"]) == (64, 64)
    wide = chat.longest_answer(served.facts(context=8192, max_new_tokens=1024), 128)
    assert (wide["maximum"], wide["value"]) == (1024, 128)


def test_the_limits_of_a_model_are_said_before_they_are_met(served):
    line = facts_html(served.facts(), "en")
    for words in ("128 tokens", "each question on its own", "no system prompt", "ASCII text only"):
        assert words in line
    assert "질문마다" in facts_html(served.facts(), "ko")
    unknown = served.facts(context=None, trained_turns=None, system_prompt=None, characters=None)
    assert facts_html(unknown, "en") == ""
    assert "3 questions" in facts_html(served.facts(trained_turns=3), "en")
    assert "<b>" not in facts_html(served.facts(characters="<b>"), "en")


def test_the_system_prompt_is_closed_for_a_model_trained_without(served):
    assert chat.system_box(served.facts(system_prompt=False))["interactive"] is False
    assert chat.system_box(served.facts(system_prompt=True))["interactive"] is True
    assert chat.system_box(served.facts(system_prompt=None))["interactive"] is True


def test_titles_tell_runs_of_one_stage_apart(served):
    facts = served.facts(
        created="2026-11-27T10:00:00Z", metrics={"train_rows": 9, "mean_score": 0.8123}
    )
    assert chat.model_title("ppo · demo", facts) == "ppo · demo · 2026-11-27 · mean score 0.812"
    assert chat.model_title("base", served.facts(created="")) == "base"


def test_examples_come_from_the_run(engine, tmp_path):
    assert chat.examples_of(engine, "ppo · demo") == list(chat.EXAMPLES)
    engine.runs["mine"] = tmp_path
    file = tmp_path / "examples.json"
    for bad in ("not json", "{}", "[]", '[3, ""]', json.dumps(["x" * 200])):
        file.write_text(bad)
        assert chat.examples_of(engine, "mine") == list(chat.EXAMPLES)
    file.write_text(json.dumps(["hello?", 3, "bye?"]))
    assert chat.examples_of(engine, "mine") == ["hello?", "bye?"]


@pytest.mark.parametrize(
    ("title", "name"), [("../../etc", "etc"), ("", "conversation"), ("안녕 a/b", "안녕-a-b")]
)
def test_an_exported_file_has_a_harmless_name(title, name):
    assert chat.file_name(title) == name


# ---- the transcript ----------------------------------------------------------------------------------------------


def test_every_answer_says_its_model_seed_settings_and_score():
    conversation = exchange()
    conversation = add_answers(
        conversation, 0, [{"text": "other", "details": DETAILS | {"model": "base", "seed": 9}}]
    )
    page = Reader(conversation_html(conversation, LOOK))
    assert page.texts["who"] == "base" and "seed 9" in page.texts["meta"]
    for words in (
        "2 tokens",
        "40 tokens/s",
        "score 0.250",
        "0.7",
        "0.95",
        "be kind",
        "reward · demo",
    ):
        assert words in page.texts["meta"]


def test_messages_that_were_not_read_are_a_detail_and_no_alarm():
    content = conversation_html(exchange(cut=2), LOOK)
    summary = content[content.index("<summary>") : content.index("</summary>")]
    assert "not read" not in summary and "not read" in content
    assert "notice" not in content


def test_bubbles_name_their_speakers_and_the_log_is_a_log():
    content = conversation_html(exchange(), LOOK)
    page = Reader(content)
    assert page.texts["heard"] == "You:" and page.texts["who"] == "ppo · demo"
    assert "role='log'" in content and "aria-label='Conversation'" in content


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_every_button_has_a_name(language):
    conversation = exchange(finish="length")
    conversation = add_answers(
        conversation, 0, [{"text": "b", "details": DETAILS | {"finish": "length"}}]
    )
    page = Reader(conversation_html(conversation, Look(language, ratable=True)))
    acts = [button["data-act"] for button in page.buttons]
    assert acts == ["edit", "copy", "pick", "pick", "copy", "retry", "proceed", "thumb", "thumb"]
    assert all(button["aria-label"] and button["title"] for button in page.buttons)


def test_variants_count_and_step():
    conversation = add_answers(exchange(), 0, [{"text": "b", "details": DETAILS}])
    page = Reader(conversation_html(conversation, LOOK))
    assert page.texts["variants"] == "2/2"
    steps = [button for button in page.buttons if button["data-act"] == "pick"]
    assert steps[0]["data-node"] == "1" and "disabled" not in steps[0] and "disabled" in steps[1]


def test_thumbs_are_hidden_without_a_store_and_pressed_when_given():
    conversation = exchange()
    acts = [
        button["data-act"] for button in Reader(conversation_html(conversation, Look("en"))).buttons
    ]
    assert "thumb" not in acts
    conversation["nodes"][1]["rating"] = "up"
    thumbs = [
        b for b in Reader(conversation_html(conversation, LOOK)).buttons if b["data-act"] == "thumb"
    ]
    assert [thumb["aria-pressed"] for thumb in thumbs] == ["true", "false"]


def test_typed_text_is_shown_as_typed_and_an_answer_as_markdown():
    content = conversation_html(exchange("2*3*4 <b> vector<int>", "**bold** <b>"), LOOK)
    page = Reader(content)
    assert "2*3*4 <b> vector<int>" in page.texts["bubble"]
    assert "<strong>bold</strong> &lt;b&gt;" in content


def test_a_hostile_model_name_and_example_are_text():
    hostile = "<img src=x onerror=alert(1)>'\""
    content = conversation_html(exchange(model=hostile), LOOK)
    content += conversation_html(new_conversation(), Look("en", examples=[hostile]))
    content += live_html(hostile, Progress(waiting=Waiting(1)), "en")
    page = Reader(content)
    assert "img" not in page.tags and page.texts["chip"] == hostile and hostile in page.texts["who"]


def test_a_question_without_an_answer_offers_one():
    conversation, _ = add(new_conversation(), -1, "user", "hi")
    page = Reader(conversation_html(conversation, LOOK))
    assert page.texts["link"] == "Answer it"
    # while it is being answered there is nothing to offer
    assert "link" not in Reader(conversation_html(conversation, LOOK, last=0)).texts


# ---- texts and wiring --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*TEXTS, *SCRIPT_TEXTS])
def test_both_languages_have_each_text_with_the_same_values(key):
    english, korean = (TEXTS | SCRIPT_TEXTS)[key]
    names = [{part.split("}")[0] for part in text.split("{")[1:]} for text in (english, korean)]
    assert english and korean and names[0] == names[1]


def test_unchanged_parts_are_not_sent():
    skip = gr.skip()
    assert chat.updates(Screen(live="x"), LOOK) == [skip, skip, "x", skip, skip, skip, skip]
    *_, send, stop = chat.updates(Screen(busy=True), LOOK)
    assert send["visible"] is False and stop["visible"] is True


def build(service):
    with gr.Blocks() as page:
        chat.build(service, page)
    return page


def test_the_settings_of_endpoints_have_the_order_of_the_panel(service):
    page = build(service)
    labels = []
    for block in page.blocks.values():
        if isinstance(block, gr.Dropdown | gr.Slider | gr.Textbox) and block.elem_id != "chat-box":
            labels.append(block.label.key)
    assert labels == [
        "chat.model", "chat.system", "chat.temperature", "chat.top_p", "chat.max_tokens", "chat.seed", "chat.top_k",
        "chat.penalty", "chat.reward_model", "chat.best_of",
    ]  # fmt: skip
    assert list(settings_panel.parameters(service.engine)) == [
        "model", "system_prompt", "temperature", "top_p", "max_tokens", "seed", "top_k", "repetition_penalty",
        "reward_model", "best_of",
    ]  # fmt: skip


def test_the_look_asks_no_other_host_and_the_script_writes_no_html(service):
    page = build(service)
    assert not theme.theme()._stylesheets
    assert not any("@font-face" in css or "url(" in css for css in theme.theme()._font_css)
    assert "url(" not in chat.CSS and "@import" not in chat.CSS
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in chat.SCRIPT
    # a value in {{ }} would be compiled as a template: ${value} is not
    for block in page.blocks.values():
        if isinstance(block, gr.HTML):
            assert "{{" not in block.html_template
