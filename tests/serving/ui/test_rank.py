"""The rank tab: different answers, tiers and ties, the queue of several people, refusals. The engine is scripted."""

import json
from types import SimpleNamespace

import gradio as gr
import pytest

from rlhf.errors import UserError
from rlhf.feedback.queue import Overlap
from rlhf.feedback.store import Store
from rlhf.serving.engine.requests import Busy, Completion, Limits, SamplingSettings
from rlhf.serving.ui import blind, compare, rank, texts

for module in (blind, compare, rank):
    texts.add_texts(module.TEXTS)
ANN, BOB = "a" * 16, "b" * 16
SETTINGS = SamplingSettings(seed=100)


class ScriptedEngine:
    """An answer depends on the model and the seed; seeds that are the same modulo `period` give the same one."""

    def __init__(self, period=1000, empty=(), busy=0):
        self.period = period
        self.empty = empty
        self.busy = busy
        self.runs = {"secret-ppo": "p", "secret-sft": "s"}
        self.reward_runs, self.limits = {}, Limits()
        self.requests = []

    def sample(self, model, messages, settings, n, *, request, client):
        if self.busy:
            self.busy -= 1
            raise Busy("full")
        self.requests.append((model, settings.seed))
        if settings.seed in self.empty:
            return [Completion(" ", 1, "stop")]
        return [Completion(f" answer {settings.seed % self.period} of {model[-3:]}\0", 3, "stop")]

    def cancel(self, request):
        return True


@pytest.fixture
def make_tab(tmp_path):
    def make(**engine):
        service = SimpleNamespace(
            engine=ScriptedEngine(**engine), feedback=Store(tmp_path / "feedback")
        )
        return rank.RankingTab(service)

    return make


@pytest.fixture
def tab(make_tab):
    return make_tab()


def prompt(words="hi"):
    return [{"role": "user", "content": words}]


def ask(tab, models=("secret-ppo",), number=4, settings=SETTINGS):
    return list(tab.ask(prompt(), list(models), number, settings, "session"))[-1][1]


def next_of(tab, annotator, number=3):
    return list(tab.next(annotator, ["secret-ppo"], number, SETTINGS, "session"))[-1][1]


def test_answers_are_of_all_models_in_turn_with_seeds_of_their_own(tab):
    asked = ask(tab, ["secret-ppo", "secret-sft"])
    drafts = [(draft.model, draft.seed) for draft in asked.drafts]
    assert drafts == [
        ("secret-ppo", 100),
        ("secret-sft", 101),
        ("secret-ppo", 102),
        ("secret-sft", 103),
    ]
    assert sorted(asked.shown) == [0, 1, 2, 3] and "seed" not in asked.settings
    assert asked.drafts[0].text == "answer 100 of ppo\N{REPLACEMENT CHARACTER}"


def test_repeated_and_empty_answers_are_drawn_again(make_tab):
    asked = ask(make_tab(period=3, empty=(101,)), number=3)
    assert len({draft.text for draft in asked.drafts}) == 3
    with pytest.raises(UserError, match="1 different ones: raise the temperature"):
        ask(make_tab(period=1))
    assert len(ask(make_tab(period=2), number=4).drafts) == 2  # fewer, if there are no more


def test_a_full_line_is_tried_again(make_tab, monkeypatch):
    monkeypatch.setattr(blind.time, "sleep", lambda seconds: None)
    assert len(ask(make_tab(busy=5)).drafts) == 4
    with pytest.raises(Busy):
        ask(make_tab(busy=1000))


@pytest.mark.parametrize(
    ("tiers", "shown", "ranks"),
    [
        ([1, 2, 3], [0, 1, 2], [0, 1, 2]),
        ([2, 1, 2], [2, 0, 1], [0, 1, 1]),  # on the screen: answer 2, answer 0, answer 1
        ([5, 5], [1, 0], [0, 0]),
        ([9, 2, 4, 2], [3, 2, 1, 0], [0, 1, 0, 2]),
    ],
)
def test_ranks_begin_at_0_without_gaps_in_the_order_of_the_answers(tiers, shown, ranks):
    assert rank.ranks_of(tiers, shown) == ranks


