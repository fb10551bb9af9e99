"""Which texts reach a finished encoder, and how many of them stay in memory; the models are stand-ins."""

import json

import pytest

from rlhf.serving import predictors as encoders
from rlhf.serving.predictors import Encoders


class Echo:
    """Predicts the rows it got."""

    def __init__(self, folder):
        self.folder = folder

    def predict(self, rows, batch_size=32):
        return [{"row": row, "folder": self.folder} for row in rows]


@pytest.fixture
def opened(monkeypatch):
    """Folders in the order in which they were opened."""
    opened = []

    def open_encoder(kind, folder, device):
        opened.append(folder)
        return Echo(folder)

    monkeypatch.setattr(encoders, "open_encoder", open_encoder)
    return opened


@pytest.fixture
def served(tmp_path, opened):
    def make(name, **config):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    folders = {
        "one": make("one", trained_pairs=False, id2label={"1": "good", "0": "bad", "10": "odd"}),
        "two": make("two", trained_pairs=True),
        "any": make("any"),
    }
    return Encoders(
        {
            "classification": folders,
            "ner": {"t": make("t")},
            "question_answering": {"r": make("r")},
            "multiple_choice": {"m": make("m")},
        },
        characters=40,
    )


def test_a_model_gets_the_columns_it_was_trained_on(served):
    texts = {"text": "a", "text_pair": "b"}
    assert served.predict("classification", "one", texts)["row"] == {"text": "a"}
    assert served.predict("classification", "two", texts)["row"] == texts
    assert served.predict("classification", "any", texts)["row"] == texts
    assert served.predict("classification", "any", {"text": "a", "text_pair": " "})["row"] == {
        "text": "a"
    }
    asked = {"question": "Who?", "context": "Ada."}
    assert served.predict("question_answering", "r", asked)["row"] == asked
    assert [served.columns("classification", name) for name in ("one", "two", "any")] == [
        ["text"], ["text", "text_pair"], ["text", "text_pair"],
    ]  # fmt: skip


def test_a_list_is_given_with_a_line_for_each_item(served, tmp_path, refused):
    row = {"text": "a", "choices": " b \n\nc d\n"}
    found = served.predict("multiple_choice", "m", row)["row"]
    assert found == {"text": "a", "choices": ["b", "c d"]}
    message = refused(served.predict, "multiple_choice", "m", row | {"choices": "b"})
    assert "the choices, one per line: a list of 2 to 26 strings is expected" in message
    (tmp_path / "m" / "samples.jsonl").write_text('{"text": "a", "choices": ["b", "c\\nd"]}\n')
    assert served.examples("multiple_choice", "m") == [{"text": "a", "choices": "b\nc d"}]


def test_one_model_of_a_kind_is_in_memory(served, opened):
    for kind, name in (
        ("ner", "t"),
        ("classification", "one"),
        ("classification", "one"),
        ("classification", "any"),
    ):
        served.predict(kind, name, {"text": "a"})
    served.predict("ner", "t", {"text": "a"})
    served.predict("classification", "one", {"text": "a"})
    assert [folder.rsplit("/", 1)[1] for folder in opened] == ["t", "one", "any", "one"]


@pytest.mark.parametrize(
    ("kind", "name", "row", "message"),
    [
        ("ner", "x", {"text": "a"}, "no NER model 'x': choose one of 't'"),
        ("ner", "t", {"text": "  "}, "the text is empty: write something to read"),
        ("classification", "two", {"text": "a"}, "the text to compare with is empty"),
        ("question_answering", "r", {"question": "Who?", "context": ""}, "the context is empty"),
        (
            "question_answering",
            "r",
            {"question": "x" * 20, "context": "y" * 21},
            "41 characters: at most 40 are read here",
        ),
        ("ner", "t", {"text": "a\0"}, "the text holds a NUL"),
        ("ner", "t", {"text": "\ud83d"}, "half a character"),
        ("ner", "t", {"text": ["a"]}, "the text must be a string"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    served, opened, refused, kind, name, row, message
):
    assert message in refused(served.predict, kind, name, row)
    assert opened == []


def test_labels_come_in_the_order_of_their_numbers(served):
    assert (
        served.labels("classification", "one") == ["bad", "good", "odd"]
        and served.labels("classification", "any") == []
    )


def test_examples_are_short_rows_that_the_run_left(served, tmp_path):
    rows = [
        {"text": "a"},
        {"text": "x" * 700},
        {"text": "a", "label": 1},
        {"text": ["b"]},
        {"text": "c", "text_pair": "d"},
    ]
    (tmp_path / "one" / "samples.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"torn'
    )
    assert served.examples("classification", "one") == [{"text": "a"}, {"text": "c"}]
    assert served.examples("classification", "one", count=1) == [{"text": "a"}]
    assert served.examples("classification", "two") == []
