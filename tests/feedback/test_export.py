"""Training rows and the table from events, and the store as recipes and `validate` read it."""

import csv
import io
import json

import pytest

from rlhf.commands.validate import format_report, validate
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits, prompt_key
from rlhf.errors import UserError
from rlhf.feedback import export
from rlhf.feedback.counts import count
from rlhf.feedback.events import to_row
from rlhf.runs.settings import DataSettings


def fill(store, *events):
    for event in events:
        store.append(event)
    return str(store.folder)


def test_the_folder_is_read_as_rankings_and_says_what_it_passes_over(store, make):
    folder = fill(
        store,
        make.rating(),
        make.ranking([1, 0, 1]),
        make.comparison("right", shown=[1, 0]),
        make.comparison("tie", "Tie?"),
        make.comparison(2, models=(make.old, make.new, None), shown=[2, 0, 1]),
    )
    loaded = load_rows(folder, kinds=("ranking",))
    ranks = [(row["completions"], row["ranks"]) for row in loaded.rows]
    texts = ["answer 0", "answer 1", "answer 2"]
    assert ranks == [
        (texts, [1, 0, 1]),
        (texts[:2], [0, 1]),
        (texts[:2], [0, 0]),
        (texts, [1, 0, 1]),
    ]
    assert loaded.rows[0]["prompt"] == make.prompt()
    assert f"{folder}: feedback events passed over: rating 1" in loaded.warnings
    report = validate(folder)
    assert report.exit_code == 0 and report.good == 4
    assert "imported from feedback" in format_report(report)
    assert "skipped     feedback events: rating 1" in format_report(report)


def test_the_file_itself_is_read_alike(store, make):
    fill(store, make.rating(), make.ranking([0, 1]))
    loaded = load_rows(str(store.path), kinds=("ranking",))
    assert len(loaded.rows) == 1
    assert any("dropped: 1 ratings of one answer" in warning for warning in loaded.warnings)


def test_a_torn_line_is_told_and_does_not_stop_a_run(store, make):
    folder = fill(store, make.ranking([0, 1]))
    with open(store.path, "a") as file:
        file.write('{"event": "ranking", "sch')
    fill(store, make.ranking([1, 0]))
    loaded = load_rows(folder, kinds=("ranking",))
    assert [row["ranks"] for row in loaded.rows] == [[0, 1], [1, 0]]
    assert any("1 lines that are not whole events" in warning for warning in loaded.warnings)
    assert validate(folder).exit_code == 0


def test_a_bad_event_stops_a_run_with_its_line(store, make):
    folder = fill(store, make.ranking([0, 1]))
    with open(store.path, "a") as file:
        file.write(json.dumps(to_row(make.ranking([0, 1])) | {"ranks": [0]}) + "\n")
    with pytest.raises(UserError, match=r"events.jsonl:2: ranks: 2 whole numbers"):
        load_rows(folder, kinds=("ranking",))


def test_only_ratings_are_no_rankings(store, make):
    folder = fill(store, make.rating())
    with pytest.raises(UserError, match="1 feedback events, none of them a ranking"):
        load_rows(folder, kinds=("ranking",))


def test_equal_answers_are_one_completion(store, make):
    folder = fill(
        store,
        make.ranking([1, 0, 2], texts=["a", "a", "b"]),
        make.ranking([0, 1], texts=["a", "a"]),
    )
    loaded = load_rows(folder, kinds=("ranking",))
    assert [(row["completions"], row["ranks"]) for row in loaded.rows] == [(["a", "b"], [0, 2])]
    assert any("1 judgements of answers with the same text" in text for text in loaded.warnings)


def test_rows_of_a_prompt_are_on_one_side_and_stay_there(store, make):
    events = [make.ranking([0, 1], f"prompt {i // 2}") for i in range(80)]
    rows = list(export.rankings(events))
    train, held_out = export.split(rows, "ranking", 0.2)
    assert train and held_out and len(train) + len(held_out) == 80
    assert not {prompt_key(row) for row in train} & {prompt_key(row) for row in held_out}
    more = [*events, *(make.ranking([1, 0], f"new {i}") for i in range(40))]
    _, later = export.split(list(export.rankings(more)), "ranking", 0.2)
    assert all(row in later for row in held_out)


