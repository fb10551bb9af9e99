from pathlib import Path

import pytest

from rlhf.commands.validate import validate
from rlhf.data.importers import LAYOUTS, from_hh, recognise_layout
from rlhf.data.load import load_rows
from rlhf.errors import UserError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
THOUGHT = {**ANSWER, "reasoning_content": "hm"}
ROWS = [
    (
        "Alpaca",
        {"instruction": "Translate.", "input": "chat", "output": "cat", "id": 1},
        [{"prompt": "Translate.\n\nchat", "completion": "cat", "id": 1}],
    ),
    (
        "Alpaca",
        {"instruction": "hi", "input": "", "output": "Hello!"},
        [{"prompt": "hi", "completion": "Hello!"}],
    ),
    (
        "Alpaca",
        {"instruction": "hi", "output": "Hello!"},
        [{"prompt": "hi", "completion": "Hello!"}],
    ),
    (
        "Dolly",
        {"instruction": "When?", "context": "In 1999.", "response": "1999", "category": "qa"},
        [{"prompt": "When?\n\nIn 1999.", "completion": "1999", "category": "qa"}],
    ),
    (
        "Self-Instruct",
        {
            "id": 3,
            "instruction": "Add.",
            "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "0"}],
        },
        [
            {"prompt": "Add.\n\n1 1", "completion": "2", "id": 3},
            {"prompt": "Add.", "completion": "0", "id": 3},
        ],
    ),
    (
        "ShareGPT",
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "h"},
                {"from": "gpt", "value": "g"},
            ]
        },
        [
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "h"},
                    {"role": "assistant", "content": "g"},
                ]
            }
        ],
    ),
    (
        "ShareGPT",
        {
            "conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}],
            "system": "s",
            "tools": "[]",
            "id": 1,
        },
        [
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "h"},
                    {"role": "assistant", "content": "g"},
                ],
                "id": 1,
            }
        ],
    ),
    (
        "Alpaca",
        {"instruction": "hi", "input": "", "output": "Hello!", "system": "s"},
        [
            {
                "prompt": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "hi"},
                ],
                "completion": "Hello!",
            }
        ],
    ),
    (
        "Alpaca with history",
        {
            "instruction": "And 2?",
            "input": "",
            "output": "yes",
            "system": "",
            "history": [["1?", "no"]],
        },
        [
            {
                "messages": [
                    {"role": "user", "content": "1?"},
                    {"role": "assistant", "content": "no"},
                    {"role": "user", "content": "And 2?"},
                    {"role": "assistant", "content": "yes"},
                ]
            }
        ],
    ),
    (
        "OpenAI weights",
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "bad", "weight": 0},
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "good", "weight": 1},
            ],
            "parallel_tool_calls": False,
        },
        [
            "answers with weight 0",
            {
                "prompt": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "bad"},
                    {"role": "user", "content": "b"},
                ],
                "completion": "good",
            },
        ],
    ),
    (
        "OpenAI tools",
        {"messages": [{"role": "user", "content": "a"}], "tools": []},
        [{"messages": [{"role": "user", "content": "a"}]}],
    ),
    (
        "HH-RLHF",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad",
        },
        [
            {
                "prompt": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ],
                "chosen": "good",
                "rejected": "bad",
            }
        ],
    ),
    (
        "KoChatGPT",
        {
            "prompt": "p",
            "completion_0": "middle",
            "completion_1": "best",
            "completion_2": "worst",
            "ranking": [1, 0, 2],
        },
        [{"prompt": "p", "completions": ["middle", "best", "worst"], "ranks": [1, 0, 2]}],
    ),
    (
        "SQuAD",
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "c",
                    "qas": [
                        {"id": "1", "question": "q", "answers": [{"text": "c", "answer_start": 0}]}
                    ],
                },
                {
                    "context": "d",
                    "qas": [{"id": "2", "question": "r", "answers": [], "is_impossible": True}],
                },
            ],
        },
        [
            {
                "title": "t",
                "id": "1",
                "question": "q",
                "context": "c",
                "answers": [{"text": "c", "answer_start": 0}],  # rows.normalise turns it
            },
            {
                "title": "t",
                "id": "2",
                "question": "r",
                "context": "d",
                "answers": [],
                "is_impossible": True,
            },
        ],
    ),
    (
        "ChatbotData",
        {"Q": "q", "A": "a", "label": "0"},
        [{"prompt": "q", "completion": "a", "label": "0"}],
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_each_layout_is_recognised_and_turned(name, row, expected):
    layout = recognise_layout(row)
    assert layout.name == name
    assert layout.read(row) == expected


def test_our_own_rows_are_no_foreign_layout():
    assert recognise_layout({"prompt": "a", "chosen": "b", "rejected": "c"}) is None
    assert (
        recognise_layout({"prompt": "a", "chosen": "\n\nHuman: x", "rejected": "\n\nHuman: y"})
        is None
    )
    assert recognise_layout({"conversations": "text"}) is None


def test_one_speaker_twice_in_a_row_is_one_turn():
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c",
        "rejected": "\n\nHuman: a\n\nAssistant: d",
    }
    assert from_hh(row) == [
        {"prompt": [{"role": "user", "content": "a"}], "chosen": "b\n\nc", "rejected": "d"}
    ]


