"""Rated answers of other projects, one literal row of each layout, and what is dropped from them."""

import random

import pytest

from rlhf.data.importers import LAYOUTS, recognise_layout
from rlhf.data.load import Ratings, load_rows
from rlhf.data.ratings import from_dialogues, rank_scored, rank_trees, ranks
from rlhf.data.rows import KINDS, good_answers
from rlhf.errors import UserError

HUMAN = {"from": "human", "value": "Hi!"}
USER = {"role": "user", "content": "Hi!"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be kind."}
SFT = ("prompt_completion", "messages", "text")
PREFERENCE = {"prompt": [USER], "chosen": "Hello!", "rejected": "What?"}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "ShareGPT pairs",
            {
                "conversations": [HUMAN],
                "chosen": {"from": "gpt", "value": "Hello!"},
                "rejected": {"from": "gpt", "value": "What?"},
            },
            PREFERENCE,
        ),
        (
            "ShareGPT pairs",
            {
                "conversations": [HUMAN],
                "chosen": "Hello!",
                "rejected": "What?",
                "system": "Be kind.",
                "tools": "[]",
                "id": 1,
            },
            {"prompt": [SYSTEM, USER], "chosen": "Hello!", "rejected": "What?", "id": 1},
        ),
        ("messages pairs", {"messages": [USER], "chosen": GOOD, "rejected": [BAD]}, PREFERENCE),
        (
            "Alpaca pairs",
            {"instruction": "Add.", "input": "1 1", "chosen": "2", "rejected": "3"},
            {"prompt": "Add.\n\n1 1", "chosen": "2", "rejected": "3"},
        ),
        (
            "OpenAI pairs",
            {
                "input": {
                    "messages": [{"role": "developer", "content": "Be kind."}, USER],
                    "tools": [],
                    "parallel_tool_calls": True,
                },
                "preferred_output": [GOOD],
                "non_preferred_output": [BAD],
            },
            {"prompt": [SYSTEM, USER], "chosen": "Hello!", "rejected": "What?"},
        ),
        (
            "whole conversations",
            {"chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
            {"prompt": [USER, BAD, USER], "chosen": "Hello!", "rejected": "What?"},
        ),
        (
            "whole conversations",
            {
                "prompt": "Hi!",
                "prompt_id": "7",
                "chosen": [USER, GOOD],
                "rejected": [USER, BAD],
                "messages": [USER, GOOD],
                "score_chosen": 8.0,
                "score_rejected": 6.5,
            },
            {**PREFERENCE, "prompt_id": "7", "score_chosen": 8.0, "score_rejected": 6.5},
        ),
        (
            "ShareGPT KTO",
            {"conversations": [HUMAN, {"from": "gpt", "value": "What?"}], "kto_tag": False},
            {"prompt": [USER], "completion": "What?", "label": False},
        ),
        (
            "messages KTO",
            {"messages": [USER, BAD, USER, GOOD], "label": True},
            {"prompt": [USER, BAD, USER], "completion": "Hello!", "label": True},
        ),
        (
            "Alpaca KTO",
            {"instruction": "hi", "input": "", "output": "Hello!", "label": "True"},
            {"prompt": "hi", "completion": "Hello!", "label": True},
        ),
    ],
)
def test_each_layout_of_rated_answers(name, row, expected):
    layout = recognise_layout(row)
    assert layout.name == name
    assert layout.read(row) == [expected]


def test_ranks_of_scores():
    assert ranks([0.5, 3, 1, 3]) == [2, 0, 1, 0]


def test_answers_of_one_prompt_are_ranked_by_a_score():
    def row(prompt, response, helpfulness):
        return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": 2}

    rows = [
        ("f:1", row("p", "a", 1)),
        ("f:2", row("q", "only", 3)),
        ("f:3", row("p", "b", 4)),
        ("f:4", row("p", "c", None)),
    ]
    error, ranking, single = rank_scored(rows, "helpfulness")
    assert error[0] == "f:4" and "helpfulness: a number is expected, None given" in str(error[1])
    assert ranking == ("f:1", {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0]})
    assert single == ("f:2", "prompts with one answer, which cannot be ranked")


