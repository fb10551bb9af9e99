import pytest

from rlhf.data.labels import LabelTypes
from rlhf.data.load import load_rows


@pytest.mark.parametrize(
    "labels",
    [
        ("a", "b", "3"),
        (1, "1", 2),
        (True, False),
        (0.5, 1),
        ("true", "yes"),
        (["a"], [], ["b", "c"]),
    ],
)
def test_labels_of_one_type(labels):
    types = LabelTypes()
    assert [types.problem(label, "f:1") for label in labels] == [None] * len(labels)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("pos", 3, "3 is an integer, but 'pos' is a string (f:1): give all labels one type"),
        (3, "pos", "'pos' is a string, but 3 is an integer (f:1)"),
        (True, 1, "1 is an integer, but True is true or false (f:1)"),
        (True, "true", "'true' is a string, but True is true or false (f:1)"),
        (["a", "b"], ["a", 1], "1 is an integer, but 'a' is a string (f:1)"),
    ],
)
def test_labels_of_two_types_are_named_with_their_rows(first, second, reason):
    types = LabelTypes()
    assert types.problem(first, "f:1") is None
    assert reason in types.problem(second, "f:2")


def test_a_file_with_labels_of_two_types_is_refused(write, refused):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(("pos", "neg", 3))]
    path = write("mixed.jsonl", rows)
    message = refused(load_rows, path, kinds=("classification",))
    assert f"{path}:3: label: 3 is an integer, but 'pos' is a string ({path}:1)" in message
    # In a table every label is a string.
    table = write("mixed.csv", "text,label\na,pos\nb,3\n")
    assert len(load_rows(table, kinds=("classification",)).rows) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [("pos", " pos"), ("pos\u00a0", "pos"), ("True", "true"), ("false", "FALSE")],
)
def test_one_label_in_two_spellings_does_not_become_two(first, second):
    types = LabelTypes()
    assert types.problem(first, "a.csv:2") is None
    assert types.problem(first, "a.csv:3") is None
    reason = types.problem([second], "a.csv:4")
    assert reason.startswith(f"{second!r} is {first!r} (a.csv:2) in another spelling")


def test_labels_that_differ_in_case_are_two():
    types = LabelTypes()
    assert [types.problem(label, "a.csv:2") for label in ("it", "IT", "1", "01")] == [None] * 4