def test_dialogues_that_part_early_are_refused():
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: x",
    }
    with pytest.raises(
        UserError, match="chosen: one answer after the shared turns is expected, 3 turns given"
    ):
        from_hh(row)


CALL = {"function": {"name": "sum"}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"conversations": [{"from": "human", "value": "h"}], "tools": '[{"name": "sum"}]'},
            "tools: calls of tools cannot be learned here: drop such rows",
        ),
        (
            {"messages": [{"role": "user", "content": "h"}], "tools": [CALL]},
            "tools: calls of tools cannot be learned here",
        ),
        (
            {"messages": [{"role": "tool", "content": "3"}], "functions": []},
            "messages: unknown speaker 'tool', allowed: human, user, gpt",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0}
                ]
            },
            "messages: tool_calls: calls of tools cannot be learned here",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "a", "weight": 0},
                    {"role": "assistant", "content": "a", "weight": 0.5},
                ]
            },
            "messages: message 1: weight 0.5 must be 0 or 1",
        ),
        (
            {"instruction": "a", "output": "b", "history": "c"},
            "history: a list of pairs is expected, 'c' given",
        ),
        (
            {"instruction": "a", "output": "b", "history": ["c"]},
            "history: pairs of question and answer are expected, 'c' given",
        ),
        (
            {
                "conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "g"}],
                "system": "t",
            },
            "system: the conversation begins with a system message of its own: keep one",
        ),
    ],
)
def test_rows_that_mean_more_than_their_texts_are_refused(refused, row, message):
    assert message in refused(recognise_layout(row).read, row)


def test_an_instruction_that_is_no_text_does_not_become_one(write, refused):
    path = write("a.jsonl", [{"instruction": "a", "input": ["b"], "output": "c"}])
    message = refused(load_rows, path, kinds=("prompt_completion",))
    assert "a.jsonl:1: prompt: message 0: role and content are expected, 'b' given" in message


def test_one_row_with_a_weight_or_a_history_decides_for_its_file(write):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ignored = [turns[0], {**turns[1], "weight": 0}]
    path = write("openai.jsonl", [{"messages": m} for m in (turns, turns, ignored)])
    loaded = load_rows(path, kinds=("prompt_completion", "messages"))
    assert loaded.layout == "OpenAI weights"
    assert loaded.rows == [{"prompt": turns[:1], "completion": "b"}] * 2
    assert f"{path}: dropped: 1 answers with weight 0" in loaded.warnings
    alpaca = {"instruction": "a", "output": "b"}
    path = write("alpaca.jsonl", [alpaca, alpaca, {**alpaca, "history": []}])
    loaded = load_rows(path, kinds=("prompt_completion", "messages"))
    assert loaded.layout == "Alpaca with history"
    assert loaded.rows == [{"messages": turns}] * 3