HELPSTEER = [
    {"prompt": "p", "response": "a", "helpfulness": 1, "correctness": 2},
    {"prompt": "p", "response": "b", "helpfulness": 4, "correctness": 1},
]


def test_helpsteer_needs_the_name_of_a_score(write, refused):
    path = write("h.jsonl", HELPSTEER)
    message = refused(load_rows, path, kinds=("ranking",))
    assert "HelpSteer rows, whose answers have scores" in message
    assert "rank_by: helpfulness or correctness" in message
    loaded = load_rows(path, kinds=("ranking",), ratings=Ratings(rank_by="correctness"))
    assert loaded.rows == [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}]
    # The prompts alone need no choice.
    assert [row["prompt"] for row in load_rows(path, kinds=("prompt",)).rows] == ["p", "p"]
    best = load_rows(path, kinds=SFT, ratings=Ratings(good_answers=True, rank_by="helpfulness"))
    assert best.rows == [{"prompt": "p", "completion": "b"}]


def test_rank_by_ranks_rows_of_ours_and_names_what_is_missing(write, refused):
    rows = [{"prompt": "p", "completion": c, "score": s} for c, s in (("a", 0.1), ("b", 0.1))]
    path = write("s.jsonl", rows)
    loaded = load_rows(path, kinds=("ranking",), ratings=Ratings(rank_by="score"))
    assert loaded.rows == [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 0]}]
    assert loaded.layout == "scored answers"
    message = refused(load_rows, path, kinds=("ranking",), ratings=Ratings(rank_by="skore"))
    assert "rank_by=skore ranks rows of prompt" in message and "completion, score" in message


def message(text, role, rank=None, replies=(), **more):
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def test_a_tree_has_a_ranking_for_each_question():
    follow_up = message(
        "And 2?",
        "prompter",
        replies=[message("no", "assistant", 1), message("yes", "assistant", 0)],
    )
    replies = [
        message("one", "assistant", 1, [follow_up]),
        message("two", "assistant", 0, [message("Why?", "prompter")]),
        message("spam", "assistant", 2, deleted=True),
    ]
    row = {"message_tree_id": "t", "prompt": message("1?", "prompter", replies=replies)}
    layout = recognise_layout(row)
    assert layout.name == "OpenAssistant trees"
    first = {"role": "user", "content": "1?"}
    assert layout.read(row) == [
        {"prompt": [first], "completions": ["one", "two"], "ranks": [1, 0]},
        {
            "prompt": [
                first,
                {"role": "assistant", "content": "one"},
                {"role": "user", "content": "And 2?"},
            ],
            "completions": ["no", "yes"],
            "ranks": [1, 0],
        },
        "questions with fewer than two ranked answers",
        "messages that were deleted or that reviewers rejected, with all below them",
    ]


def flat(name, parent, text, role, rank=None):
    return {"message_id": name, "parent_id": parent, "text": text, "role": role, "rank": rank}


def test_flat_rows_of_trees(write):
    rows = [
        flat("b", "a", "two", "assistant", 1.0),
        flat("a", None, "1?", "prompter"),
        flat("c", "a", "one", "assistant", 0.0),
        flat("d", "lost", "three", "assistant", 0.0),
    ]
    assert list(rank_trees([(f"f:{i}", row) for i, row in enumerate(rows)], "")) == [
        ("f:3", "messages whose parent_id is not in the file"),
        (
            "f:1",
            {
                "prompt": [{"role": "user", "content": "1?"}],
                "completions": ["two", "one"],
                "ranks": [1, 0],
            },
        ),
    ]
    path = write("oasst.jsonl", rows)
    loaded = load_rows(path, kinds=("ranking",))
    assert (loaded.layout, len(loaded.rows)) == ("OpenAssistant messages", 1)
    assert f"{path}: dropped: 1 messages whose parent_id is not in the file" in loaded.warnings


