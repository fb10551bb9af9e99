"""`python -m rlhf predict RUN FILE`: rows in, the same rows with predictions out, and the metrics where there are answers.

What a model says is played by stand-ins, whose answers are worked out here; the last tests ask real ones.
"""

import argparse
import gzip
import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from rlhf.__main__ import main as command
from rlhf.commands import predict
from rlhf.commands.predict import add_arguments, main, table
from rlhf.errors import UserError
from rlhf.models.load import save
from rlhf.runs.record import RunRecord
from rlhf.serving.predictors import open_encoder

ARCHITECTURES = {
    "classification": "BertForSequenceClassification",
    "ner": "BertForTokenClassification",
    "question_answering": "BertForQuestionAnswering",
    "multiple_choice": "BertForMultipleChoice",
    "causal": "GPT2LMHeadModel",
    "masked": "BertForMaskedLM",
    "reward": "GPT2ForSequenceClassification",
}


class Loud:
    """An encoder that calls what ends with ! loud, and remembers how many rows it got at once."""

    labels, problem = ["quiet", "loud"], "single_label_classification"

    def __init__(self):
        self.chunks = []

    def predict(self, rows, batch_size):
        self.chunks.append(len(rows))
        said = ["loud" if row["text"].endswith("!") else "quiet" for row in rows]
        return [{"label": label, "probabilities": {label: 1.0}} for label in said]


class Fixed:
    """Says what it was given, row by row."""

    def __init__(self, *predictions, **attributes):
        self.predictions = iter(predictions)
        vars(self).update(attributes)

    def predict(self, rows, batch_size):
        return [next(self.predictions) for _ in rows]


@pytest.fixture
def run_of(tmp_path):
    """The folder of a run of this kind, with this config."""

    def run_of(kind: str, recipe: str = "x", config: dict | None = None, **model_config):
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        content = {"architectures": [ARCHITECTURES[kind]] if kind else [], **model_config}
        (folder / "config.json").write_text(json.dumps(content))
        RunRecord(
            "reward" if kind == "reward" else recipe, config=config or {}, status="done"
        ).save(folder)
        return str(folder)

    return run_of


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """The rows that the command writes for a file, with this encoder in the place of the run's."""

    def predicted(encoder, run, file, *flags):
        monkeypatch.setattr(predict, "open_encoder", lambda kind, folder, device: encoder)
        output = tmp_path / "out.jsonl"
        assert main(arguments(run, file, "--output", output, *flags)) == 0
        assert not (tmp_path / "out.jsonl.part").exists()
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    return predicted


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- rows in, rows out -------------------------------------------------------------------------------------------


def test_lines_of_text_are_enough(tmp_path, run_of, predicted, capsys):
    file = tmp_path / "lines.txt"
    file.write_text("Hey!\n\n조용히\n", encoding="utf-8")
    assert predicted(Loud(), run_of("classification"), file) == [
        {"text": "Hey!", "predicted_label": "loud", "predicted_probabilities": {"loud": 1.0}},
        {"text": "조용히", "predicted_label": "quiet", "predicted_probabilities": {"quiet": 1.0}},
    ]
    assert capsys.readouterr().out == f"2 rows -> {tmp_path / 'out.jsonl'}\n"


def test_a_packed_table_keeps_its_columns_and_order(tmp_path, run_of, predicted):
    file = tmp_path / "rows.csv.gz"
    with gzip.open(file, "wt", encoding="utf-8") as packed:
        packed.write(
            "nr,review\n"
            + "".join(
                f"{place},{'word ' * (place % 7)}end{'!' * (place % 2)}\n" for place in range(99)
            )
        )
    encoder = Loud()
    rows = predicted(
        encoder, run_of("classification"), file, "--columns", "text=review", "--batch_size", "2"
    )
    assert [row["nr"] for row in rows] == [str(place) for place in range(99)]
    assert [row["predicted_label"] for row in rows] == [
        "loud" if place % 2 else "quiet" for place in range(99)
    ]
    assert encoder.chunks == [32, 32, 32, 3]  # a part of the file at a time