def test_a_weight_after_the_first_rows_is_not_passed_over(write, refused):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    late = [turns[0], {**turns[1], "weight": 0}]
    path = write("late.jsonl", [{"messages": turns}] * 100 + [{"messages": late}])
    message = refused(load_rows, path, kinds=("messages",))
    assert "late.jsonl:101: messages: message 1: weight 0: the first rows of the file" in message


def test_the_guide_lists_every_layout():
    guide = Path(__file__).resolve().parents[2] / "docs" / "data.md"
    section = guide.read_text(encoding="utf-8").split("## Rows of other projects")[1]
    section = section.split("\n## ")[0]
    for layout in LAYOUTS:
        assert f"| {layout.name} " in section or f", {layout.name}" in section, layout.name


def test_unknown_speaker_is_named():
    row = {"conversations": [{"from": "tool", "value": "x"}]}
    with pytest.raises(
        UserError, match="conversations: unknown speaker 'tool', allowed: human, user, gpt"
    ):
        recognise_layout(row).read(row)


@pytest.mark.parametrize(
    ("file", "kind", "layout", "kept", "bad"),
    [
        ("e2e/kwise_quality.jsonl.gz", "ranking", "", 976, 0),
        ("tulu_human_pref/pairs.jsonl.gz", "preference", "", 534, 0),
        ("tulu_human_pref/kwise.jsonl.gz", "ranking", "", 226, 0),
        ("hh_rlhf_harmless/harmless_base_test_dev.jsonl.gz", "preference", "HH-RLHF", 1846, 3),
        (
            "self_instruct_user_oriented/user_oriented_instructions.jsonl.gz",
            "prompt_completion",
            "Self-Instruct",
            252,
            0,
        ),
        ("identity/identity.json", "prompt_completion", "Alpaca", 91, 0),
        ("chatbot_ko/ChatbotData.csv", "prompt_completion", "ChatbotData", 11823, 0),
    ],
)
def test_real_sets(real_data, file, kind, layout, kept, bad):
    loaded = load_rows(
        real_data(file), kinds=("ranking", "preference", "prompt_completion"), skip_bad=True
    )
    assert (loaded.kind, loaded.layout, loaded.counts["kept"], loaded.counts["bad"]) == (
        kind,
        layout,
        kept,
        bad,
    )


def read(row: dict) -> list[dict]:
    return recognise_layout(row).read(row)


def test_ner_tags_become_tags():
    row = {"tokens": ["Ada"], "ner_tags": ["B-per"], "id": 3}
    assert read(row) == [{"tokens": ["Ada"], "tags": ["B-per"], "id": 3}]


@pytest.mark.parametrize(
    "entities",
    [
        [{"start": 4, "end": 8, "label": "team"}, {"start": 0, "end": 3, "label": "per"}],
        [[0, 3, "per"], [4, 8, "team"]],
        [
            {"start_offset": 0, "end_offset": 3, "type": "per"},
            {"start_offset": 4, "end_offset": 8, "type": "team"},
        ],
    ],
)
@pytest.mark.parametrize("column", ["entities", "spans", "label"])
def test_marked_characters_become_tagged_words(entities, column):
    row = {"text": "Ada runs-fast.", column: entities}
    assert read(row) == [
        {"tokens": ["Ada", "runs", "-fast", "."], "tags": ["B-per", "B-team", "O", "O"]}
    ]


def test_prodigys_own_tokens_give_way():
    row = {
        "text": "Ada runs.",
        "tokens": [{"text": "Ada", "start": 0, "end": 3, "id": 0}],
        "spans": [[0, 3, "per"]],
    }
    assert read(row) == [{"tokens": ["Ada", "runs", "."], "tags": ["B-per", "O", "O"]}]


