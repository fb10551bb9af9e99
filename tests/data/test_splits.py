from types import SimpleNamespace

import pytest

from rlhf.data.load import load_rows
from rlhf.data.splits import check_disjoint, load_splits, prompt_key, split_rows
from rlhf.runs.settings import DataSettings

ANY = ("prompt_completion", "messages", "ranking", "classification", "text")


def test_a_prompt_never_stands_on_both_sides_and_stays_where_it_is():
    rows = [{"prompt": f"p{i % 50}", "completion": f"c{i}"} for i in range(200)]
    train, test = split_rows(rows, 0.2, seed=3)
    assert len(train) + len(test) == 200 and 0 < len({r["prompt"] for r in test}) < 25
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    more = rows + [{"prompt": f"new{i}", "completion": "c"} for i in range(50)]
    assert [row for row in split_rows(more, 0.2, seed=3)[1] if row in rows] == test
    assert split_rows(rows, 0.2, seed=4)[1] != test


def test_splits_that_leave_a_side_empty_are_refused(refused):
    rows = [{"prompt": "one", "completion": str(i)} for i in range(9)]
    assert "eval_fraction=0.1 of 1 distinct prompts leaves the" in refused(
        split_rows, rows, 0.1, seed=0
    )
    assert "eval_fraction=1.5 must be between 0 and 1" in refused(split_rows, rows, 1.5, seed=0)


def test_a_small_file_keeps_one_prompt_on_each_side(write):
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(3)]
    for fraction in (0.001, 0.999):
        for seed in range(5):
            train, test = split_rows(rows, fraction, seed)
            assert min(len(train), len(test)) == 1 and len(train) + len(test) == 3
    # The prompt that is held out is the first that a larger fraction would hold out.
    test = split_rows(rows, 0.001, seed=1)[1]
    assert all(test[0] in split_rows(rows, share / 10, seed=1)[1] for share in range(1, 10))
    splits = load_splits(settings(write("few.jsonl", rows), eval_fraction=0.001), ANY, seed=0)
    assert splits.warnings == [
        "eval_fraction=0.001 of 3 rows holds out one prompt: its metrics say little"
    ]


