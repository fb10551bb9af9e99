"""The tabs of the encoder tasks: how a prediction is shown, and the page that wires the parts."""

import json

import pytest

from rlhf.errors import UserError
from rlhf.serving.predictors import Encoders
from rlhf.serving.ui import tasks as ui
from rlhf.serving.ui.page import build_page

BY_KIND = {view.kind: view for view in ui.VIEWS}
CLASSIFICATION, NER = BY_KIND["classification"], BY_KIND["ner"]
QUESTION_ANSWERING = BY_KIND["question_answering"]


class NoChat:
    runs = {}


class Served(Encoders):
    """Answers with a given prediction, or raises it; remembers what it was asked."""

    def __init__(self, runs, prediction=None):
        super().__init__(runs)
        self.prediction, self.asked = prediction, []

    def predict(self, kind, name, row):
        self.asked.append((kind, name, row))
        if isinstance(self.prediction, Exception):
            raise self.prediction
        return self.prediction


@pytest.fixture
def notices(monkeypatch):
    """What gr.Warning was called with."""
    shown = []
    monkeypatch.setattr(ui.gr, "Warning", lambda message, **options: shown.append(message))
    return shown


@pytest.fixture
def runs(tmp_path):
    """Two classification models (single texts; pairs) and one of each other task, as far as a page reads their folders."""
    runs = {}
    for kind, name, config in (
        ("classification", "one", {"trained_pairs": False, "id2label": {"0": "bad", "1": "good"}}),
        ("classification", "pairs", {"trained_pairs": True, "id2label": {"0": "LABEL_0"}}),
        (
            "ner",
            "t",
            {"id2label": {"0": "O", "1": "B-per", "2": "I-per", "3": "B-loc", "4": "I-loc"}},
        ),
        ("question_answering", "r", {}),
        ("multiple_choice", "m", {}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        runs.setdefault(kind, {})[name] = str(tmp_path / name)
    return runs


# ---- what is shown -----------------------------------------------------------------------------------------------


def test_one_label_is_named_above_its_bars():
    head, bars = ui.show_labels({}, {"label": "good", "probabilities": {"good": 0.9, "bad": 0.1}})
    assert "<b>good</b>" in head and "90.0%" in head and bars == {"good": 0.9, "bad": 0.1}


def test_of_many_labels_the_likeliest_are_shown():
    probabilities = {f"label {place}": 0.5 / 2**place for place in range(12)}
    head, bars = ui.show_labels({}, {"label": "label 0", "probabilities": probabilities})
    assert (
        list(bars) == [f"label {place}" for place in range(10)]
        and "the 10 likeliest of 12 labels" in head
    )


@pytest.mark.parametrize(("labels", "title"), [(["time", "date"], "time, date"), ([], "No label")])
def test_several_labels_or_none(labels, title):
    head, bars = ui.show_labels({}, {"label": labels, "probabilities": {"time": 0.9, "date": 0.8}})
    assert f"<b>{title}</b>" in head and len(bars) == 2


def test_a_number_has_no_bars():
    head, bars = ui.show_labels({}, {"label": 3.14159, "probabilities": {}})
    assert "<b>3.142</b>" in head and bars is None


def test_entities_are_coloured_where_they_stand():
    entities = [
        {"type": "loc", "text": "Paris", "start": 12, "end": 17, "score": 0.5},
        {"type": "per", "text": "Ada", "start": 0, "end": 3, "score": 0.987},
    ]
    head, pieces, table = ui.show_entities({"text": "Ada goes to Paris!"}, {"entities": entities})
    assert "2 entities" in head
    assert pieces == [("Ada", "per"), (" goes to ", None), ("Paris", "loc"), ("!", None)]
    assert table == [["per", "Ada", "98.7%"], ["loc", "Paris", "50.0%"]]


def test_a_text_without_entities_stays_whole():
    head, pieces, table = ui.show_entities({"text": "nothing"}, {"entities": []})
    assert "No entity" in head and pieces == [("nothing", None)] and table == []


def test_the_answer_is_marked_in_its_text():
    n_best = [
        {"answer": "Ada", "start": 7, "end": 10, "score": 0.75},
        {"answer": "By", "start": 0, "end": 2, "score": 0.2},
    ]
    found = {
        "answer": "Ada",
        "start": 7,
        "end": 10,
        "score": 0.75,
        "no_answer": 0.125,
        "n_best": n_best,
    }
    head, pieces, table = ui.show_answer({"context": "By our Ada."}, found)
    assert "<b>Ada</b>" in head and "score 75.0%; no answer: 12.5%" in head
    assert pieces == [("By our ", None), ("Ada", "answer"), (".", None)]
    assert table == [["Ada", "75.0%"], ["By", "20.0%"]]


def test_no_answer_is_said_plainly():
    found = {"answer": "", "start": None, "end": None, "score": 0.8, "no_answer": 0.8, "n_best": []}
    head, pieces, _ = ui.show_answer({"context": "By our Ada."}, found)
    assert "The text does not say" in head and pieces == [("By our Ada.", None)]


def test_each_choice_has_a_bar():
    prediction = {"label": 1, "choice": "c d", "probabilities": [0.25, 0.75]}
    head, bars = ui.show_choices({"text": "a", "choices": "b\n c d\n"}, prediction)
    assert "<b>c d</b>" in head and "75.0%" in head and bars == {"b": 0.25, "c d": 0.75}


def test_hostile_names_stay_text():
    head, _ = ui.show_labels({}, {"label": "<img src=x>", "probabilities": {"<img src=x>": 1.0}})
    assert "<img" not in head and "&lt;img src=x&gt;" in head


def test_a_type_has_one_colour_whatever_the_scheme():
    colours = ui.type_colours(["O", "B-per", "I-per", "B-loc", "I-loc"])
    assert list(colours) == ["per", "loc"] and colours["per"] != colours["loc"]
    assert list(ui.type_colours(["O", "I-x"])) == ["x"]
    many = ui.type_colours([f"B-{place}" for place in range(11)])
    assert many["10"] == many["0"]


# ---- handlers ----------------------------------------------------------------------------------------------------


def test_ask_names_the_texts_by_their_columns(runs):
    served = Served(runs, {"label": "good", "probabilities": {"good": 1.0}})
    head, _ = ui.ask(served, CLASSIFICATION, "one", "a", "")
    assert (
        served.asked == [("classification", "one", {"text": "a", "text_pair": ""})]
        and "good" in head
    )


def test_a_refusal_empties_the_outputs_and_is_escaped(notices):
    def refuse():
        raise UserError("too long: <b>")

    assert ui.guarded(refuse, 3) == [ui.IDLE, None, None] and notices == ["too long: &lt;b&gt;"]


def test_a_crash_is_logged_and_not_shown(notices, caplog):
    def crash():
        raise RuntimeError("/secret/path")

    assert ui.guarded(crash, 2) == [ui.IDLE, None]
    assert "secret" not in notices[0] and "/secret/path" in caplog.text


def test_examples_fill_what_the_model_reads(runs, tmp_path):
    served = Served(runs)
    assert all(row[0] and not row[1] for row in ui.example_rows(served, CLASSIFICATION, "one"))
    assert all(all(row) for row in ui.example_rows(served, CLASSIFICATION, "pairs"))
    (tmp_path / "r" / "samples.jsonl").write_text(
        '{"question": "Who?", "context": "Ada.", "answer": "Ada"}\n'
    )
    assert ui.example_rows(served, QUESTION_ANSWERING, "r") == [["Who?", "Ada."]]


def test_the_name_of_an_example_ends_at_a_word_and_is_one_line():
    rows = [["Who?", "Ada."], ["x" * 90, ""], ["Pick one", "a\nb"], ["y" * 50, "a longer text"]]
    names = ["Who? / Ada.", "x" * 59 + "…", "Pick one / a b", "y" * 50 + " / a…"]
    assert ui.example_names(rows) == names


# ---- the page ----------------------------------------------------------------------------------------------------


def names_of_tabs(page):
    return [block.id for block in page.blocks.values() if isinstance(block, ui.gr.Tab)]


def page_of(encoders):
    return build_page(SimpleNamespace(engine=NoChat, encoders=encoders, feedback=None, jobs=None))


def endpoints(page):
    return {function.api_name for function in page.fns.values()}


def test_a_tab_for_each_kind_that_is_there(runs):
    page = page_of(Served(runs))
    kinds = ["classification", "ner", "question_answering", "multiple_choice"]
    assert names_of_tabs(page) == kinds
    names = {
        name + end
        for name in ("classification", "ner", "question_answering", "multiple_choice")
        for end in ("", "_model", "_example", "_filled")
    }
    assert names == endpoints(page)


def test_one_kind_has_one_tab(runs):
    page = page_of(Served({"ner": runs["ner"]}))
    assert names_of_tabs(page) == ["ner"] and "ner" in endpoints(page)


def test_the_page_follows_the_model(runs):
    page = page_of(Served(runs))
    [choose] = [
        function.fn for function in page.fns.values() if function.api_name == "classification_model"
    ]
    first, second, examples, head, bars = choose("pairs")
    assert (first["visible"], second["visible"]) == (True, True) and len(examples["samples"]) == 3
    assert (
        bars["visible"] is False and bars["value"] is None
    )  # one output: a number, which has no bars
    assert choose("one")[1]["visible"] is False and choose("one")[4]["visible"] is True
    [choose] = [function.fn for function in page.fns.values() if function.api_name == "ner_model"]
    assert list(choose("t")[3]["color_map"]) == ["per", "loc"]


def test_an_example_fills_the_texts(runs):
    page = page_of(Served(runs))
    fill = {function.api_name: function.fn for function in page.fns.values()}
    assert fill["ner_example"]("t", 0) == NER.examples[0]["text"]
    assert fill["question_answering_example"]("r", 1) == [
        QUESTION_ANSWERING.examples[1]["question"],
        QUESTION_ANSWERING.examples[1]["context"],
    ]
