import pytest
import torch
from transformers import AutoTokenizer

from rlhf.models.parts import fit_tokenizer
from rlhf.models.scratch import new_encoder
from rlhf.tasks.classification.encode import (
    LabelForm,
    LabelTask,
    check_labels,
    encode_texts,
    find_task,
    label_names,
    rare_labels,
)

WORDS = "a b c d e f".split()
SIZES = dict(hidden_size=16, layers=1, heads=2, context=16)


@pytest.fixture
def fitted(make_tokenizer):
    """A tokenizer of whole words, fitted to a small model of its kind."""

    def fitted(kind: str, pairs: bool):
        torch.manual_seed(0)
        tokenizer = make_tokenizer(WORDS, kind)
        model = new_encoder(
            tokenizer,
            "AutoModelForSequenceClassification",
            model_type=kind,
            labels=["x", "y"],
            **SIZES,
        )
        fit_tokenizer(tokenizer, model, pairs=pairs)
        return tokenizer

    return fitted


def test_labels_are_sorted_by_the_alphabet_or_by_size():
    assert label_names([{"label": v} for v in ("b", "a", "b")]) == ["a", "b"]
    assert label_names([{"label": v} for v in (10, 9, -1)]) == ["-1", "9", "10"]
    assert label_names([{"label": v} for v in ("10", "9", "100")]) == ["9", "10", "100"]
    assert label_names([{"label": v} for v in (True, False)]) == ["False", "True"]
    assert label_names([{"label": v} for v in ("10", "9", "x")]) == ["10", "9", "x"]


def test_one_label_is_not_enough(refused):
    assert "all 2 training rows have the label 'a': a classifier needs two or more" in refused(
        label_names, [{"label": "a"}, {"label": "a"}]
    )


def test_a_label_that_only_evaluation_rows_have_is_named_with_its_rows(refused):
    check_labels([{"label": 1}], ["0", "1"])
    message = refused(check_labels, [{"label": v} for v in ("a", "z", "b", "z")], ["a", "b"])
    assert (
        "no training row has the label 'z' in evaluation rows 2, 4. Labels of the training rows: a, b."
        in message
    )
    many = refused(check_labels, [{"label": "z"}] * 7, ["a", "b"])
    assert "'z' in evaluation rows 1, 2, 3, 4, 5 and 2 more." in many


def test_bert_pairs_have_token_types_and_are_cut_and_counted(fitted):
    reader = fitted("bert", pairs=True)
    rows = [
        {"text": "a b", "text_pair": "c", "label": "x"},
        {"text": "a b c", "text_pair": "d e f", "label": "y"},
    ]
    encoded, cut = encode_texts(reader, rows, pairs=True, max_length=7)
    assert encoded[0] == {
        "input_ids": [2, 5, 6, 3, 7, 3],
        "token_type_ids": [0, 0, 0, 0, 1, 1],
        "attention_mask": [1] * 6,
    }
    assert cut == 1 and encoded[1]["input_ids"] == [2, 5, 6, 3, 8, 9, 3]


def test_chunks_make_no_difference(fitted, monkeypatch):
    tokenizer, rows = (
        fitted("bert", pairs=False),
        [{"text": "a b c d e"[: 2 * i + 1]} for i in range(5)],
    )
    whole = encode_texts(tokenizer, rows, pairs=False, max_length=5)
    monkeypatch.setattr("rlhf.tasks.classification.encode.TEXTS_PER_CALL", 2)
    assert encode_texts(tokenizer, rows, pairs=False, max_length=5) == whole and whole[1] == 2


def test_padding_is_on_the_right(make_tokenizer):
    tokenizer = make_tokenizer(WORDS, "gpt2")
    tokenizer.padding_side = "left"
    fit_tokenizer(
        tokenizer,
        new_encoder(
            tokenizer, "AutoModelForTokenClassification", model_type="gpt2", labels=["O"], **SIZES
        ),
        pairs=False,
    )
    assert tokenizer.padding_side == tokenizer.init_kwargs["padding_side"] == "right"


def test_gpt2_pairs_are_parted_by_eos_and_have_no_token_types(fitted, tmp_path):
    reader = fitted("gpt2", pairs=True)
    rows = [{"text": "a", "text_pair": "b", "label": "x"}]
    expected = {"input_ids": [2, 0, 3], "attention_mask": [1, 1, 1]}
    assert encode_texts(reader, rows, pairs=True, max_length=8) == ([expected], 0)
    reader.save_pretrained(tmp_path)
    assert dict(AutoTokenizer.from_pretrained(tmp_path)("a", "b")) == expected


def test_an_extra_text_pair_column_does_not_make_a_pair(fitted):
    reader = fitted("bert", pairs=False)
    rows = [{"text": "a", "text_pair": "b", "label": "x"}]
    assert encode_texts(reader, rows, pairs=False, max_length=8)[0][0]["input_ids"] == [2, 5, 3]