def test_a_prompt_that_is_not_the_beginning_is_refused(refused):
    row = {"prompt": "Bye!", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert "prompt: 'Bye!' is not what chosen and rejected begin with" in refused(
        from_dialogues, row
    )


def test_scores_that_tie_are_dropped_and_scores_that_contradict_are_bad(write, refused):
    def row(chosen, rejected):
        scores = {"score_chosen": chosen, "score_rejected": rejected}
        return {"prompt": "Hi!", "chosen": [USER, GOOD], "rejected": [USER, BAD], **scores}

    path = write("u.jsonl", [row(8.0, 6.5), row(7.0, 7.0)])
    loaded = load_rows(path, kinds=("ranking",))
    assert len(loaded.rows) == 1
    assert f"{path}: dropped: 1 pairs whose two answers have the same score" in loaded.warnings
    assert len(load_rows(path, kinds=("prompt",)).rows) == 2
    swapped = write("s.jsonl", [row(6.5, 8.0)])
    assert "score_rejected: 8.0 is above score_chosen, 6.5: are the two answers swapped?" in (
        refused(load_rows, swapped, kinds=("ranking",))
    )


THUMBS = [
    {"messages": [USER, GOOD], "label": True},
    {"messages": [USER, BAD], "label": False},
]
PAIRS = [{"conversations": [HUMAN], "chosen": GOOD, "rejected": BAD}]


def test_good_answers_are_learned_where_they_are_asked_for(write, refused):
    path = write("kto.jsonl", THUMBS)
    loaded = load_rows(path, kinds=SFT, ratings=Ratings(good_answers=True))
    assert (loaded.kind, loaded.source_kind) == ("prompt_completion", "unpaired_preference")
    assert loaded.rows == [{"prompt": [USER], "completion": "Hello!"}]
    assert f"{path}: dropped: 1 answers that are not good (label false)" in loaded.warnings
    pairs = load_rows(write("dpo.jsonl", PAIRS), kinds=SFT, ratings=Ratings(good_answers=True))
    assert pairs.rows == [{"prompt": [USER], "completion": "Hello!"}]
    message = refused(load_rows, path, kinds=("ranking",), ratings=Ratings(good_answers=True))
    assert "good_answers: true is for recipes that learn demonstrations" in message


def test_thumbs_become_rankings_where_a_prompt_has_both(write, refused):
    def row(prompt, answer, label):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "label": label}

    rows = [row("p", "a", False), row("q", "b", True), row("p", "c", True), row("q", "d", True)]
    path = write("kto.jsonl", rows)
    assert "rank_by: label ranks the answers of the prompts that have good and bad ones" in (
        refused(load_rows, path, kinds=("ranking",))
    )
    loaded = load_rows(path, kinds=("ranking",), ratings=Ratings(rank_by="label"))
    prompt = [{"role": "user", "content": "p"}]
    assert loaded.rows == [{"prompt": prompt, "completions": ["a", "c"], "ranks": [1, 0]}]
    assert f"{path}: dropped: 1 prompts whose answers all have the same label" in loaded.warnings
    # Where no rankings are read, the key changes nothing.
    both = Ratings(good_answers=True, rank_by="label")
    assert [row["completion"] for row in load_rows(path, kinds=SFT, ratings=both).rows] == [
        "b",
        "c",
        "d",
    ]
    assert len(load_rows(path, kinds=("prompt",), ratings=Ratings(rank_by="label")).rows) == 4
    table = write("kto.csv", "prompt,completion,label\np,a,True\np,b,False\n")
    ranked = load_rows(table, kinds=("ranking",), ratings=Ratings(rank_by="label"))
    assert ranked.rows == [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}]


def test_a_thumb_with_another_name_is_not_passed_over(write, refused):
    rows = [{"prompt": "p", "completion": "a", "kto_tag": False}]
    path = write("tag.jsonl", rows)
    message = refused(load_rows, path, kinds=SFT)
    assert "kto_tag rates the answers" in message and "columns: {label: kto_tag}" in message
    columns = {"label": "kto_tag"}
    assert "unpaired_preference rows" in refused(load_rows, path, kinds=SFT, columns=columns)


JUNK = (None, "", "text", 0, 3.5, float("nan"), True, [], ["a"], [None], [{}], {}, {"role": 3})
JUNK += ({"text": 1, "replies": 3}, [{"role": "user"}], [{"from": "human"}], [["a"]])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_no_value_ends_in_a_traceback(layout, write):
    """Rows of every layout with senseless values are bad rows or a refusal, whatever reads them."""
    columns = {*layout.columns, "label", "system", "history", "tools", "rank", "input"}
    generator = random.Random(0)
    kinds = (("ranking",), SFT, ("prompt",), tuple(KINDS))
    for i in range(10):
        rows = []
        for _ in range(3):
            rows.append({column: generator.choice(JUNK) for column in columns})
        path = write(f"{i}.jsonl", rows)
        ratings = Ratings(rank_by=generator.choice([None, "helpfulness", "label"]))
        for accepted in kinds:
            try:
                load_rows(path, kinds=accepted, skip_bad=True, ratings=ratings)
            except UserError:
                continue


