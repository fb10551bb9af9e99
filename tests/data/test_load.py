import json

import pytest

from rlhf.data.load import load_rows, parse_columns
from rlhf.data.stored_rows import row_digest

PAIR = {"prompt": "p", "completion": "c"}
ANY = ("prompt_completion", "messages", "ranking", "classification", "text")


def test_missing_file_names_the_nearest(write, refused):
    path = write("train.jsonl", [PAIR])
    message = refused(load_rows, path.replace("train", "trian"), kinds=ANY)
    assert message.endswith("trian.jsonl: no such file; did you mean train.jsonl?")
    assert "no such file; check the path" in refused(load_rows, "nowhere/at/all.csv", kinds=ANY)


def test_loaded_rows_with_counts_and_fingerprint(write):
    path = write(
        "a.jsonl",
        [PAIR, {"completion": "c", "prompt": "p"}, {"prompt": "q", "completion": "c", "id": 1}],
    )
    loaded = load_rows(path, kinds=("messages", "prompt_completion"))
    assert loaded.kind == "prompt_completion" and loaded.rows[2] == {
        "prompt": "q",
        "completion": "c",
        "id": 1,
    }
    assert loaded.counts == {"total": 3, "kept": 3, "bad": 0, "duplicates": 1}
    assert loaded.warnings == [f"{path}: 1 of 3 rows repeat an earlier one and are kept"]
    again = load_rows(write("b.csv", "prompt,completion\np,c\np,c\n"), kinds=("prompt_completion",))
    assert (
        loaded.sha256
        != again.sha256
        == load_rows(path, kinds=("prompt_completion",), limit=2).sha256
    )


def test_bad_rows_are_all_collected_and_the_first_ten_shown(write, refused):
    rows = [PAIR] + [{"prompt": "p", "completion": ""}] * 11 + [{"prompt": "p"}]
    path = write("a.jsonl", rows)
    message = refused(load_rows, path, kinds=("prompt_completion",))
    assert message.startswith(f"{path}: 12 of 13 rows are bad:\n  {path}:2: completion: empty\n")
    assert f"{path}:11: completion: empty" in message and f"{path}:12:" not in message
    assert "... and 2 more; `python -m rlhf validate" in message and "skip_bad: true" in message
    loaded = load_rows(path, kinds=("prompt_completion",), skip_bad=True)
    assert loaded.rows == [PAIR] and loaded.counts["bad"] == 12
    assert loaded.sources[0]["bad"] == 12
    assert loaded.warnings[0].startswith(
        f"{path}: 12 of 13 rows are bad and were dropped; first: {path}:2: completion: empty"
    )


def test_broken_lines_count_as_bad_rows_and_can_be_left_out(write, refused):
    path = write("a.jsonl", b'{"text": "\xff"}\n{"text": "a"}\n{"text": "b')
    message = refused(load_rows, path, kinds=("text",))
    assert (
        f"{path}:1: not UTF-8 (byte 0xff at column 11)" in message
        and f"{path}:3: not valid JSON" in message
    )
    assert load_rows(path, kinds=("text",), skip_bad=True).rows == [{"text": "a"}]
    nothing = write("b.jsonl", '{"text": ')
    assert f"{nothing}:1: not valid JSON" in refused(
        load_rows, nothing, kinds=("text",), skip_bad=True
    )


def test_ranks_not_as_long_as_completions(write, refused):
    path = write("a.jsonl", [{"prompt": "p", "completions": ["a", "b", "c"], "ranks": [0, 1]}])
    assert f"{path}:1: ranks: 2 ranks for 3 completions: give each completion its rank" in refused(
        load_rows, path, kinds=ANY
    )


def test_a_bad_first_row_does_not_decide_the_kind(write, refused):
    path = write("a.jsonl", [{"prompt": "p"}, PAIR, PAIR])
    assert f"{path}:1: completion: missing" in refused(
        load_rows, path, kinds=("prompt_completion",)
    )


def test_another_kind_is_refused_with_its_recipe(write, refused):
    path = write("a.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    message = refused(load_rows, path, kinds=("prompt_completion", "messages"))
    assert message == (
        f"{path}: recognised as preference rows; this recipe takes prompt_completion or messages; "
        "preference rows are for reward and dpo and ilql; good_answers: true learns the chosen answers"
    )
    foreign = write(
        "b.jsonl", [{"prompt": "p", "completion_0": "a", "completion_1": "b", "ranking": [0, 1]}]
    )
    assert "recognised as KoChatGPT rows (ranking)" in refused(
        load_rows, foreign, kinds=("messages",)
    )


def test_prompts_and_rankings_are_made_where_asked_for(write):
    path = write("a.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "id": 4}])
    assert load_rows(path, kinds=("prompt",)).rows == [{"prompt": "p", "id": 4}]
    loaded = load_rows(path, kinds=("ranking",))
    assert loaded.kind == "ranking"
    assert loaded.rows == [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1], "id": 4}]