def test_a_text_cannot_spell_a_special_token(fitted):
    reader = fitted("bert", pairs=False)
    encoded, _ = encode_texts(
        reader, [{"text": "a [SEP] b", "label": "x"}], pairs=False, max_length=8
    )
    assert encoded[0]["input_ids"].count(3) == 1


def test_a_length_without_room(bert_tokenizer, refused):
    assert "max_length=2 leaves no room" in refused(
        encode_texts, bert_tokenizer, [{"text": "a", "label": "x"}], pairs=False, max_length=2
    )


def test_rare_labels_are_counted_and_named():
    rows = [{"label": label} for label in ("a", "a", "b", "c")]
    assert rare_labels(rows, [{"label": "a"}, {"label": "b"}]) == [
        "2 of 3 labels are in one training row only: b, c",
        "1 of 3 labels are in no held-out row, and are not evaluated: c",
    ]
    assert (
        rare_labels([{"label": ["a", "b"]}, {"label": ["a", "b"]}], [{"label": ["b", "a"]}]) == []
    )


def test_the_task_follows_from_the_labels():
    def task(*values, asked="auto"):
        form = LabelForm(asked)
        assert [form(value) for value in values] == [None] * len(values)
        rows = [{"label": value} for value in values]
        return find_task(rows, rows, form).name

    assert (
        task("good", "1.5")
        == task(0, 1)
        == task(True, False)
        == task("0.0", "1.0")
        == "single_label"
    )
    assert task(["a"], ["b"], []) == "multi_label"
    assert task(1, 0.5) == task("1", "2.5") == task(1, 2, asked="regression") == "regression"
    form = LabelForm()
    assert (form(0.5), form("x")) == (
        None,
        "a number is expected (a row before has 0.5), 'x' given",
    )


def test_one_odd_cell_does_not_turn_numbers_into_classes(refused):
    form, rows = LabelForm(), [{"label": f"{i / 2}"} for i in range(20)] + [{"label": "N/A"}]
    assert [form(row["label"]) for row in rows] == [None] * 21
    said = refused(find_task, rows, [], form)
    assert (
        "1 of 21 labels are not numbers, the first 'N/A', and the others are, as 0.5: set task: regression"
        in said
    )
    asked = LabelForm("single_label")
    assert (
        all(asked(row["label"]) is None for row in rows)
        and len(find_task(rows, [], asked).labels) == 21
    )


def test_targets_by_hand(refused):
    several = LabelTask("multi_label", ["a", "b", "c"])
    targets = several.targets([{"label": ["c", "a"]}, {"label": []}])
    assert [row.tolist() for row in targets] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    numbers = find_task([{"label": 1.0}, {"label": 3.0}], [], LabelForm("regression"))
    assert (numbers.mean, numbers.spread) == (2.0, 1.0) and numbers.targets([{"label": "5"}]) == [
        3.0
    ]
    assert "'a' is the only label of all lists" in refused(
        label_names, [{"label": ["a"]}, {"label": []}]
    )
    assert "none of the 1 training rows has a label" in refused(label_names, [{"label": []}])


class CountingTokenizer:
    """A tokenizer that remembers the length of the longest text that it read."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.longest = 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *columns, **options):
        for texts in columns:
            for text in [texts] if isinstance(texts, str) else texts:
                self.longest = max(self.longest, len(text))
        return self.tokenizer(*columns, **options)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_of_a_very_long_text_only_the_start_is_read(fitted, kind):
    tokenizer = CountingTokenizer(fitted(kind, pairs=False))
    text = "a b c d e f " * 100_000
    expected = tokenizer.tokenizer(text[:1000], truncation=True, max_length=16)["input_ids"]
    encoded, cut = encode_texts(tokenizer, [{"text": text}], pairs=False, max_length=16)
    assert (encoded[0]["input_ids"], cut) == (expected, 1)
    assert len(expected) == 16 and tokenizer.longest <= 100_000


def test_a_long_text_of_few_tokens_is_read_whole(fitted):
    tokenizer = fitted("bert", pairs=False)
    text = "a" + " " * 200_000 + "b c"
    encoded, cut = encode_texts(tokenizer, [{"text": text}], pairs=False, max_length=16)
    assert encoded[0]["input_ids"] == tokenizer("a b c")["input_ids"] and cut == 0


def test_stored_texts_are_encoded_once_and_as_without_the_cache(fitted, tmp_path, monkeypatch):
    from rlhf.data.load import load_rows
    from rlhf.tasks.classification import encode

    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a b c d"}\n{"text": "a"}\n')
    rows = load_rows(str(path), kinds=("text",)).rows
    tokenizer = fitted("bert", pairs=False)
    plain, cut = encode.encode_texts(tokenizer, rows, pairs=False, max_length=4)
    assert cut == 1
    for _ in range(2):
        again, cut = encode.stored_texts(tokenizer, rows, pairs=False, max_length=4)
        assert list(again) == plain and again.lengths == [4, 3] and cut == 1
        monkeypatch.setattr(encode, "start_of", None)  # fails if a text is read again