def test_the_terminal_gets_rows_and_nothing_else(tmp_path, run_of, monkeypatch, capsys):
    monkeypatch.setattr(predict, "open_encoder", lambda *given: Loud())
    file = write(tmp_path / "a.jsonl", {"text": "Hey!", "label": "loud"})
    main(arguments(run_of("classification"), file, "--output", "-"))
    out, err = capsys.readouterr()
    assert (
        json.loads(out)["predicted_label"] == "loud" and "accuracy" in err and "1 rows -> -" in err
    )


def test_half_a_character_in_another_column_survives(tmp_path, run_of, predicted):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "note": "\\ud83d"}\n')
    assert predicted(Loud(), run_of("classification"), file)[0]["note"] == "\ud83d"


def test_a_model_of_pairs_wants_pairs(tmp_path, run_of, predicted, refused):
    single, pairs = (
        write(tmp_path / "s.jsonl", {"text": "a"}),
        write(tmp_path / "p.jsonl", {"text": "a", "text_pair": "b"}),
    )
    run = run_of("classification", trained_pairs=True)
    assert "recognised as text rows; this recipe takes pair" in refused(
        main, arguments(run, single)
    )
    assert predicted(Loud(), run, pairs)[0]["predicted_label"] == "quiet"
    asked = []

    class Asked(Loud):
        def predict(self, rows, batch_size):
            asked.extend(rows)
            return super().predict(rows, batch_size)

    predicted(Asked(), run_of("classification", trained_pairs=False), pairs, "--force")
    assert asked == [
        {"text": "a"}
    ]  # the second text is only an extra column for a model of single texts


def test_official_answers(tmp_path, run_of, predicted):
    rows = [
        {"id": "x", "question": "Who?", "context": "Ada."},
        {"id": "y", "question": "Why?", "context": "Ada."},
    ]
    encoder = Fixed(
        {"answer": "Ada", "start": 0, "end": 3}, {"answer": "", "start": None, "end": None}
    )
    squad = tmp_path / "squad.json"
    found = predicted(
        encoder, run_of("question_answering"), write(tmp_path / "q.jsonl", *rows), "--squad", squad
    )
    assert [(row["id"], row["predicted_answer"], row["predicted_start"]) for row in found] == [
        ("x", "Ada", 0),
        ("y", "", None),
    ]
    assert json.loads(squad.read_text()) == {"x": "Ada", "y": ""}


def test_official_answers_of_questions_without_ids(tmp_path, run_of, predicted, refused):
    rows = [
        {"question": "Who?", "context": "Ada."},
        {"id": None, "question": "Why?", "context": "Ada."},
    ]
    encoder = Fixed(
        {"answer": "Ada", "start": 0, "end": 3}, {"answer": "", "start": None, "end": None}
    )
    squad = tmp_path / "squad.json"
    predicted(
        encoder, run_of("question_answering"), write(tmp_path / "q.jsonl", *rows), "--squad", squad
    )
    assert json.loads(squad.read_text()) == {"q0": "Ada", "q1": ""}
    twice = write(tmp_path / "t.jsonl", *({**row, "id": 7} for row in rows))
    said = refused(
        main,
        arguments(run_of("question_answering"), twice, "--force", "--squad", tmp_path / "s.json"),
    )
    assert "1 ids are in more than one row, the first: 7;" in said


# ---- metrics -----------------------------------------------------------------------------------------------------


def test_accuracy_where_there_are_labels(tmp_path, run_of, predicted, capsys):
    rows = [
        ("a!", "loud"),
        ("b!", "quiet"),
        ("c", "quiet"),
        ("d", "quiet"),
        ("e", None),
        ("f", "odd"),
    ]
    file = write(tmp_path / "a.jsonl", *({"text": text, "label": label} for text, label in rows))
    predicted(Loud(), run_of("classification"), file)
    # right: a, c, d of 4. F1 of loud: precision 1/2, recall 1: 2/3; of quiet: precision 1, recall 2/3: 4/5.
    assert capsys.readouterr().out.splitlines()[1:] == [
        "rows  accuracy  f1",
        "4     0.750     0.733",
        "",
        "label  rows  precision  recall  f1",
        "loud   1     0.500      1.000   0.667",
        "quiet  3     1.000      0.667   0.800",
        "1 rows have a label that the model does not know, as 'odd' (1): not scored",
        "1 rows without label are not scored",
    ]