@pytest.mark.parametrize(
    "tiers", [[1], [1, None], [0, 1], [1, 10], [1, 2.0], [True, 1], "12", None, [1, 2, 3]]
)
def test_bad_tiers_are_refused(tiers):
    with pytest.raises(UserError, match="a tier from 1"):
        rank.ranks_of(tiers, [0, 1])


def test_a_ranking_is_stored_once_with_all_that_repeats_it(tab):
    asked = ask(tab)
    name = tab.blind.add(asked)
    with pytest.raises(UserError, match="a tier from 1"):
        tab.submit(name, [1], "", ANN, "app")
    ranked = tab.submit(name, [2, 1, 1, 3], "", ANN, "app")
    with pytest.raises(UserError, match="decided already"):
        tab.submit(name, [2, 1, 1, 3], "", ANN, "app")
    [event] = tab.service.feedback.events()
    assert event == ranked.event and event.annotator == ANN and event.item == ""
    assert [event.ranks[i] for i in event.shown] == [1, 0, 0, 2]
    assert {answer.seed for answer in event.answers} == {100, 101, 102, 103}
    assert ranked.shown["A"]["model"] == "secret-ppo"


def test_a_written_answer_is_the_best(tab):
    name = tab.blind.add(ask(tab, number=2))
    event = tab.submit(name, [1, 1], "  Mine. ", ANN, "app").event
    assert event.ranks == [1, 1, 0] and event.answers[2].text == "Mine."
    assert event.answers[2].model is None and event.shown[2] == 2
    asked = ask(tab, number=2)
    name, first = tab.blind.add(asked), asked.drafts[0].text
    tiers = [1, 2] if asked.shown == [0, 1] else [2, 1]
    swapped = [3 - tier for tier in tiers]
    with pytest.raises(UserError, match="put that one into tier 1 alone"):
        tab.submit(name, swapped, first, ANN, "app")
    assert len(tab.submit(name, tiers, first, ANN, "app").event.answers) == 2


@pytest.mark.parametrize(
    ("models", "number", "settings", "message"),
    [
        (["nope"], 4, SETTINGS, "no model 'nope'"),
        ([], 4, SETTINGS, "0 models: choose 1 to 9"),
        (["secret-ppo"], 1, SETTINGS, "count=1: ask for 2 to 9"),
        (["secret-ppo"], 10, SETTINGS, "count=10"),
        (["secret-ppo"], True, SETTINGS, "count=True"),
        (["secret-ppo"], 2, SamplingSettings(temperature=0, seed=1), "at temperature 0"),
    ],
)
def test_bad_questions_are_refused_at_once(tab, models, number, settings, message):
    with pytest.raises(UserError, match=message):
        tab.ask(prompt(), models, number, settings, "session")


def test_two_people_get_the_same_answers_to_a_shared_prompt(tab):
    tab.queue.set_overlap(Overlap(1.0, 2))
    tab.queue.add([prompt("shared")])
    for annotator in (ANN, BOB):
        asked = next_of(tab, annotator)
        tiers = [2, 2, 2]
        tiers[asked.shown.index(0)] = 1  # both prefer the first draft, wherever it is shown
        tab.submit(tab.blind.add(asked), tiers, "", annotator, "app")
        with pytest.raises(UserError, match="no prompt of the queue is left"):
            next_of(tab, annotator)
    assert len(tab.service.engine.requests) == 3  # sampled once
    status = tab.status(ANN)
    assert status["agreement"]["alpha"] == 1 and status["queue"]["done"] == 1
    assert "1.00" in rank.status_html(status, "en") and status["annotators"] == 2


def test_the_queue_wants_a_name(tab):
    tab.queue.add([prompt("one")])
    with pytest.raises(UserError, match="people with a name"):
        next_of(tab, "")