def test_a_list_of_names_is_no_list_of_entities():
    assert recognise_layout({"text": "a", "label": ["x", "y"]}) is None
    assert recognise_layout({"text": "a", "label": []}) is None


def test_marked_characters_of_a_korean_text_stay_characters():
    row = {"text": "서울 은", "entities": [[0, 2, "LC"]]}
    assert read(row) == [{"tokens": list("서울 은"), "tags": ["B-LC", "I-LC", "O", "O"]}]


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([[0, 9, "x"]], "entities: span 0-9 is outside the text (3 characters)"),
        ([[0, 2, "x"], [1, 3, "y"]], "entities: two entities overlap at character 1"),
        ([["a", 2, "x"]], "entities: items {start, end, label} are expected"),
        ([[1, 2, "x"]], "entities: ' ' at character 1 holds no word"),
    ],
)
def test_marks_that_are_wrong(entities, message, refused):
    assert message in refused(read, {"text": "a b", "entities": entities})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q"),
        ({"messages": [USER, ANSWER], "label": True}, "q"),
        ({"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}, "q"),
        (
            {
                "input": {"messages": [USER]},
                "preferred_output": [ANSWER],
                "non_preferred_output": [{**ANSWER, "content": "b"}],
            },
            "q",
        ),
    ],
)
def test_a_column_named_prompt_does_not_replace_the_prompt_of_a_layout(row, prompt, write):
    kinds = ("prompt_completion", "messages")
    path = write("a.jsonl", [{"prompt": "the answer is a", **row}])
    if "label" in row or "input" in row:
        kinds = ("unpaired_preference", "preference")
    (read,) = load_rows(path, kinds=kinds).rows
    first = read.get("messages", read["prompt"])[0]
    assert first == {"role": "user", "content": prompt}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Add.", "output": "2", "label": True},
        {"Q": "Add.", "A": "2"},
        {"messages": [USER, ANSWER], "completion": "b"},
    ],
)
def test_a_prompt_beside_an_instruction_is_ambiguous(row, write, refused):
    # As in files that hold the whole text of Alpaca's wrapper, with the answer, in `prompt`.
    path = write("two.jsonl", [{**row, "prompt": "### Instruction: Add. ### Response: 2"}])
    kinds = ("prompt_completion", "messages")
    if "label" in row:
        kinds = ("unpaired_preference",)
    message = refused(load_rows, path, kinds=kinds)
    assert (
        "could each be what is learned: rename the others, as in columns: {unused: prompt}"
        in message
    )
    (read,) = load_rows(path, kinds=kinds, columns={"unused": "prompt"}).rows
    assert "###" not in str(read.get("prompt", ""))


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": "a", "label": True},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]},
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER], "tools": "[]"},
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
        {"instruction": "q", "output": "a"},
    ],
)
def test_a_column_with_the_system_message_is_read_with_every_conversation(row, column, write):
    path = write("a.jsonl", [{**row, column: "Be kind."}])
    kinds = ("prompt_completion", "messages")
    if {"label", "chosen"} & row.keys():
        kinds = ("unpaired_preference", "preference")
    elif list(row) == ["prompt"]:
        kinds = ("prompt",)
    (read,) = load_rows(path, kinds=kinds).rows
    messages = read.get("messages", read.get("prompt"))
    assert messages[:2] == [{"role": "system", "content": "Be kind."}, USER]
    assert column not in read