def test_labels_that_are_all_unknown_are_said(tmp_path, run_of, predicted, capsys):
    predicted(
        Loud(), run_of("classification"), write(tmp_path / "a.jsonl", {"text": "a", "label": 1})
    )
    assert (
        "1 rows have a label that the model does not know, as '1' (1): not scored; its labels are quiet, loud"
        in (capsys.readouterr().out)
    )


def test_several_labels(tmp_path, run_of, predicted, capsys):
    said = [{"label": ["a", "b"], "probabilities": {}}, {"label": [], "probabilities": {}}]
    encoder = Fixed(*said, labels=["a", "b"], problem="multi_label_classification")
    predicted(
        encoder,
        run_of("classification"),
        write(tmp_path / "a.jsonl", {"text": "x", "label": ["a"]}, {"text": "y", "label": []}),
    )
    # one right decision (a), one invented (b), none missed: micro F1 = 2 / (2 + 1); macro: (1 + 0) / 2
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "rows  accuracy  f1_micro  f1",
        "2     0.500     0.667     0.500",
    ]


def test_numbers(tmp_path, run_of, predicted, capsys):
    said = [{"label": value, "probabilities": {}} for value in (1.0, 2.0, 6.0)]
    encoder = Fixed(*said, labels=["LABEL_0"], problem="regression")
    rows = [{"text": "x", "label": value} for value in (1.0, 2.0, 3.0)]
    predicted(encoder, run_of("classification"), write(tmp_path / "a.jsonl", *rows))
    header, values = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    # errors 0, 0, 3: mae 1, mse 3, variance 2/3: r2 = 1 - 9/2
    assert dict(zip(header, values)) | {"pearson": ""} == {
        "rows": "3", "mae": "1.000", "r2": "-3.500", "spearman": "1.000", "pearson": "",
    }  # fmt: skip


def test_entities_in_any_scheme(tmp_path, run_of, predicted, capsys):
    rows = [
        {"tokens": ["Ada", "Byron", "left"], "tags": ["B-per", "E-per", "O"]},  # BIOES
        {"tokens": ["Paris"], "tags": ["S-loc"]},
    ]
    said = [
        {"tokens": rows[0]["tokens"], "tags": ["B-per", "I-per", "O"], "entities": []},
        {"tokens": rows[1]["tokens"], "tags": ["B-per"], "entities": []},
    ]
    found = predicted(Fixed(*said), run_of("ner"), write(tmp_path / "a.jsonl", *rows))
    assert (
        found[0]["predicted_tags"] == ["B-per", "I-per", "O"] and "predicted_tokens" not in found[0]
    )
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[1:3]] == [
        ["sentences", "entities", "precision", "recall", "f1"], ["2", "2", "0.500", "0.500", "0.500"],
    ]  # fmt: skip
    assert [line.split()[0] for line in out[5:]] == ["loc", "per"]


def test_rows_without_answers_among_others_are_predicted_and_counted(
    tmp_path, run_of, predicted, capsys
):
    rows = [
        {"tokens": ["Paris"], "tags": ["B-loc"]},
        {"tokens": ["Ada"]},
        {"tokens": ["Rome"], "tags": None},
    ]
    said = [{"tokens": row["tokens"], "tags": ["B-loc"], "entities": []} for row in rows]
    found = predicted(Fixed(*said), run_of("ner"), write(tmp_path / "a.jsonl", *rows))
    assert [row["predicted_tags"] for row in found] == [["B-loc"]] * 3
    assert "2 rows without tags are not scored" in capsys.readouterr().out


def test_a_squad_file_without_answers_and_a_conll_file_without_tags(
    tmp_path, run_of, predicted, capsys
):
    questions = [{"id": "x", "question": "Who?"}, {"id": "y", "question": "Why?"}]
    (file := tmp_path / "q.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": "Ada.", "qas": questions}]}]})
    )
    encoder = Fixed(
        {"answer": "Ada", "start": 0, "end": 3}, {"answer": "", "start": None, "end": None}
    )
    assert [
        row["predicted_answer"] for row in predicted(encoder, run_of("question_answering"), file)
    ] == [
        "Ada",
        "",
    ]
    (file := tmp_path / "a.conll").write_text("Ada\nleft\n")
    encoder = Fixed({"tokens": ["Ada", "left"], "tags": ["B-per", "O"], "entities": []})
    assert predicted(encoder, run_of("ner"), file, "--force")[0]["predicted_tags"] == [
        "B-per",
        "O",
    ]
    assert "not scored" not in capsys.readouterr().out


