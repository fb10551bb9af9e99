"""The handlers of the chat tab, with an engine that plays a script."""

import pytest

from rlhf.errors import UserError
from rlhf.serving.engine import Limits, SamplingSettings, StreamEnd, TextChunk
from rlhf.serving.ui import chat


class ScriptedEngine:
    """Answers with the given events; an exception among them is raised. Remembers the requests it got."""

    def __init__(self, *events):
        self.events = events
        self.requests = []
        self.runs, self.limits = {"ppo · demo": "a", "base · demo": "b"}, Limits()

    def stream(self, model, messages, settings, *, request):
        self.requests.append((model, messages, settings, request))
        return self._play()

    def _play(self):
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


DONE = StreamEnd(tokens=2, tokens_per_second=40.4, finish="stop", messages_cut=0, seed=5)
CONTROLS = ("ppo · demo", "", 0.7, 0.95, 0, 128, 1.0, "")
QUESTION = {"role": "user", "content": "hi"}


@pytest.fixture
def notices(monkeypatch):
    """The messages that gr.Warning was called with."""
    shown = []
    monkeypatch.setattr(chat.gr, "Warning", lambda message, **options: shown.append(message))
    return shown


def test_answer_grows_and_ends_with_its_status():
    engine = ScriptedEngine(TextChunk("Hel"), TextChunk("lo"), DONE)
    frames = list(
        chat.answer(engine, [], " hi ", "ppo · demo", "be kind", SamplingSettings(), "me")
    )
    histories = [history for history, _ in frames]
    assert all(history[0] == QUESTION for history in histories)
    assert [len(history) for history in histories] == [1, 2, 2, 2]
    assert [history[1]["content"] for history in histories[1:]] == ["Hel", "Hello", "Hello"]
    *earlier, status = [status for _, status in frames]
    assert earlier == ["", "", ""]
    assert "40 tokens/s" in status and "2 tokens" in status and "seed 5" in status
    [(model, messages, _, request)] = engine.requests
    assert (model, request) == ("ppo · demo", "me")
    assert messages == [{"role": "system", "content": "be kind"}, QUESTION]


def test_an_empty_question_is_refused():
    with pytest.raises(UserError, match="write a message"):
        next(chat.answer(ScriptedEngine(), [], "  ", "ppo · demo", "", SamplingSettings(), "me"))


def test_an_empty_answer_leaves_no_bubble():
    *_, (history, status) = chat.answer(
        ScriptedEngine(DONE), [], "hi", "ppo · demo", "", SamplingSettings(), "me"
    )
    assert history == [QUESTION] and "empty answer" in status


def test_status_tells_of_stops_cuts_and_hostile_names():
    line = chat.status_line("<img src=x>", StreamEnd(1, 3.0, "cancelled", 2, 0))
    assert "&lt;img src=x&gt;" in line and "<img" not in line
    assert "1 token<" in line and "stopped" in line and "2 oldest messages were not read" in line
    assert "longer than those that this model was trained on" in line
    assert "1 oldest message was not read" in chat.status_line(
        "m", StreamEnd(1, 3.0, "length", 1, 0)
    )
    assert "length limit" in chat.status_line("m", StreamEnd(1, 3.0, "length", 0, 0))


def test_gradio_parts_become_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    history = [{"role": "user", "content": parts, "metadata": {}}]
    assert chat.to_messages(history, " ") == [{"role": "user", "content": "ab"}]


def test_every_message_belongs_to_a_question():
    history = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "2"},
    ]
    assert chat.question_of(history, 3) == chat.question_of(history, 2) == (history[:2], "two")
    assert chat.question_of(history, 1) == ([], "one")
    with pytest.raises(UserError):
        chat.question_of([], 0)


def test_settings_from_the_panel():
    assert chat.read_settings(0.5, 1, 0.0, 64.0, 1, None).seed is None
    settings = chat.read_settings(0, 0.9, 40.0, 64.0, 1.1, " 12 ")
    assert settings == SamplingSettings(0, 0.9, 40, 64, 1.1, 12)
    with pytest.raises(UserError, match="seed='twelve'"):
        chat.read_settings(0, 0.9, 40, 64, 1.1, "twelve")


def test_reply_shows_stop_while_it_runs_and_send_at_the_end(notices):
    engine = ScriptedEngine(TextChunk("Hello"), DONE)
    frames = list(chat.reply(engine, [], "hi", CONTROLS, "me", start_update={"value": ""}))
    first_update, last_update = frames[0][0], frames[-1][0]
    assert first_update["value"] == ""
    assert first_update["stop_btn"] is True and first_update["submit_btn"] is False
    assert last_update["stop_btn"] is False and last_update["submit_btn"] is True
    assert "value" not in last_update  # text typed in the meantime stays
    assert frames[-1][1][-1]["content"] == "Hello" and not notices


def test_a_refused_question_keeps_text_and_history(notices):
    before = [QUESTION, {"role": "assistant", "content": "Hello"}]
    controls = (*CONTROLS[:2], 99, *CONTROLS[3:])
    frames = list(
        chat.reply(
            ScriptedEngine(), before, "more", controls, "me", refused_update={"value": "more"}
        )
    )
    assert len(frames) == 1 and frames[0][0]["value"] == "more" and frames[0][1] == before
    assert "temperature=99" in notices[0]


def test_an_error_in_the_engine_becomes_an_escaped_notice(notices):
    refused = ScriptedEngine(UserError("too long: <b>"))
    *_, last = chat.reply(refused, [], "hi", CONTROLS, "me")
    assert notices == ["too long: &lt;b&gt;"]
    assert last[0]["submit_btn"] is True and last[1] == [QUESTION]


def test_a_crash_is_logged_and_not_shown(notices, caplog):
    crashed = ScriptedEngine(TextChunk("Hel"), RuntimeError("/secret/path"))
    *_, last = chat.reply(crashed, [], "hi", CONTROLS, "me")
    assert "secret" not in notices[0] and "/secret/path" in caplog.text
    assert last[1][-1]["content"] == "Hel" and last[0]["submit_btn"] is True


def test_every_action_is_a_named_endpoint():
    page = chat.build_chat(ScriptedEngine(DONE))
    names = {function.api_name for function in page.fns.values()}
    assert {"send", "example", "retry", "edit", "undo", "clear", "stop"} <= names


def test_the_page_asks_no_other_host_for_fonts_and_cleans_html():
    page = chat.build_chat(ScriptedEngine(DONE))
    assert not page.analytics_enabled
    theme = chat.theme()
    assert not theme._stylesheets
    assert not any("@font-face" in css or "url(" in css for css in theme._font_css)
    [chatbot] = [block for block in page.blocks.values() if isinstance(block, chat.gr.Chatbot)]
    assert chatbot.sanitize_html and chatbot.allow_tags is False
