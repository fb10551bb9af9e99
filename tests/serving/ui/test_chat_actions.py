"""What the chat does, with an engine that plays a script."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.serving.engine.requests import StreamEnd, TextChunk, Waiting
from rlhf.serving.ui import answers, chat_actions
from rlhf.serving.ui.answers import Caller, Done, Progress
from rlhf.serving.ui.chat import texts
from rlhf.serving.ui.chat_actions import Asking
from rlhf.serving.ui.chat_texts import TEXTS
from rlhf.serving.ui.conversation import messages, new_conversation, path
from rlhf.serving.ui.settings_panel import read_controls

texts.add_texts(TEXTS)
PANEL = ("ppo · demo", "", 0.7, 0.95, 128, "", 0, 1.0, "", 1)


def asking(*, language="en", **changed):
    names = (
        "model",
        "system",
        "temperature",
        "top_p",
        "max_tokens",
        "seed",
        "top_k",
        "penalty",
        "reward",
        "best_of",
    )
    values = dict(zip(names, PANEL, strict=True)) | changed
    return Asking(read_controls(*values.values()), Caller("me", "somebody"), language)


def play(screens, conversation):
    """The last conversation, and all screens."""
    screens = list(screens)
    for screen in screens:
        if screen.conversation is not None:
            conversation = screen.conversation
    return conversation, screens


def asked(service, question, conversation=None, **changed):
    conversation = conversation or new_conversation()
    return play(chat_actions.ask(service, conversation, question, asking(**changed)), conversation)


def shown(conversation):
    return [conversation["nodes"][i]["text"] for i in path(conversation)]


def test_an_answer_grows_in_its_own_part_and_ends_in_the_conversation(service, engine):
    conversation, screens = asked(service, " hi ", system="be kind")
    first, *middle, last = screens
    assert shown(first.conversation) == ["hi"] and first.busy and first.box is None
    # while it grows, the conversation is not sent again
    assert middle and all(screen.conversation is None and screen.live for screen in middle)
    assert shown(conversation) == ["hi", "Hello **friend**"]
    assert last.busy is False and last.live == "" and last.box is None
    [(model, sent, _)] = engine.requests
    assert model == "ppo · demo" and sent[0] == {"role": "system", "content": "be kind"}


def test_an_answer_keeps_its_model_seed_and_settings(service):
    conversation, _ = asked(service, "hi", seed="7", temperature=0.3)
    details = conversation["nodes"][1]["details"]
    assert details["model"] == "ppo · demo" and details["seed"] == 7
    assert details["settings"]["temperature"] == 0.3
    assert details["tokens"] == 2 and details["speed"] == 40.4 and details["finish"] == "stop"


@pytest.mark.parametrize("text", ["", "  \n ", None])
def test_an_empty_message_does_nothing(service, engine, text):
    assert list(chat_actions.ask(service, new_conversation(), text, asking())) == []
    assert not engine.requests


def test_a_refused_message_returns_to_the_box_and_never_enters_the_conversation(service):
    before, _ = asked(service, "hi")
    after, screens = asked(service, "please refuse", before)
    [screen] = screens
    assert after == before and screen.box == "please refuse"
    assert "99 tokens &lt;b&gt;" in screen.notice
    # the next one works
    assert shown(asked(service, "again", after)[0])[-2:] == ["again", "Hello **friend**"]


def test_a_message_that_is_refused_late_leaves_no_trace_either(service, engine, monkeypatch):
    def late(*arguments, **options):
        yield Waiting(1)
        raise UserError("too long after all")

    monkeypatch.setattr(engine, "stream", late)
    before = new_conversation()
    after, screens = asked(service, "hi", before)
    assert after == before and screens[-1].box == "hi" and screens[-1].busy is False


def test_a_message_over_the_limit_is_refused_before_it_is_shown(service):
    with pytest.raises(UserError, match="32001 characters"):
        list(chat_actions.ask(service, new_conversation(), "x" * 32_001, asking()))


def test_retry_adds_a_variant(service):
    conversation, _ = asked(service, "hi")
    conversation, _ = play(
        chat_actions.retry(service, conversation, 1, asking(model="base · demo")), conversation
    )
    assert len(conversation["nodes"]) == 3 and path(conversation) == [0, 2]
    assert conversation["nodes"][1]["details"]["model"] == "ppo · demo"
    assert conversation["nodes"][2]["details"]["model"] == "base · demo"


def test_a_growing_variant_is_shown_after_its_question_only(service):
    conversation, _ = asked(service, "hi")
    first, *_ = chat_actions.retry(service, conversation, 1, asking())
    assert first.last == 0


def test_edit_asks_again_and_keeps_the_old_branch(service, engine):
    conversation, _ = asked(service, "hi")
    conversation, _ = asked(service, "more", conversation)
    conversation, _ = play(
        chat_actions.edit(service, conversation, 2, "less", asking()), conversation
    )
    assert shown(conversation)[2] == "less" and len(conversation["nodes"]) == 6
    assert [message["content"] for message in engine.requests[-1][1]] == [
        "hi",
        "Hello **friend**",
        "less",
    ]


def test_continue_extends_the_answer_in_place(service, engine):
    conversation, _ = asked(service, "long")
    conversation, _ = play(chat_actions.proceed(service, conversation, 1, asking()), conversation)
    assert shown(conversation) == ["long", "Hello **friend**Hello **friend**"]
    assert engine.requests[-1][1][-1]["role"] == "assistant"
    assert conversation["nodes"][1]["details"]["tokens"] == 4


def test_best_of_keeps_every_answer_with_its_score_best_first(service):
    conversation, _ = asked(service, "hi", reward="reward · demo", best_of=3)
    assert shown(conversation) == ["hi", "Answer 0"]
    scores = [node["details"]["score"] for node in conversation["nodes"][1:]]
    assert scores == [1.0, 0.0, -1.0]


def test_a_chosen_reward_model_scores_the_answer(service, engine, monkeypatch):
    conversation, _ = asked(service, "hi", reward="reward · demo")
    assert conversation["nodes"][1]["details"]["score"] == 0.5

    def too_long(*arguments):
        raise UserError("too long to score")

    monkeypatch.setattr(engine, "score", too_long)
    conversation, screens = asked(service, "hi", reward="reward · demo")
    assert "score" not in conversation["nodes"][1]["details"]
    assert "too long to score" in screens[-1].notice


def test_a_crash_is_logged_and_keeps_what_was_written(service, caplog):
    conversation, screens = asked(service, "crash")
    assert shown(conversation) == ["crash", "Half"]
    assert conversation["nodes"][1]["details"]["finish"] == "failed"
    assert "secret" not in screens[-1].notice and "/secret/path" in caplog.text
    assert screens[-1].busy is False


def test_stopped_before_the_first_word_there_is_no_empty_answer(service, engine, monkeypatch):
    stopped = StreamEnd(0, 0.0, "cancelled", 0, 5)
    monkeypatch.setattr(engine, "stream", lambda *arguments, **options: iter([stopped]))
    conversation, screens = asked(service, "hi")
    assert shown(conversation) == ["hi"] and "first word" in screens[-1].notice


def test_waiting_says_the_place_in_line_and_that_the_model_is_loaded(service):
    _, screens = asked(service, "wait")
    lives = [screen.live for screen in screens]
    assert "dots" in lives[0]
    assert any("2 requests ahead" in live for live in lives)
    assert any("Loading the model" in live for live in lives)
    _, screens = asked(service, "wait", language="ko")
    assert any("앞에 요청 2개" in screen.live for screen in screens)


def test_a_closed_page_stops_the_answer(service, engine, monkeypatch):
    closed = []

    def stream(*arguments, **options):
        try:
            while True:
                yield TextChunk("a")
        finally:
            closed.append(True)

    monkeypatch.setattr(engine, "stream", stream)
    screens = chat_actions.ask(service, new_conversation(), "hi", asking())
    next(screens), next(screens)
    screens.close()
    assert closed


def test_at_most_twenty_updates_a_second():
    now = iter(range(10_000))
    events = [Progress("x" * i) for i in range(1, 1001)]
    # 1,000 tokens in 1 s
    passed = list(answers.paced([*events, Done([])], clock=lambda: next(now) / 1000))
    assert 10 <= len(passed) <= 21 and isinstance(passed[-1], Done)


@pytest.fixture
def rated(monkeypatch):
    """The feedback package's events, as plain values."""
    events, models = ModuleType("rlhf.feedback.events"), ModuleType("rlhf.feedback.models")
    events.Rating = lambda **values: SimpleNamespace(**values)
    models.model_used = lambda name, folder: (name, folder)
    monkeypatch.setitem(sys.modules, "rlhf.feedback.events", events)
    monkeypatch.setitem(sys.modules, "rlhf.feedback.models", models)