def test_exact_match_and_f1_by_kind_of_question(tmp_path, run_of, predicted, capsys):
    gold = {"text": ["Ada Byron"], "answer_start": [0]}
    rows = [
        {"question": "Who?", "context": "Ada Byron.", "answers": gold},
        {"question": "Who?", "context": "Ada Byron.", "answers": {"text": [], "answer_start": []}},
    ]
    encoder = Fixed({"answer": "the Ada"}, {"answer": ""})
    predicted(encoder, run_of("question_answering"), write(tmp_path / "a.jsonl", *rows))
    # one of two words: precision 1 (the article does not count), recall 1/2: F1 2/3
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["questions", "rows", "exact", "f1"],
        ["all", "2", "0.500", "0.833"],
        ["answerable", "1", "0.000", "0.667"],
        ["unanswerable", "1", "1.000", "1.000"],
    ]


def test_accuracy_of_choices(tmp_path, run_of, predicted, capsys):
    rows = [
        {"text": "a", "choices": ["b", "c"], "label": 1},
        {"text": "a", "choices": ["b", "c"], "label": 0},
        {"text": "a", "choices": ["b", "c"]},
    ]
    said = [{"label": 1, "choice": "c", "probabilities": [0.25, 0.75]}] * 3
    file = write(tmp_path / "a.jsonl", *rows)
    found = predicted(Fixed(*said), run_of("multiple_choice"), file)
    assert found[0]["predicted_label"] == 1 and found[0]["predicted_choice"] == "c"
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines[0][:2] == ["rows", "accuracy"] and lines[1][:2] == ["2", "0.500"]
    assert " ".join(lines[2]) == "1 rows without label are not scored"


def test_the_unit_of_an_answer_is_that_of_the_run(tmp_path, run_of, predicted, capsys):
    rows = [
        {
            "question": "누구?",
            "context": "에이다가 썼다.",
            "answers": {"text": ["에이다"], "answer_start": [0]},
        }
    ]
    run = run_of("question_answering", config={"answer_unit": "character"})
    predicted(Fixed({"answer": "에이다가"}), run, write(tmp_path / "a.jsonl", *rows))
    assert "all        1     0.000  0.857" in capsys.readouterr().out  # 3 of 4 characters: 6 / 7


def test_long_tables_are_cut():
    rows = [{"n": place} for place in range(5)]
    assert table(["n"], rows, limit=2) == "n\n0\n1\n... and 3 more"


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("causal", "holds a language model: talk to it with `python app.py"),
        (
            "masked",
            "holds a pretrained encoder: fine-tune it first, with one of recipes/classification.py",
        ),
        ("reward", "holds a reward model, which scores answers: give it to recipes/ppo.py"),
        ("", "holds no finished model: its config.json names none"),
    ],
)
def test_other_models_are_named_with_what_they_are_for(run_of, tmp_path, refused, kind, message):
    assert message in refused(main, arguments(run_of(kind), tmp_path / "a.txt"))