def test_pairs_labels_and_demonstrations(make):
    ranked = make.ranking([0, 1, 1])
    assert [(row["chosen"], row["rejected"]) for row in export.pairs([ranked])] == [
        ("answer 0", "answer 1"),
        ("answer 0", "answer 2"),
    ]
    tie, bad = make.comparison("tie"), make.comparison("both bad")
    assert list(export.pairs([tie, bad])) == []
    labels = list(export.labels([make.rating(), make.rating(value="down"), bad, ranked]))
    assert [row["label"] for row in labels] == [True, False, False, False]
    assert [row["completion"] for row in labels[2:]] == ["answer 0", "answer 1"]
    shown = list(export.demonstrations([ranked, tie, make.rating(), make.rating(value="down")]))
    assert [row["messages"][-1]["content"] for row in shown] == ["answer 0", "Hello!"]
    assert shown[0]["messages"][0] == make.prompt()[0]


@pytest.mark.parametrize("name", export.EXPORTS)
def test_an_export_is_read_by_the_recipes_as_the_kind_it_names(name, make, tmp_path):
    events = [make.rating(), make.ranking([0, 1, 2]), make.comparison("both bad")]
    rows, kind = export.EXPORTS[name]
    path = tmp_path / f"{name}.jsonl"
    path.write_text(export.jsonl(rows(events)), encoding="utf-8")
    report = validate(str(path))
    assert report.kind == kind and report.bad == 0 and report.good == len(list(rows(events)))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1", "=HYPERLINK(0)"]
)
def test_no_cell_of_the_table_is_a_formula(text, make):
    event = make.ranking([0, 1], text, texts=[text, "fine"], annotator="1" * 16)
    lines = list(
        csv.DictReader(io.StringIO(export.table([event, make.rating(reason=text)]), newline=""))
    )
    assert lines[0]["answer"] == f"'{text}" == lines[0]["prompt"] and lines[1]["answer"] == "fine"
    assert lines[2]["reason"] == f"'{text}"
    assert export.cell(-1.5) == "-1.5" and export.cell(None) == "" and export.cell("a=b") == "a=b"


def test_counts(make):
    events = [
        make.rating(),
        make.rating(value="down"),
        make.ranking([0, 1, 1], annotator="1" * 16),
        make.comparison("left"),
        make.comparison("left"),
        make.comparison("right"),
        make.comparison("both bad", "Other"),
        make.comparison(0, models=(make.old, make.new, None)),
    ]
    counts = count(events)
    assert counts.kinds == {"rating": 2, "ranking": 1, "comparison": 5} and counts.total == 8
    assert (counts.pairs, counts.tied, counts.both_bad) == (3 + 4 + 3, 1 + 1 + 1, 1)
    assert counts.tie_rate == pytest.approx(0.3) and counts.prompts == 2
    assert (counts.up, counts.down, counts.left, counts.decided) == (1, 1, 2, 3)
    share, low, high = counts.left_rate
    assert share == pytest.approx(2 / 3) and low < 0.5 < high
    assert count([]).tie_rate is None and count([]).left_rate is None


def test_every_recipe_reads_the_folder(store, make, tmp_path):
    folder = fill(store, make.ranking([0, 1]), make.comparison("tie"), make.rating())
    assert [row["prompt"] for row in load_rows(folder, kinds=("prompt",)).rows] == [
        make.prompt()
    ] * 2
    with pytest.raises(UserError, match="good_answers: true learns the best answers"):
        load_rows(folder, kinds=("prompt_completion", "messages"))
    # A comparison without a good answer must not become demonstrations.
    store.append(make.comparison("both bad", models=(make.old, make.new, None)))
    settings = DataSettings(dataset_name=folder, good_answers=True, eval_fraction=None)
    splits = load_splits(settings, ("prompt_completion", "messages"), seed=0)
    assert [row["completion"] for row in splits.train] == ["answer 0", "answer 0", "answer 1"]
    assert any("1 comparisons in which all answers are bad" in text for text in splits.warnings)


def test_the_reward_recipe_holds_out_whole_prompts(store, make):
    events = [make.ranking([0, 1], f"prompt {i % 20}") for i in range(60)]
    folder = fill(store, *events)
    splits = load_splits(DataSettings(dataset_name=folder, eval_fraction=0.2), ("ranking",), seed=0)
    train, held_out = ({prompt_key(row) for row in rows} for rows in (splits.train, splits.eval))
    assert not train & held_out and len(train | held_out) == 20
    assert len(splits.train) == 3 * len(train) and len(splits.eval) == 3 * len(held_out)


def test_an_event_of_a_later_version_stops_a_run_and_is_not_taken_for_this_one(store, make):
    store.append(make.ranking([0, 1]))
    line = store.path.read_text()
    store.path.write_text(line + line.replace('"schema": 2', '"schema": 3'))
    with pytest.raises(UserError, match="schema: 3 given, this version reads 1 and 2"):
        load_rows(str(store.folder), kinds=("ranking",))