def test_the_best_of_a_ranking_are_good():
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 3, 1], "id": 4}
    assert good_answers(row) == [
        {"prompt": "p", "completion": "a", "id": 4},
        {"prompt": "p", "completion": "c", "id": 4},
    ]


def test_a_single_rated_row_decides_and_a_late_one_is_bad(write, refused):
    plain = {"messages": [USER, GOOD]}
    early = write("early.jsonl", [plain, plain, THUMBS[1]])
    assert "recognised as messages KTO rows (unpaired_preference)" in refused(
        load_rows, early, kinds=SFT
    )
    late = write("late.jsonl", [plain] * 100 + THUMBS[1:])
    message = refused(load_rows, late, kinds=SFT)
    assert "late.jsonl:101: label: False rates the answer, but the first rows have no" in message


def test_a_label_that_is_a_topic_is_no_rating(write, refused):
    def rows(*labels):
        return [{"prompt": "p", "completion": "c", "label": label} for label in labels]

    topics = load_rows(write("topic.jsonl", rows("news", "sport")), kinds=SFT)
    assert topics.kind == "prompt_completion"
    assert "every answer is learned; if label says how good it is" in topics.warnings[-1]
    path = write("bits.jsonl", rows(0, 1))
    message = refused(load_rows, path, kinds=SFT)
    assert "label is 0 or 1: if it rates the answers, write true and false" in message
    assert len(load_rows(path, kinds=SFT, columns={"topic": "label"}).rows) == 2


def test_two_conversations_in_one_row_are_ambiguous(write, refused):
    row = {"conversations": [HUMAN, {"from": "gpt", "value": "a"}], "messages": [USER, GOOD]}
    path = write("two.jsonl", [row])
    message = refused(load_rows, path, kinds=SFT)
    assert "messages and conversations could each be what is learned" in message
    assert load_rows(path, kinds=SFT, columns={"unused": "conversations"}).kind == "messages"


def test_no_two_layouts_share_a_name():
    names = [layout.name for layout in LAYOUTS]
    assert len(names) == len(set(names))


def table(rows):
    """Rows as the text of a CSV file, in which every value is a string."""
    lines = [",".join(rows[0])]
    for row in rows:
        cells = ["" if value is None else str(value) for value in row.values()]
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def test_scores_of_a_table_count_like_those_of_json(write, refused):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    scores = [
        {"score_chosen": 5, "score_rejected": 4.5},
        {"score_chosen": 4, "score_rejected": 4.0},
    ]
    path = write("pairs.csv", table([pair | score for score in scores]))
    loaded = load_rows(path, kinds=("ranking",))
    assert (len(loaded.rows), loaded.counts["dropped"]) == (1, 1)
    path = write("swapped.csv", table([pair | {"score_chosen": 3, "score_rejected": 10}]))
    assert "10.0 is above score_chosen, 3.0" in refused(load_rows, path, kinds=("ranking",))


def test_answers_of_a_table_are_ranked_by_a_score(write, refused):
    scores = (4, 10, 9.5)
    rows = [{"prompt": "a", "response": f"b{s}", "helpfulness": s} for s in scores]
    path = write("help.csv", table(rows))
    assert "with rank_by: helpfulness" in refused(load_rows, path, kinds=("ranking",))
    loaded = load_rows(path, kinds=("ranking",), ratings=Ratings(rank_by="helpfulness"))
    assert [row["ranks"] for row in loaded.rows] == [[2, 0, 1]]


def test_answers_to_one_prompt_under_two_system_messages_are_not_ranked_together(write):
    rows = []
    for system in ("Be kind.", "Be rude."):
        for score in (1, 2):
            rows.append({"prompt": "q", "system": system, "response": f"{score}", "score": score})
    path = write("a.jsonl", rows)
    loaded = load_rows(path, kinds=("ranking",), ratings=Ratings(rank_by="score"))
    systems = [row["prompt"][0]["content"] for row in loaded.rows]
    assert systems == ["Be kind.", "Be rude."]