def test_bad_input_is_met_before_any_work(run_of, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the folder `runs` of a user is not
    monkeypatch.setattr(predict, "open_encoder", lambda *given: pytest.fail("a model was loaded"))
    run = run_of("classification")
    good = write(tmp_path / "good.jsonl", {"text": "a"})
    bad = write(tmp_path / "bad.jsonl", {"text": "a"}, {"text": " "})
    output = tmp_path / "out.jsonl"

    def error(*words):
        message = refused(
            main, arguments(*words, *(() if "--output" in words else ("--output", output)))
        )
        assert not output.exists()
        return message

    assert "runs/none: neither a local folder" in error("runs/none", good)
    assert (
        f"{bad}:2: text: empty" in (message := error(run, bad))
        and "drop them with --skip_bad" in message
    )
    assert "no such file" in error(run, tmp_path / "none.txt")
    assert "recognised as tokens rows" in error(run, write(tmp_path / "t.jsonl", {"tokens": ["a"]}))
    assert "without predicted_* columns" in error(
        run, write(tmp_path / "p.jsonl", {"text": "a", "predicted_label": 1})
    )
    assert "good.jsonl exists: give another --output, or --force" in error(
        run, good, "--output", good
    )
    assert "a file in a folder that exists" in error(
        run, good, "--output", tmp_path / "none" / "out.jsonl"
    )
    assert "--batch_size 0" in error(run, good, "--batch_size", 0)
    assert "--squad is for question answering" in error(run, good, "--squad", tmp_path / "s.json")
    assert good.read_text() == '{"text": "a"}\n'


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path, run_of, predicted, capsys):
    file = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": ""}, {"text": "b!"})
    assert [
        row["text"] for row in predicted(Loud(), run_of("classification"), file, "--skip_bad")
    ] == [
        "a",
        "b!",
    ]
    assert (
        f"1 of 3 rows are bad and dropped; first: {file}:2: text: empty" in capsys.readouterr().out
    )


def test_a_failure_leaves_no_output_under_its_name(tmp_path, run_of, monkeypatch):
    class Fails(Loud):
        def predict(self, rows, batch_size):
            raise RuntimeError("out of memory")

    monkeypatch.setattr(predict, "open_encoder", lambda *given: Fails())
    old = write(tmp_path / "out.jsonl", {"text": "old"})
    with pytest.raises(RuntimeError):
        main(
            arguments(
                run_of("classification"),
                write(tmp_path / "a.jsonl", {"text": "a"}),
                "--output",
                old,
                "--force",
            )
        )
    assert json.loads(old.read_text()) == {"text": "old"}


def test_the_command_ends_with_2_and_one_line(run_of, tmp_path, capsys):
    assert command(["predict", run_of("causal"), str(tmp_path / "a.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- real models -------------------------------------------------------------------------------------------------


def tiny(cls, tokenizer, **config):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return cls(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=48, **sizes, **config))


@pytest.mark.parametrize(
    ("kind", "cls", "config", "rows"),
    [
        (
            "classification",
            BertForSequenceClassification,
            {"num_labels": 3},
            [{"text": "a b"}, {"text": "c"}],
        ),
        (
            "ner",
            BertForTokenClassification,
            {"id2label": {0: "O", 1: "B-x", 2: "I-x"}},
            [{"tokens": ["a", "b"]}, {"tokens": ["c"]}],
        ),
        (
            "question_answering",
            BertForQuestionAnswering,
            {"reader_windows": {"max_length": 24, "stride": 4, "max_answer_length": 4}},
            [{"question": "a", "context": "b c d"}, {"question": "c", "context": "a"}],
        ),
        (
            "multiple_choice",
            BertForMultipleChoice,
            {},
            [{"text": "a", "choices": ["b", "c d"]}, {"text": "c", "choices": ["a", "b", "d"]}],
        ),
    ],
)
def test_what_is_written_is_what_the_model_says(tmp_path, bert_tokenizer, kind, cls, config, rows):
    folder = tmp_path / "run"
    save(tiny(cls, bert_tokenizer, **config), bert_tokenizer, folder)
    output = tmp_path / "out.jsonl"
    main(
        arguments(folder, write(tmp_path / "a.jsonl", *rows), "--output", output, "--device", "cpu")
    )
    found = [json.loads(line) for line in output.read_text().splitlines()]
    for row, expected, written in zip(
        rows, open_encoder(kind, str(folder)).predict(rows), found, strict=True
    ):
        expected = json.loads(json.dumps(expected))
        expected.pop("tokens") if "tokens" in row else None
        assert written == row | {f"predicted_{name}": value for name, value in expected.items()}


def test_an_unusable_device_is_an_error(tmp_path, bert_tokenizer):
    folder = tmp_path / "run"
    save(tiny(BertForSequenceClassification, bert_tokenizer), bert_tokenizer, folder)
    with pytest.raises(UserError, match="device 'nonsense'"):
        main(
            arguments(
                folder,
                write(tmp_path / "a.jsonl", {"text": "a"}),
                "--output",
                "-",
                "--device",
                "nonsense",
            )
        )