def test_a_foreign_array_named_jsonl_becomes_rankings(write):
    path = write(
        "kochatgpt_2_RM.jsonl",
        json.dumps([{"prompt": "p", "completion_0": "a", "completion_1": "b", "ranking": [1, 0]}]),
    )
    loaded = load_rows(path, kinds=("ranking",))
    assert loaded.rows == [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0]}]
    assert loaded.layout == "KoChatGPT"


# --- rated answers

HUMAN = {"from": "human", "value": "Hi!"}
USER = {"role": "user", "content": "Hi!"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
SFT = ("prompt_completion", "messages", "text")
THUMBS = [
    {"messages": [USER, GOOD], "label": True},
    {"messages": [USER, BAD], "label": False},
]
PAIRS = [{"conversations": [HUMAN], "chosen": GOOD, "rejected": BAD}]


@pytest.mark.parametrize(
    ("rows", "kind", "answers"),
    [
        (THUMBS, "unpaired_preference", "the answers with the label true"),
        (THUMBS[1:], "unpaired_preference", "the answers with the label true"),
        (
            [{"prompt": "p", "completion": "a", "label": label} for label in ("true", "false")],
            "unpaired_preference",
            "the answers with the label true",
        ),
        (PAIRS, "preference", "the chosen answers"),
        (
            [{"prompt": "Hi!", "chosen": "a", "rejected": "b", "messages": [USER, GOOD]}],
            "preference",
            "the chosen answers",
        ),
        ([{"text": "t", "prompt": "p", "chosen": "a", "rejected": "b"}], "preference", "chosen"),
    ],
)
def test_rated_answers_are_never_read_as_demonstrations(write, refused, rows, kind, answers):
    path = write("rated.jsonl", rows)
    message = refused(load_rows, path, kinds=SFT)
    assert f"({kind})" in message or f"recognised as {kind} rows" in message
    assert "good_answers: true learns" in message and answers in message


def test_a_limit_that_cuts_the_file_is_said(write):
    path = write("a.jsonl", [{"text": str(i)} for i in range(3)])
    assert load_rows(path, kinds=("text",), limit=2).warnings == [
        f"{path}: dataset_limit: the first 2 rows are used, and nothing after them is read"
    ]
    assert load_rows(path, kinds=("text",), limit=4).warnings == []


# --- columns


def test_columns_map_our_name_to_their_name(write):
    path = write("a.tsv", "id\tdocument\tlabel\n7\tfine\t1\n")
    expected = [{"id": "7", "text": "fine", "label": "1"}]
    assert load_rows(path, kinds=("classification",), columns={"text": "document"}).rows == expected
    assert (
        load_rows(path, kinds=("classification",), columns="text=document, label=label").rows
        == expected
    )
    assert load_rows(
        path, kinds=("text",), columns={"text": "label", "label": "document"}
    ).rows == [{"id": "7", "text": "1", "label": "fine"}]


def test_a_wrong_column_lists_the_columns_and_the_nearest(write, refused):
    path = write("a.csv", "id,document,label\n7,fine,1\n")
    message = refused(load_rows, path, kinds=("classification",), columns={"text": "documnt"})
    assert (
        "text=documnt: there is no column 'documnt'; the columns are id, document, label" in message
    )
    assert "did you mean 'document'" in message
    turned = refused(load_rows, path, kinds=("classification",), columns={"document": "text"})
    assert "document exists: did you swap the two names?" in turned
    unmapped = refused(load_rows, write("b.csv", "Text,class\na,1\n"), kinds=("classification",))
    assert (
        "no known row form; the columns are Text, class; needed are classification: text, label"
        in unmapped
    )
    assert "did you mean 'Text' for text?" in unmapped and "map names with columns" in unmapped


def test_columns_that_are_no_map(refused):
    assert parse_columns(None) == {}
    assert "is not a map of our name to their name" in refused(parse_columns, "text")
    assert "is not a map" in refused(parse_columns, {"text": 3})


# --- folders and the Hub


def test_a_folder_is_a_feedback_store_whose_rankings_are_rows(write, tmp_path, refused):
    ranking = {"event": "ranking", "prompt": "p", "completions": ["a", "b"], "ranks": [0, 0]}
    write("store/2.jsonl", [ranking])
    write("store/1.jsonl", [{"event": "like", "prompt": "p", "completion": "a"}, ranking])
    loaded = load_rows(str(tmp_path / "store"), kinds=("ranking",))
    assert loaded.rows == [ranking, ranking]
    assert f"{tmp_path / 'store'}: feedback events passed over: like 1" in loaded.warnings
    write("likes/1.jsonl", [{"event": "like"}])
    assert "no rows (1 feedback events, none of them a ranking;" in refused(
        load_rows, str(tmp_path / "likes"), kinds=ANY
    )
    (tmp_path / "void").mkdir()
    assert "the folder holds no .jsonl file" in refused(
        load_rows, str(tmp_path / "void"), kinds=ANY
    )


def test_hub_rows_carry_the_names_of_their_classes(hub, refused):
    assert load_rows("user/films", kinds=("classification",)).rows == [
        {"text": "a", "label": "good"},
        {"text": "b", "label": "bad"},
    ]
    assert "user/films[test]:0: label: missing" in refused(
        load_rows, "user/films", kinds=("classification",), split="test"
    )
    assert "no split 'dev'; it has train, test" in refused(
        load_rows, "user/films", kinds=ANY, split="dev"
    )


def test_neither_local_nor_on_the_hub(monkeypatch, refused):
    import datasets

    def fail(*_):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = refused(load_rows, "no-such/thing", kinds=ANY)
    assert (
        "'no-such/thing' is neither a local file or folder nor a data set reachable on the Hub"
        in message
    )
    assert "(ConnectionError: offline)" in message


def test_digest_does_not_depend_on_the_order_of_columns():
    assert (
        row_digest({"a": 1, "b": "é"})
        == row_digest({"b": "é", "a": 1})
        != row_digest({"a": 2, "b": "é"})
    )


@pytest.mark.parametrize("form", ["List", "Sequence"])
def test_hub_tags_carry_the_names_of_their_classes(monkeypatch, form):
    import datasets

    tags = getattr(datasets, form)(datasets.ClassLabel(names=["O", "B-per"]))
    features = datasets.Features(
        {"words": datasets.List(datasets.Value("string")), "ner_tags": tags}
    )
    data = datasets.Dataset.from_dict(
        {"words": [["Ada", "ran"]], "ner_tags": [[1, 0]]}, features=features
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None: {"train": data})
    expected = [{"tokens": ["Ada", "ran"], "tags": ["B-per", "O"]}]
    assert load_rows("user/names", kinds=("ner",), columns="tokens=words").rows == expected
    assert (
        load_rows("user/names", kinds=("ner",), columns="tokens=words,tags=ner_tags").rows
        == expected
    )


def test_bad_tags_are_named_with_their_line(write, refused):
    path = write("a.jsonl", [
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": ["a", " "], "tags": ["O", "O"]},
        {"tokens": ["a"], "tags": [1]},
        {"tokens": [""], "tags": ["O"]},
    ])  # fmt: skip
    message = refused(load_rows, path, kinds=("ner",))
    assert "a.jsonl:1: tags: 1 tags for 2 tokens: give each token its tag" in message
    assert (
        "a.jsonl:3: tags: numbers without names, [1]: write the names, as in B-person, I-person and O"
        in message
    )
    assert "a.jsonl:4: tokens: item 0: empty" in message
    assert "3 of 4 rows are bad" in message


def test_an_answer_of_another_name_is_named_in_the_message(write, refused):
    path = write("a.jsonl", [{"prompt": "a", "response": "b"}])
    kinds = ("prompt_completion", "messages")
    message = refused(load_rows, path, kinds=kinds)
    assert "if response is the answer, name it with columns: {completion: response}" in message
    loaded = load_rows(path, kinds=kinds, columns={"completion": "response"})
    assert loaded.rows == [{"prompt": "a", "completion": "b"}]


def test_an_event_that_is_no_feedback_is_a_column_of_another_name(write, tmp_path, refused):
    row = {"event": "goal", "text": "a"}
    write("news/train.jsonl", [row, {**row, "event": "foul"}])
    folder = str(tmp_path / "news")
    assert "as in columns: {topic: event}" in refused(load_rows, folder, kinds=("text",))
    loaded = load_rows(folder, kinds=("text",), columns={"topic": "event"})
    assert [row["topic"] for row in loaded.rows] == ["goal", "foul"]