def test_conversations_that_the_assistant_opens_are_told_apart():
    def row(question):
        turns = [("assistant", "Hello."), ("user", question), ("assistant", "Yes.")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    assert prompt_key(row("a")) != prompt_key(row("b"))
    train, test = split_rows([row(f"q{i}") for i in range(20)], 0.5, seed=0)
    assert train and test
    only_answer = {"messages": [{"role": "assistant", "content": "a"}]}
    assert prompt_key(only_answer) == '[["assistant", "a"]]'


def test_prompt_key():
    asked = [{"role": "user", "content": "a b"}]
    answered = [*asked, {"role": "assistant", "content": "c"}]
    key = prompt_key({"prompt": " a\n b"})
    assert (
        key
        == prompt_key({"prompt": asked})
        == prompt_key({"messages": answered})
        == prompt_key({"text": "a b"})
    )
    assert key != prompt_key({"prompt": [{"role": "system", "content": "a b"}]})
    assert key == prompt_key({"text": "a b", "prompt": 3, "messages": "an extra column"})


def test_a_column_that_only_bears_the_name_of_another_kinds_text_does_not_decide_the_split():
    rows = [
        {"text": f"t{i % 20}", "label": "a", "context": "web" if i % 2 else f"app {i}"}
        for i in range(200)
    ]
    train, test = split_rows(rows, 0.3, seed=0, kind="classification")
    assert train and test and not {row["text"] for row in train} & {row["text"] for row in test}
    check_disjoint(train, test, "classification")  # though "web" stands on both sides


def test_shared_prompts_are_named_and_counted(refused):
    train = [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    check_disjoint(train, [{"text": "d"}])
    message = refused(check_disjoint, train, [{"text": "b"}, {"text": " b"}, {"text": "a"}])
    assert "2 prompts are in both train and eval rows, the first: 'b'; 'a'" in message


def test_shared_prompts_are_dropped_from_the_train_rows_and_counted(write, refused):
    def rows(*texts):
        return [{"text": text, "label": "a"} for text in texts]

    train = write("train.jsonl", rows("a", "b", " b", "Case", "c"))
    test = write("test.jsonl", rows("b", "x", "a", "case"))
    kept = load_splits(
        settings(train, eval_dataset_name=test, overlap="drop"), ("classification",), seed=0
    )
    # "Case" and "case" are two prompts.
    assert [row["text"] for row in kept.train] == ["Case", "c"]
    assert [row["text"] for row in kept.eval] == ["b", "x", "a", "case"]
    assert kept.sources[0]["overlap_dropped"] == 3 and "overlap_dropped" not in kept.sources[1]
    assert kept.warnings[-1] == (
        "overlap: drop: 3 train rows were dropped, because their 2 prompts are in the eval rows too, the first: 'b'; 'a'"
    )
    message = refused(
        load_splits, settings(train, eval_dataset_name=test), ("classification",), seed=0
    )
    assert "2 prompts are in both train and eval rows" in message
    assert "set overlap: drop to drop them from the train rows" in message
    wrong = settings(train, eval_dataset_name=test, overlap="ignore")
    assert "overlap='ignore': use one of error, drop" in refused(load_splits, wrong, ANY, seed=0)
    nothing = settings(test, eval_dataset_name=test, overlap="drop")
    assert "no train row is left" in refused(load_splits, nothing, ANY, seed=0)


def test_good_answers_on_both_sides_and_a_file_without_ratings(write, refused):
    def row(name, label):
        return {"prompt": name, "completion": f"answer {name}", "label": label}

    train = write("train.jsonl", [row("p", True), row("q", False)])
    test = write("test.jsonl", [row("r", True), row("s", False)])
    rated = settings(train, eval_dataset_name=test, good_answers=True)
    splits = load_splits(rated, ANY, seed=0)
    assert splits.train == [{"prompt": "p", "completion": "answer p"}]
    assert splits.eval == [{"prompt": "r", "completion": "answer r"}]
    assert [source["dropped"] for source in splits.sources] == [1, 1]
    plain = write("plain.jsonl", [{"prompt": "p", "completion": "c"}])
    message = refused(load_splits, settings(plain, good_answers=True), ANY, seed=0)
    assert "prompt_completion rows, whose answers are not rated: remove the key" in message


def settings(name, **changes):
    fields = {
        "dataset_name": name,
        "dataset_config": None,
        "dataset_train_split": "train",
        "dataset_test_split": "test",
        "eval_dataset_name": None,
        "eval_fraction": 0.0,
        "columns": None,
        "dataset_limit": None,
        "skip_bad": False,
        "document_separator": None,
        "overlap": "error",
        "good_answers": False,
        "rank_by": None,
    }
    return SimpleNamespace(**(fields | changes))


def test_load_splits(write, tmp_path, hub, refused):
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(40)]
    path, other = (
        write("all.jsonl", rows),
        write("other.jsonl", [{"prompt": "q", "completion": "c"}]),
    )
    plain = load_splits(settings(path), ("prompt_completion",), seed=0)
    assert (plain.train, plain.eval, plain.kind) == (rows, [], "prompt_completion")
    assert plain.sources == [
        {"name": path, "rows": 40, "sha256": load_rows(path, kinds=ANY).sha256}
    ]

    parted = load_splits(settings(path, eval_fraction=0.25), ("prompt_completion",), seed=0)
    assert parted.eval and sorted(parted.train + parted.eval, key=rows.index) == rows

    named = load_splits(
        settings(path, eval_dataset_name=other, eval_fraction=0.25), ("prompt",), seed=0
    )
    assert (len(named.train), named.eval, [s["rows"] for s in named.sources]) == (
        40,
        [{"prompt": "q"}],
        [40, 1],
    )
    assert "are in both" in refused(
        load_splits, settings(path, eval_dataset_name=path), ("prompt",), seed=0
    )

    write("set/train.jsonl", rows)
    write("set/test.jsonl", [{"prompt": "q", "completion": "c"}])
    folder = load_splits(settings(str(tmp_path / "set")), ("prompt_completion",), seed=0)
    assert (len(folder.train), len(folder.eval)) == (40, 1)

    found = load_splits(settings("user/films", skip_bad=True), ("text",), seed=0)
    assert ([r["text"] for r in found.train], [r["text"] for r in found.eval]) == (
        ["a", "b"],
        ["c"],
    )


def test_a_text_with_other_choices_is_another_question(refused):
    row = {"text": "He nods.", "choices": ["a  b", "c"], "label": 0}
    other = row | {"choices": ["a b", "d"]}
    check_disjoint([row], [other], "multiple_choice")
    turned = row | {"text": "He  nods.", "choices": ["c", "a b"], "label": 1}
    message = refused(check_disjoint, [row, other], [turned], "multiple_choice")
    assert "1 prompts are in both train and eval rows, the first: 'He nods. | a b | c'" in message
    # one file is split by the text alone
    rows = [row | {"text": f"t{n % 10}", "choices": ["a", f"c{n}"]} for n in range(40)]
    train, test = split_rows(rows, 0.5, 0, "multiple_choice")
    assert {row["text"] for row in train}.isdisjoint(row["text"] for row in test)


def test_a_train_split_that_is_not_there_is_refused(write, tmp_path, refused):
    for name in ("train_sft", "train_gen"):
        write(f"set/{name}.jsonl", [{"prompt": name, "completion": "a"}])
    settings = DataSettings(
        dataset_name=str(tmp_path / "set"), dataset_train_split="train_sft", eval_fraction=None
    )
    rows = load_splits(settings, ("prompt_completion",), seed=1).train
    assert [row["prompt"] for row in rows] == ["train_sft"]
    for split in ("train_gem", "train[:10%]"):
        settings.dataset_train_split = split
        message = refused(load_splits, settings, ("prompt_completion",), seed=1)
        assert f"dataset_train_split={split}: {tmp_path}/set has no such split" in message
    settings.dataset_name += "/train_sft.jsonl"
    assert "a file has none: remove the key" in refused(
        load_splits, settings, ("prompt_completion",), seed=1
    )


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_leaves_no_row_is_refused(limit, write, refused):
    path = write("a.jsonl", [{"prompt": "a", "completion": "b"}])
    settings = DataSettings(dataset_name=path, dataset_limit=limit)
    message = refused(load_splits, settings, ("prompt_completion",), seed=1)
    assert f"dataset_limit={limit} must be at least 1" in message


def test_the_training_files_of_an_eval_folder_are_no_eval_rows(write, tmp_path, refused):
    path = write("a.jsonl", [{"prompt": "a", "completion": "b"}])
    for name in ("part", "dev"):
        write(f"set/{name}.jsonl", [{"prompt": name, "completion": "b"}])
    settings = DataSettings(dataset_name=path, eval_dataset_name=str(tmp_path / "set"))
    kinds = ("prompt_completion",)
    message = refused(load_splits, settings, kinds, seed=1)
    assert "no file of the split 'test', but dev.jsonl: name that split" in message
    settings.dataset_test_split = "dev"
    assert load_splits(settings, kinds, seed=1).eval == [{"prompt": "dev", "completion": "b"}]
    # A folder of parts alone is an evaluation set as it is.
    settings.dataset_test_split = "test"
    (tmp_path / "set/dev.jsonl").unlink()
    assert load_splits(settings, kinds, seed=1).eval == [{"prompt": "part", "completion": "b"}]


def test_pairs_can_evaluate_what_was_ranked_by_a_score(write, refused):
    pairs = write("pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    rows = [{"prompt": "p", "response": "a", "score": score} for score in (1, 2)]
    settings = DataSettings(
        dataset_name=write("scores.jsonl", rows), eval_dataset_name=pairs, rank_by="score"
    )
    splits = load_splits(settings, ("ranking",), seed=1)
    assert (splits.train[0]["ranks"], splits.eval[0]["ranks"]) == ([1, 0], [0, 1])
    settings.dataset_name, settings.eval_dataset_name = pairs, None
    assert "rank_by=score ranks rows of" in refused(load_splits, settings, ("ranking",), seed=1)
