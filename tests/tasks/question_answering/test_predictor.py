import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf.models.load import save
from rlhf.models.scratch import new_encoder
from rlhf.tasks.question_answering.predictor import QuestionAnsweringPredictor

WORDS = "who a b c d e f g h".split()
CONTEXT = "a b c d e f g h a b"


@pytest.fixture(scope="module")
def bert():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{f"{name[1:-1].lower()}_token": name for name in special}
    )


@pytest.fixture
def folder(bert, tmp_path):
    """A reader with random weights and the settings of its training in its config."""

    def folder(name="run", **config):
        torch.manual_seed(3)
        sizes = dict(model_type="bert", hidden_size=16, layers=1, heads=2, context=24)
        model = new_encoder(bert, "AutoModelForQuestionAnswering", **sizes)
        with torch.no_grad():
            model.qa_outputs.weight.mul_(30)
        for key, value in config.items():
            setattr(model.config, key, value)
        save(model, bert, tmp_path / name)
        return tmp_path / name

    return folder


NARROW = {"max_length": 12, "stride": 2, "max_answer_length": 2}
ROWS = [{"question": "who", "context": CONTEXT[: 5 + 4 * n % 17]} for n in range(7)]


def test_answers_are_parts_of_the_context_in_order_whatever_the_batch(folder):
    reader = QuestionAnsweringPredictor(folder(reader_windows=NARROW))
    answers = reader.predict(ROWS, batch_size=3)
    assert len(answers) == len(ROWS)
    for row, answer, alone in zip(ROWS, answers, [reader.predict([row])[0] for row in ROWS]):
        assert (
            answer["answer"]
            == row["context"][answer["start"] : answer["end"]]
            == alone["answer"]
            != ""
        )
        assert (
            0 < answer["score"] <= 1 and answer["no_answer"] is None and len(answer["answer"]) <= 3
        )
        assert answer["score"] == pytest.approx(alone["score"], abs=1e-4)
        best = answer["n_best"]
        assert {k: answer[k] for k in ("answer", "start", "end", "score")} == best[0] and len(
            best
        ) <= 5
        assert [n["score"] for n in best] == sorted((n["score"] for n in best), reverse=True)


def test_the_answer_is_the_best_pair_of_logits(folder):
    reader = QuestionAnsweringPredictor(
        folder(reader_windows={"max_length": 24, "stride": 2, "max_answer_length": 3})
    )
    (answer,) = reader.predict([{"question": "who", "context": CONTEXT}])
    with torch.no_grad():
        output = reader.model(**reader.tokenizer("who", CONTEXT, return_tensors="pt"))
    start, end = output.start_logits[0, 3:-1], output.end_logits[0, 3:-1]
    pairs = {(i, j): float(start[i] + end[j]) for i in range(10) for j in range(i, min(10, i + 3))}
    i, j = max(pairs, key=pairs.get)
    assert (answer["start"], answer["end"]) == (2 * i, 2 * j + 1)


def test_no_answer_is_said_above_the_threshold_of_the_training(folder):
    rows = ROWS[:1]
    (plain,) = QuestionAnsweringPredictor(
        folder("a", reader_windows=NARROW, no_answer_threshold=1.0)
    ).predict(rows)
    (never,) = QuestionAnsweringPredictor(
        folder("b", reader_windows=NARROW, no_answer_threshold=0.0)
    ).predict(rows)
    assert plain["answer"] and 0 < plain["no_answer"] < 1
    assert (never["answer"], never["start"], never["end"]) == ("", None, None)
    assert never["score"] == never["no_answer"] == pytest.approx(plain["no_answer"])
    assert never["n_best"] == plain["n_best"]


def test_a_model_trained_elsewhere_is_read_with_the_usual_windows(folder):
    reader = QuestionAnsweringPredictor(folder())
    assert reader.windows == {"max_length": 24, "stride": 8, "max_answer_length": 30}
    assert reader.predict([{"question": "who", "context": CONTEXT * 4}])[0]["answer"]
    assert reader.predict([]) == []


def test_rows_that_cannot_be_answered_are_named(folder, refused):
    reader = QuestionAnsweringPredictor(folder(reader_windows=NARROW))
    good = {"question": "who", "context": "a"}
    assert refused(reader.predict, [good, {"question": "who"}]) == "row 1: context: missing"
    assert refused(reader.predict, [{"question": " ", "context": "a"}]) == "row 0: question: empty"
