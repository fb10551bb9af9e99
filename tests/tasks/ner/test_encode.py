import time

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhf.data.load import load_rows
from rlhf.data.words import cut_words
from rlhf.tasks.ner.encode import (
    check_types,
    cut_windows,
    decode_windows,
    entities,
    find_joints,
    find_scheme,
    find_units,
    in_bio,
    out_of_reach,
    stored_windows,
    tag_names,
    to_bio,
    to_train_on,
    type_counts,
    warnings_of,
    windows_of,
)


def wordpiece(*pieces: str) -> PreTrainedTokenizerFast:
    """BERT's form of tokenizer with these pieces after [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {piece: number for number, piece in enumerate([*special, *pieces])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def perfect(found, rows):
    """The true tags at the heads."""
    return [[rows[w.row]["tags"][unit] for _, unit, _ in w.heads] for w in found]


# --- schemes. One sentence in each: x x | x | y, where the second x stands directly behind the first.

BIO = ["B-x", "I-x", "B-x", "O", "B-y"]


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("BIO", BIO),
        ("IOB1", ["I-x", "I-x", "B-x", "O", "I-y"]),
        ("BIOES", ["B-x", "E-x", "S-x", "O", "S-y"]),
        ("BIOES", ["B-x", "L-x", "U-x", "O", "U-y"]),
    ],
)
def test_schemes_are_recognised_and_read_alike(scheme, tags):
    assert find_scheme([tags]) == scheme
    assert to_bio(tags, scheme) == (BIO, 0)


def test_bare_types_and_bare_letters():
    assert find_scheme([["x", "x", "O", "y"]]) == "IO"
    assert to_bio(["x", "x", "O", "y", "x"], "IO") == (["B-x", "I-x", "O", "B-y", "B-x"], 0)
    assert find_scheme([["B", "I", "O"]]) == "BIO"
    assert to_bio(["B", "I", "O"], "BIO") == (["B-entity", "I-entity", "O"], 0)
    assert to_bio(["B-full-name", "I-full-name"], "BIO")[0] == ["B-full-name", "I-full-name"]


@pytest.mark.parametrize(
    ("scheme", "tags", "expected", "broken"),
    [
        ("BIO", ["O", "I-x", "I-x"], ["O", "B-x", "I-x"], 1),
        ("BIO", ["B-x", "I-y", "I-x"], ["B-x", "B-y", "B-x"], 2),
        ("BIOES", ["B-x", "O", "E-x"], ["B-x", "O", "B-x"], 2),  # not ended; ends nothing
        ("BIOES", ["S-x", "I-x"], ["B-x", "B-x"], 2),  # goes on with nothing; not ended
        ("BIOES", ["B-x", "I-x", "E-x"], ["B-x", "I-x", "I-x"], 0),
    ],
)
def test_tags_that_break_their_scheme_are_repaired_and_counted(scheme, tags, expected, broken):
    assert to_bio(tags, scheme) == (expected, broken)


def test_one_stray_tag_does_not_make_bio_iob1():
    rows = [{"tags": BIO}, {"tags": ["O", "I-x"]}]
    train, held_out, scheme, broken = in_bio(rows[:1], rows[1:])
    assert (scheme, broken) == ("BIO", 1)
    assert list(train) == [{"tags": BIO}] and list(held_out) == [{"tags": ["O", "B-x"]}]


def test_a_tag_of_no_scheme_is_named(refused):
    message = refused(find_scheme, [BIO, ["O", "Tag"]])
    assert (
        "the tag 'Tag' (1 times, first in sentence 2) is neither O nor a letter and a type as in B-person"
        in message
    )


def test_entities_strictly():
    assert entities(BIO) == [("x", 0, 1), ("x", 2, 2), ("y", 4, 4)]
    assert entities(["O", "I-x", "B-x", "I-y", "I-x"]) == [("x", 2, 2)]
    assert entities([]) == []


# --- labels


def test_labels_stand_in_a_stable_order():
    rows = [{"tags": ["B-z", "O"]}, {"tags": ["B-a", "I-a"]}]
    assert tag_names(rows) == tag_names(rows[::-1]) == ["O", "B-a", "I-a", "B-z", "I-z"]


def test_no_entity_at_all(refused):
    assert "none of the 2 training rows has an entity (all tags are O)" in refused(
        tag_names, [{"tags": ["O"]}] * 2
    )


def test_types_that_training_lacks_are_named(refused):
    labels = ["O", "B-x", "I-x"]
    check_types([{"tags": ["B-x", "I-x"]}], labels)
    message = refused(check_types, [{"tags": ["O"]}, {"tags": ["B-y", "O", "B-y"]}], labels)
    assert (
        "the type 'y' (2, first in row 2) of the evaluation rows. Types of the training rows: x."
        in message
    )


def test_warnings_are_counted():
    train = [{"tags": ["B-x", "B-y", "B-x"]}]
    assert warnings_of(train, [{"tags": ["B-x"]}], "BIO", 3) == [
        "3 tags break BIO; each is read as a new entity, or as the end of one",
        "1 types have a single entity to learn from: y",
        "1 types are in no evaluation row and not evaluated: y",
    ]
    assert warnings_of([{"tags": ["B-x", "B-x"]}], [{"tags": ["B-x"]}], "BIO", 0) == []


# --- text


def test_units():
    assert find_units([{"tokens": ["I", "saw", "a"]}]) == "words"
    assert find_units([{"tokens": list("서울 대학")}]) == "characters"


def test_texts_are_cut_as_the_data_were():
    text = "Dr. Kim (@kim_j) isn't at 12:30, re-read https://a.b/c?d!"

    def cut(*joints):
        return [text[start:end] for start, end in cut_words(text, *joints)]

    apart = "Dr . Kim ( @ kim_j ) isn ' t at 12 : 30 , re - read https://a.b/c?d!".split()
    assert cut(("", "")) == apart
    assert cut() == "Dr . Kim ( @kim_j ) isn ' t at 12 : 30 , re-read https://a.b/c?d!".split()
    rows = [{"tokens": ["12:30", "@ada", "it", "'s", ".", ":", "a.b"] + ["."] * 20}]
    assert find_joints(rows) == (":", "'@")  # a dot is apart 21 times of 22
    assert (
        cut(find_joints(rows))
        == "Dr . Kim ( @kim_j ) isn 't at 12:30 , re - read https://a.b/c?d!".split()
    )
    assert find_joints([{"tokens": ["a.b"] + ["."] * 20}]) == (".", "")


# --- tokens


def test_only_the_first_token_of_a_word_has_a_label():
    tokenizer = wordpiece("new", "##ton", "##s", "law")  # 4, 5, 6, 7
    rows = [{"tokens": ["Newtons", "law"], "tags": ["B-x", "O"]}]
    found = cut_windows(tokenizer, rows, units="words", max_length=8)
    labels = ["O", "B-x", "I-x"]
    encoded = stored_windows(tokenizer, rows, labels=labels, units="words", max_length=8)
    assert list(to_train_on(encoded)) == [
        {
            "input_ids": [2, 4, 5, 6, 7, 3],
            "attention_mask": [1] * 6,
            "labels": [-100, 1, -100, -100, 0, -100],
        }
    ]
    assert [(w.row, list(map(tuple, w.heads))) for w in windows_of(encoded)] == [
        (0, found[0].heads)
    ]
    assert decode_windows(found, [["B-x", "O"]], rows) == [["B-x", "O"]]


def test_long_rows_are_split_and_every_word_is_decided_once_where_it_has_most_context():
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = wordpiece(*letters)
    rows = [
        {"tokens": list(letters) + ["a", "b"], "tags": ["O"] * 28},
        {"tokens": ["c"], "tags": ["O"]},
    ]
    found = cut_windows(
        tokenizer, rows, units="words", max_length=14
    )  # 12 letters, 3 of them shared
    ids = list(range(4, 30)) + [4, 5]
    assert [w.inputs["input_ids"] for w in found] == [
        [2, *ids[0:12], 3],
        [2, *ids[9:21], 3],
        [2, *ids[16:28], 3],  # the last one is as long as the others
        [2, 6, 3],
    ]
    assert [[unit for _, unit, _ in w.heads] for w in found] == [
        list(
            range(10)
        ),  # 9, 10, 11 stand in two; 10 is 1 from the edge of the first, 1 from that of the second
        list(range(10, 18)),
        list(range(18, 28)),
        [0],
    ]
    assert all(
        w.inputs["input_ids"][token] == ids[unit] for w in found[:3] for token, unit, _ in w.heads
    )


def test_a_file_without_empty_lines_is_one_long_sentence_and_read_in_linear_time():
    tokenizer = wordpiece("a")
    rows = [{"tokens": ["a"] * 40_000}]
    started = time.process_time()
    found = cut_windows(tokenizer, rows, units="words", max_length=10)
    # 13 s with a look at all words for each of 6,667 windows, and 0.3 s without.
    assert sum(len(w.heads) for w in found) == 40_000 and time.process_time() - started < 1.5


def test_a_word_of_more_tokens_than_a_window_is_decided_once():
    tokenizer = wordpiece("a", "##a", "b")
    rows = [{"tokens": ["b", "a" * 50, "b"], "tags": ["O", "B-x", "I-x"]}]
    found = cut_windows(tokenizer, rows, units="words", max_length=10)
    assert sorted(unit for w in found for _, unit, _ in w.heads) == [0, 1, 2]
    assert decode_windows(found, perfect(found, rows), rows) == [["O", "B-x", "I-x"]]


def test_words_that_the_tokenizer_turns_into_nothing_get_a_tag():
    tokenizer = wordpiece("a", "b")
    rows = [
        {"tokens": ["a", "\u200b", "a", "\u200b", "b", "\u200b"], "tags": []}
    ]  # zero width: BERT drops it
    found = cut_windows(tokenizer, rows, units="words", max_length=10)
    assert [unit for w in found for _, unit, _ in w.heads] == [0, 2, 4]
    assert decode_windows(found, [["B-x", "I-x", "O"]], rows) == [
        ["B-x", "I-x", "I-x", "O", "O", "O"]
    ]
    assert decode_windows(found, [["B-x", "B-x", "I-x"]], rows) == [
        ["B-x", "O", "B-x", "I-x", "I-x", "O"]
    ]
    assert decode_windows(found, [["O", "O", "I-x"]], rows) == [["O", "O", "O", "O", "B-x", "O"]]


def test_characters_are_read_in_the_pieces_of_their_words():
    tokenizer = wordpiece("서울", "##은", "대학", "##교")
    row = {"tokens": list("서울 대학교은"), "tags": ["B-o", "I-o", "I-o", "I-o", "I-o", "I-o", "O"]}
    found = cut_windows(tokenizer, [row], units="characters", max_length=10)
    assert found[0].inputs["input_ids"] == [2, 4, 6, 7, 5, 3]
    assert found[0].heads == [(1, 0, 1), (2, 3, 4), (3, 5, 5), (4, 6, 6)]
    assert decode_windows(found, perfect(found, [row]), [row]) == [row["tags"]]
    assert out_of_reach(found, [row]) == 0
    # an entity that ends inside a piece cannot be marked: one of two here
    row = {"tokens": list("서울 대학교"), "tags": ["B-l", "O", "O", "B-o", "I-o", "I-o"]}
    found = cut_windows(tokenizer, [row], units="characters", max_length=10)
    assert out_of_reach(found, [row]) == 1


def test_a_text_cannot_spell_a_special_token():
    tokenizer = wordpiece("[", "sep", "]")
    found = cut_windows(tokenizer, [{"tokens": ["[SEP]", "[SEP]"]}], units="words", max_length=20)
    assert found[0].inputs["input_ids"] == [2, 4, 5, 6, 4, 5, 6, 3]
    assert found[0].heads == [(1, 0, 0), (4, 1, 1)]


def test_bytes_of_gpt2_with_the_space_in_the_token(bytes_tokenizer):
    rows = [
        {"tokens": ["the", "bridge", "é", "🌉", "over"], "tags": ["O", "B-x", "I-x", "B-y", "O"]}
    ]
    found = cut_windows(bytes_tokenizer, rows, units="words", max_length=48)
    ids, places = found[0].inputs["input_ids"], [token for token, _, _ in found[0].heads]
    assert [unit for _, unit, _ in found[0].heads] == [0, 1, 2, 3, 4]
    between = [bytes_tokenizer.decode(ids[a:b]) for a, b in zip(places, [*places[1:], len(ids)])]
    assert between == [
        "the",
        " bridge ",
        "é ",
        "🌉",
        " over",
    ]  # a space that is a token by itself decides nothing
    assert decode_windows(found, perfect(found, rows), rows) == [rows[0]["tags"]]


def test_a_length_without_room(refused):
    assert "max_length=2 leaves no room" in refused(
        cut_windows, wordpiece("a"), [], units="words", max_length=2
    )


@pytest.mark.parametrize(
    ("file", "sentences", "units", "broken", "counts"),
    [  # entities as `grep -c` counts the B- tags of the file; one of restaurant8k lacks its B-
        (
            "restaurant8k/restaurant8k_dev.conll.gz",
            8193,
            "words",
            1,
            {"people": 2154, "time": 1935 + 1},
        ),
        ("wnut17/wnut17train.conll.gz", 3394, "words", 0, {"person": 660, "product": 142}),
        ("wnut17/emerging.test.annotated.gz", 1287, "words", 0, {"person": 429, "group": 165}),
        ("klue_ner/klue_ner_dev.tsv.gz", 4000, "characters", 0, {"PS": 3530, "TI": 445}),
    ],
)
def test_real_sets(real_data, file, sentences, units, broken, counts):
    rows, _, scheme, found = in_bio(load_rows(real_data(file), kinds=("ner",)).rows, [])
    assert (len(rows), find_units(rows), scheme, found) == (sentences, units, "BIO", broken)
    assert counts.items() <= type_counts(rows).items()