def test_messages_of_a_table_are_deleted_only_where_it_says_so(write):
    columns = ("message_id", "parent_id", "text", "role", "rank", "deleted", "review_result")
    rows = [
        ("1", None, "q", "prompter", None, False, True),
        ("2", "1", "worse", "assistant", 1.0, False, True),
        ("3", "1", "better", "assistant", 0.0, False, True),
        ("4", "1", "gone", "assistant", 2.0, True, True),
        ("5", "1", "bad", "assistant", 3.0, False, False),
    ]
    path = write("oasst.csv", table([dict(zip(columns, row, strict=True)) for row in rows]))
    (ranking,) = load_rows(path, kinds=("ranking",)).rows
    assert (ranking["completions"], ranking["ranks"]) == (["worse", "better"], [1, 0])


@pytest.mark.parametrize(
    "row",
    [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}],
)
def test_thumbs_of_0_and_1_are_not_passed_over(row, write, refused):
    remedy = "is 0 or 1: if it rates the answers, write true and false"
    for values in ((0.0, 1.0), ("0", "1"), (True, 1)):
        path = write("a.jsonl", [{**row, "kto_tag": value} for value in values])
        refused(load_rows, path, kinds=SFT)
    path = write("tag.jsonl", [{**row, "kto_tag": 1}])
    assert f"kto_tag {remedy}" in refused(load_rows, path, kinds=SFT)
    path = write("float.jsonl", [{**row, "label": 0.0}, {**row, "label": 1.0}])
    assert f"label {remedy}" in refused(load_rows, path, kinds=SFT)
    path = write("sorted.jsonl", [{**row, "label": 1}] * 100 + [{**row, "label": 0}])
    assert f"sorted.jsonl:101: label {remedy}" in refused(load_rows, path, kinds=SFT)
    topics = load_rows(path, kinds=SFT, columns={"topic": "label"})
    assert len(topics.rows) == 101


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b"},
        {"conversations": [HUMAN, {"from": "gpt", "value": "a"}]},
        {"messages": [USER, GOOD]},
        {"prompt": "a", "completion": "b"},
    ],
)
def test_empty_columns_of_other_rows_change_nothing(row, write):
    # Parquet gives every row of merged files the columns of all of them.
    empty = dict.fromkeys(
        "prompt completion messages conversations chosen rejected label history".split()
    )
    path = write("merged.jsonl", [empty | row])
    loaded = load_rows(path, kinds=SFT)
    alone = load_rows(write("alone.jsonl", [row]), kinds=SFT)
    assert (loaded.kind, loaded.layout) == (alone.kind, alone.layout)
    for column, value in alone.rows[0].items():
        assert loaded.rows[0][column] == value
    assert not any("every answer is learned" in warning for warning in loaded.warnings)


@pytest.mark.parametrize("name", ["score_{}", "{}_score", "{}_rating", "{}-rating"])
def test_the_scores_of_a_pair_have_several_names(name, write, refused):
    def row(prompt, *scores):
        columns = (name.format("chosen"), name.format("rejected"))
        pair = {"prompt": prompt, "chosen": "b", "rejected": "c"}
        return pair | dict(zip(columns, scores, strict=True))

    path = write("ties.jsonl", [row("p", 4, 3), row("q", 4, 4), row("r", None, 4)])
    loaded = load_rows(path, kinds=("ranking",))
    assert [kept["prompt"] for kept in loaded.rows] == ["p", "r"]
    path = write("swapped.jsonl", [row("p", 3, 10**400)])
    assert "are the two answers swapped?" in refused(load_rows, path, kinds=("ranking",))


def test_a_late_row_with_two_conversations_is_bad(write, refused):
    row = {"prompt": "a", "completion": "b"}
    path = write("late.jsonl", [row] * 100 + [{**row, "messages": [USER, GOOD]}])
    message = refused(load_rows, path, kinds=SFT)
    assert "late.jsonl:101: messages and prompt could each be what is learned" in message
    assert len(load_rows(path, kinds=SFT, skip_bad=True).rows) == 100