def test_two_system_messages_are_refused_unless_they_are_the_same(write, refused):
    system = {"role": "system", "content": "Be kind."}
    row = {"messages": [system, USER, ANSWER]}
    path = write("two.jsonl", [{**row, "system": "Be rude."}])
    message = refused(load_rows, path, kinds=("messages",))
    assert (
        "two.jsonl:1: system: the conversation begins with a system message of its own" in message
    )
    path = write("copy.jsonl", [{**row, "system": "Be kind."}])
    assert load_rows(path, kinds=("messages",)).rows == [row]


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_an_answer_that_is_not_to_be_learned_is_left_out_in_every_form(key, column, write, refused):
    ignored = {"role": "assistant", "content": "bad", key: False}
    plain = {column: [USER, ANSWER]}
    marked = {column: [{**USER, key: False}, ignored, USER, {**ANSWER, key: True}]}
    path = write("a.jsonl", [plain, marked])
    loaded = load_rows(path, kinds=("prompt_completion", "messages"))
    assert [row["completion"] for row in loaded.rows] == ["a", "a"]
    assert loaded.counts["dropped"] == 1
    path = write("late.jsonl", [plain] * 100 + [marked])
    message = refused(load_rows, path, kinds=("prompt_completion", "messages"))
    assert (
        f"late.jsonl:101: {column}: message 1: {key} False: the first rows of the file" in message
    )
    masked = {column: [{**USER, key: 0}, {**ANSWER, key: 1}]}
    path = write("user.jsonl", [masked])
    assert load_rows(path, kinds=("prompt_completion", "messages")).kind == "messages"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, THOUGHT]},
        {"conversations": [USER, THOUGHT]},
        {"prompt": "q", "completion": [THOUGHT]},
        {"prompt": "q", "chosen": [THOUGHT], "rejected": "b"},
        {"chosen": [USER, THOUGHT], "rejected": [USER, ANSWER]},
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, THOUGHT]},
    ],
)
def test_reasoning_in_a_key_of_its_own_is_a_bad_row_of_every_layout(row, write):
    report = validate(write("a.jsonl", [row]))
    (problem,) = report.problems
    assert "a.jsonl:1: " in problem and "reasoning_content would not be learned" in problem


@pytest.mark.parametrize("column", ["images", "videos", "audios"])
def test_a_row_with_pictures_is_bad(column, write):
    row = {"instruction": "<image>What?", "output": "a"}
    path = write("a.jsonl", [{**row, column: ["a.png"]}, {**row, column: []}, row])
    report = validate(path)
    assert (report.good, report.bad) == (2, 1)
    assert "a.jsonl:1: " + column in report.problems[0]


@pytest.mark.parametrize("start", ["\n\n", ""])
@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"completion": " a"},
        {"chosen": " a", "rejected": " b"},
        {"response": "a", "chosen": "c", "rejected": "b"},
    ],
)
def test_a_dialogue_of_hh_in_the_prompt_becomes_turns(answers, start, write):
    # As in Dahoas/full-hh-rlhf.
    prompt = "Human: q\n\nAssistant: a\n\nHuman: r\n\nHuman: s\n\nAssistant:"
    path = write("a.jsonl", [{"prompt": start + prompt, **answers}])
    kinds = ("preference", "prompt")
    if "completion" in answers:
        kinds = ("prompt_completion",)
    (row,) = load_rows(path, kinds=kinds).rows
    assert row["prompt"] == [USER, ANSWER, {"role": "user", "content": "r\n\ns"}]
    path = write("b.jsonl", [{"prompt": "Write a dialogue:\n\nHuman: a\n\nAssistant:", **answers}])
    (row,) = load_rows(path, kinds=kinds).rows
    assert row["prompt"].startswith("Write a dialogue")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tools", '[{"name": "f"}]'),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("system", 3),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"messages": [USER, ANSWER]},
    ],
)
def test_a_column_that_changes_what_the_model_reads_is_not_passed_over(row, column, value, write):
    report = validate(write("a.jsonl", [{**row, column: value}]))
    (problem,) = report.problems
    assert f"a.jsonl:1: {column}: " in problem
    for nothing in ("", None, [], " "):
        if nothing != " " or column == "system":
            assert validate(write("a.jsonl", [{**row, column: nothing}])).good == 1