def test_a_thumb_is_kept_with_all_that_repeats_the_answer(with_feedback, rated):
    conversation, _ = asked(with_feedback, "hi", system="be kind", seed="7")
    conversation = chat_actions.rate(with_feedback, conversation, 1, "down", " dull ", "Ann")
    [event] = with_feedback.feedback.events
    assert event.messages == messages(conversation, 0, "be kind")
    assert event.completion == "Hello **friend**" and event.model == ("ppo · demo", "nowhere")
    assert (event.value, event.reason, event.seed, event.annotator) == ("down", "dull", 7, "a" * 16)
    assert conversation["nodes"][1]["rating"] == "down" and event.consent is False
    chat_actions.rate(with_feedback, conversation, 1, "up", "", "", True)
    assert with_feedback.feedback.events[1].consent is True


@pytest.mark.parametrize(("index", "value"), [(0, "up"), (1, "great"), (9, "up"), ("1", "up")])
def test_a_bad_thumb_is_refused(with_feedback, rated, index, value):
    conversation, _ = asked(with_feedback, "hi")
    with pytest.raises(UserError):
        chat_actions.rate(with_feedback, conversation, index, value, "", "")
    assert not with_feedback.feedback.events


def test_without_a_store_a_thumb_is_refused(service):
    conversation, _ = asked(service, "hi")
    with pytest.raises(UserError, match="feedback"):
        chat_actions.rate(service, conversation, 1, "up", "", "")
