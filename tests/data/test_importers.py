import pytest

from rlhf.data.importers import from_hh, recognise_layout
from rlhf.data.load import load_rows
from rlhf.errors import UserError

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