def test_a_skipped_prompt_goes_to_somebody_else(tab):
    tab.queue.set_overlap(Overlap(0.0))
    tab.queue.add([prompt("one")])
    name = tab.blind.add(next_of(tab, ANN))
    tab.skip(name, ANN)
    with pytest.raises(UserError, match="decided already"):
        tab.submit(name, [1, 2, 3], "", ANN, "app")
    with pytest.raises(UserError, match="no prompt of the queue"):
        next_of(tab, ANN)
    assert next_of(tab, BOB).messages == prompt("one")


def test_endpoints_hide_the_models_until_the_ranking_is_stored(tab):
    with gr.Blocks() as page:
        rank.build(tab.service, page)
    named = {f.api_name: f.fn for f in page.fns.values() if f.api_visibility == "public"}
    assert set(named) == {
        "rank_ask",
        "rank_next",
        "rank_submit",
        "rank_skip",
        "rank_add",
        "rank_overlap",
        "rank_status",
    }
    assert named["rank_add"](content="one\ntwo\n", name="p.txt") == {"added": 2}
    assert named["rank_overlap"](share=0.5)["share"] == 0.5
    asked = named["rank_next"](annotator="Ann", models=["secret-ppo"], count=2, seed=77)
    assert "secret" not in json.dumps(asked) and "77" not in json.dumps(asked["ranking"])
    told = named["rank_submit"](ranking=asked["ranking"], tiers=[1, 2], annotator="Ann")
    assert {shown["model"] for shown in told["models"].values()} == {"secret-ppo"}
    asked = named["rank_ask"](prompt="hi", models=["secret-ppo"], count=2, seed=78)
    named["rank_submit"](ranking=asked["ranking"], tiers=[1, 2], consent=True)
    assert [event.consent for event in tab.service.feedback.events()] == [False, True]
    assert named["rank_status"](annotator="Ann")["queue"]["mine"] == 1
    with pytest.raises(gr.Error, match="give a .txt file"):
        named["rank_add"](content="x", name="p.exe")
    with pytest.raises(gr.Error, match="overlap=7"):
        named["rank_overlap"](share=7)


def test_frames_of_the_page_hide_the_models(tab):
    with gr.Blocks() as page:
        rank.build(tab.service, page)
    on_ask = next(f.fn for f in page.fns.values() if f.name == "on_ask")
    frames = list(on_ask("<b>hi</b>", ["secret-ppo"], 3.0, 0.7, 0.95, 20, "100", None))
    sent = json.dumps([(frame[0], frame[1]) for frame in frames])
    assert "secret" not in sent and "<b>" not in sent and "&lt;b&gt;hi" in sent
    assert "0 of 3" not in sent and "3 of 3" in sent
    with pytest.raises(gr.Error, match="seed="):
        list(on_ask("hi", ["secret-ppo"], 3, 0.7, 0.95, 20, "<x>", None))


def test_answers_are_inert_in_the_page(tab):
    nasty = "<script>alert(1)</script><svg onload=alert(1)>"
    tab.service.engine.runs = {nasty: "p"}
    asked = ask(tab, [nasty], 2)
    for draft in asked.drafts:
        draft.text += nasty
    page = rank.ranking_html(asked, "ko")
    ranked = tab.submit(tab.blind.add(asked), [1, 2], nasty, ANN, "app")
    page += rank.ranked_html(ranked, "en")
    assert "<script" not in page and "<svg" not in page and page.count("&lt;script") == 7


def test_tiers_from_the_browser():
    assert rank.read_tiers("[1, null]") == [1, None] and rank.read_tiers("") == []
    with pytest.raises(UserError, match="not a list"):
        rank.read_tiers("{")


def test_a_prompt_to_which_a_model_has_one_answer_can_be_skipped(make_tab):
    tab = make_tab(period=1)
    tab.queue.set_overlap(Overlap(0.0))
    tab.queue.add([prompt("a"), prompt("b")])
    with pytest.raises(UserError, match="no prompt of the queue is open"):
        tab.skip("", ANN)
    with pytest.raises(UserError, match="different ones"):
        next_of(tab, ANN)
    first = tab.queue.open_for(ANN)
    tab.skip("", ANN)
    with pytest.raises(UserError, match="different ones"):
        next_of(tab, ANN)
    assert tab.queue.open_for(ANN) not in (None, first)
