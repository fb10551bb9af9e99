"""The model card: its front matter, its tables, and snippets that run as they stand."""

import json
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.data.chat import add_chat_template
from rlhf.digests import file_sha256
from rlhf.errors import UserError
from rlhf.markdown import markdown_cell
from rlhf.models.load import save
from rlhf.models.scratch import new_policy
from rlhf.runs.ancestry import base_model, lineage, lines
from rlhf.runs.card import card_text, write_card
from rlhf.runs.parents import parent_entry
from rlhf.runs.public_names import public_record
from rlhf.runs.record import RunRecord
from rlhf.tasks.classification.predictor import ClassificationPredictor
from rlhf.tasks.multiple_choice.predictor import MultipleChoicePredictor
from rlhf.tasks.ner.predictor import NerPredictor
from rlhf.tasks.question_answering.predictor import QuestionAnsweringPredictor

TEXT = ["Hello, how are you?", "The letter was written by Ada.", "A fine day."] * 4


@pytest.fixture(scope="module")
def plain_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, **options))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[0],
        pad_token=special[0],
        mask_token=special[1],
    )


@pytest.fixture(scope="module")
def chat_tokenizer(plain_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    plain_tokenizer.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    add_chat_template(tokenizer)
    return tokenizer


def tiny(tokenizer):
    torch.manual_seed(0)
    return new_policy(tokenizer, model_type="gpt2", hidden_size=32, layers=2, heads=2, context=64)


def bert(cls, tokenizer, **options):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return cls(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **options)
    )


def reward_model(tokenizer):
    torch.manual_seed(1)
    model = tiny(tokenizer)
    config = model.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    return GPT2ForSequenceClassification(config)


def record(recipe: str, **fields) -> RunRecord:
    return RunRecord(
        recipe=recipe, command=f"accelerate launch recipes/{recipe}.py", status="done", **fields
    )


def front_and_body(card: str) -> tuple[dict, str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def run_snippet(folder) -> dict:
    """Executes the card's Python block with the path replaced, and returns its variables."""
    card = write_card(folder).read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.M | re.S)
    code, replaced = re.subn(
        r'(path = |from_pretrained\()"[^"]*"',
        lambda m: m[1] + json.dumps(str(folder)),
        code,
        count=1,
    )
    assert replaced == 1
    variables = {}
    exec(code, variables)
    return variables


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", card, flags=re.M | re.S)[1]


def test_full_card(tmp_path, chat_tokenizer, capsys):
    base, sft, ppo = (tmp_path / name for name in ("base", "sft", "ppo"))
    for folder in (base, sft, ppo):
        save(tiny(chat_tokenizer), chat_tokenizer, folder)
    record("pretrain", parents={"model": {"name": "openai-community/gpt2"}}).save(base)
    record("sft", parents={"model": parent_entry(str(base))}).save(sft)
    record(
        "ppo",
        config={
            "algorithm": "ppo",
            "kl_coef": 0.05,
            "hub_token": "hf_" + "a" * 30,
            "max_completion_length": 16,
        },
        data=[
            {
                "name": "someone/prompts",
                "rows": 20,
                "sha256": "ab" * 32,
                "revision": "7" * 40,
                "license": "mit",
            },
            {"name": "recipes/a.jsonl", "rows": 3},
        ],
        parents={
            "policy": parent_entry(str(sft)),
            "reward_model": {"name": "runs/gone", "sha256": "cd" * 32},
        },
        metrics={"eval_score": 1.23456, "n": 20, "by": {"gap": 0.5}, "margins": [1.0, 2.0]},
        versions={"torch": "2.9", "code": "abc"},
        seconds=12.0,
    ).save(ppo)
    (ppo / "plots").mkdir()
    (ppo / "plots" / "curves.png").write_bytes(b"")
    samples = [
        {"step": step, "prompt": "Hi | <b>", "completion": f"no {step}", "score": 0.5}
        for step in (1, 2)
    ]
    (ppo / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))

    card = write_card(ppo).read_text(encoding="utf-8")
    front, body = front_and_body(card)
    assert front == {
        "library_name": "transformers",
        "license": "mit",
        "base_model": "openai-community/gpt2",
        "base_model_relation": "finetune",
        "datasets": ["someone/prompts"],
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "ppo"],
    }
    assert "# ppo\n" in body and "trained by PPO" in body
    assert (
        "| eval\\_score | 1.235 |" in card and "| by.gap | 0.5 |" in card and "margins" not in card
    )
    assert "![curves](plots/curves.png)" in card
    assert "| prompt | step 1 | step 2 | score |" in section(card, "Samples")
    assert "| Hi \\| &lt;b&gt; | no 1 | no 2 | 0.5 |" in section(card, "Samples")
    rows = [row for row in section(card, "Lineage").splitlines() if row.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| this run",
        "| ↳ data",
        "| ↳ data",
        "| ↳ policy",
        "| ↳ ↳ model",
        "| ↳ ↳ ↳ model",
        "| ↳ reward\\_model",
    ]
    assert file_sha256(base / "model.safetensors") in rows[4] and "cd" * 32 in rows[6]
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, flags=re.S)[1]) == {
        "algorithm": "ppo",
        "kl_coef": 0.05,
        "max_completion_length": 16,
    }
    assert "hf_a" not in card
    assert (
        f"| someone/prompts | 20 | {'7' * 40} | mit | {'ab' * 32} |" in card
        and "| torch | 2.9 |" in card
    )
    assert "accelerate launch recipes/ppo.py" in card
    assert card == card_text(ppo)  # the same folder, the same card
    run_snippet(ppo)
    assert capsys.readouterr().out


def test_bare_records(tmp_path):
    """Only run.json, of every recipe, and of one nobody knows."""
    for recipe in (
        "tokenizer",
        "pretrain",
        "classification",
        "ner",
        "question_answering",
        "sft",
        "reward",
        "ppo",
        "x",
    ):
        RunRecord(recipe=recipe).save(tmp_path / recipe)
        front, body = front_and_body(write_card(tmp_path / recipe).read_text(encoding="utf-8"))
        assert front["license"] == "other" and "base_model" not in front
        assert ("pipeline_tag" in front) == (recipe != "tokenizer")
        assert "status is `running`" in body


def test_no_record(tmp_path):
    with pytest.raises(UserError, match="run.json"):
        write_card(tmp_path)


def test_torn_files_are_left_out(tmp_path):
    record("sft", data=[{}], parents={"model": {}}).save(tmp_path)
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"step": 1, ')
    assert "## Use" in card_text(tmp_path)


def test_last_log_stands_in_for_missing_metrics(tmp_path):
    record("sft").save(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n')
    assert "| loss | 2.5 |" in card_text(tmp_path)


def test_local_parent_is_no_hub_id(tmp_path):
    """A folder that is gone has the shape of a Hub id; its sha256 says that it was local."""
    run = record("sft", parents={"model": {"name": "runs/gone", "sha256": "ab"}})
    assert base_model(tmp_path, run) is None
    run.parents["model"] = {"name": "someone/model"}
    assert base_model(tmp_path, run) == "someone/model"


def test_lineage_in_a_circle_ends(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    record("sft", parents={"model": {"name": str(second)}}).save(first)
    record("sft", parents={"model": {"name": str(first)}}).save(second)
    assert [line.depth for line in lines(lineage(first))] == [0, 1, 2]
    assert base_model(first, RunRecord.load(first)) is None


def test_moved_folders_keep_their_lineage(tmp_path):
    record("pretrain", parents={"model": {"name": "gpt2"}}).save(tmp_path / "base")
    record("sft", parents={"model": {"name": "elsewhere/base"}}).save(tmp_path / "sft")
    assert base_model(tmp_path / "sft", RunRecord.load(tmp_path / "sft")) == "gpt2"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b\nc", "a\\|b<br>c"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("[x](y) `z` *w*", "\\[x\\](y) \\`z\\` \\*w\\*"),
        ("\x1b[31m", "\ufffd\\[31m"),
        ("x" * 301, "x" * 299 + "…"),
    ],
)
def test_cells_show_text_as_it_is(text, cell):
    assert markdown_cell(text) == cell


def test_a_fence_in_a_setting_does_not_end_the_block(tmp_path):
    record("sft", config={"system": "```\n# not a title\n```"}).save(tmp_path)
    assert "\n````yaml\n" in card_text(tmp_path)


def test_snippet_of_a_shared_model_names_it(tmp_path):
    record("sft").save(tmp_path)
    assert 'path = "someone/model"' in card_text(tmp_path, model_id="someone/model")


def test_tokenizer_snippet(tmp_path, plain_tokenizer):
    plain_tokenizer.save_pretrained(tmp_path)
    record("tokenizer").save(tmp_path)
    assert run_snippet(tmp_path)["ids"] == plain_tokenizer("Hello, how are you?")["input_ids"]


def test_reward_snippet_gives_the_score_that_training_saw(tmp_path, chat_tokenizer):
    save(reward_model(chat_tokenizer), chat_tokenizer, tmp_path)
    record("reward").save(tmp_path)
    scorer = RewardModelScorer.load(str(tmp_path))
    expected = scorer(ScoringBatch(prompts=["Hello, how are you?"], completions=["Hello!"]))
    assert run_snippet(tmp_path)["score"] == pytest.approx(float(expected), abs=1e-6)


def test_snippet_of_a_model_without_chat_template(tmp_path, plain_tokenizer):
    save(tiny(plain_tokenizer), plain_tokenizer, tmp_path)
    record("pretrain").save(tmp_path)
    assert "messages" not in run_snippet(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "cls", "tag"),
    [
        ("pretrain", BertForMaskedLM, "fill-mask"),
        ("pretrain", BertForPreTraining, "fill-mask"),
        ("classification", BertForSequenceClassification, "text-classification"),
        ("ner", BertForTokenClassification, "token-classification"),
        ("question_answering", BertForQuestionAnswering, "question-answering"),
        ("multiple_choice", BertForMultipleChoice, "multiple-choice"),
    ],
)
def test_bert_snippets(tmp_path, bert_tokenizer, recipe, cls, tag):
    save(bert(cls, bert_tokenizer), bert_tokenizer, tmp_path)
    record(recipe).save(tmp_path)
    run_snippet(tmp_path)
    card = card_text(tmp_path)
    assert front_and_body(card)[0]["pipeline_tag"] == tag
    assert (f"python -m rlhf predict {tmp_path.name} FILE" in card) == (recipe != "pretrain")


def samples(folder, *rows):
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "problem", ["single_label_classification", "multi_label_classification", "regression"]
)
@pytest.mark.parametrize("pairs", [False, True])
def test_the_classification_snippet_gives_what_our_predictor_gives(
    tmp_path, bert_tokenizer, problem, pairs, capsys
):
    labels = 1 if problem == "regression" else 3
    model = bert(
        BertForSequenceClassification, bert_tokenizer, num_labels=labels, problem_type=problem
    )
    model.config.trained_pairs = pairs
    save(model, bert_tokenizer, tmp_path)
    record("classification").save(tmp_path)
    row = {"text": "a b", "text_pair": "c d"}
    samples(tmp_path, row)
    variables = run_snippet(tmp_path)
    said = variables["classify"](row if pairs else "a b", truncation=True)
    said = said[0] if isinstance(said[0], list) else said
    ours = ClassificationPredictor(tmp_path).predict([row])[0]
    if problem == "regression":
        assert said[0]["score"] == pytest.approx(ours["label"], abs=1e-5)
    else:
        assert {entry["label"]: entry["score"] for entry in said} == pytest.approx(
            ours["probabilities"], abs=1e-5
        )
    assert ("'text_pair': 'c d'" in card_text(tmp_path)) == pairs
    what = {"multi_label_classification": "any number of labels", "regression": "a number"}.get(
        problem, "one label"
    )
    assert f"gives a {'pair of texts' if pairs else 'text'} {what}." in card_text(tmp_path)


def test_the_ner_snippet_marks_what_our_predictor_marks(tmp_path, bert_tokenizer, capsys):
    labels = {0: "O", 1: "B-x", 2: "I-x", 3: "B-y", 4: "I-y"}
    torch.manual_seed(5)
    model = bert(
        BertForTokenClassification,
        bert_tokenizer,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    save(model, bert_tokenizer, tmp_path)
    record("ner").save(tmp_path)
    text = "a b c d e f g h b d f"
    samples(tmp_path, {"text": text})
    entities = run_snippet(tmp_path)["tag"](text)
    ours = NerPredictor(tmp_path).predict([{"text": text}])[0]["entities"]
    assert len(ours) > 1
    assert [(e["entity_group"], e["start"], e["end"]) for e in entities] == [
        (e["type"], e["start"], e["end"]) for e in ours
    ]


def test_the_question_answering_snippet_answers_what_our_predictor_answers(
    tmp_path, bert_tokenizer
):
    torch.manual_seed(3)
    model = bert(BertForQuestionAnswering, bert_tokenizer)
    with torch.no_grad():
        model.qa_outputs.weight.mul_(50)
    model.config.reader_windows = {"max_length": 40, "stride": 4, "max_answer_length": 2}
    save(model, bert_tokenizer, tmp_path)
    record("question_answering").save(tmp_path)
    row = {"question": "a b", "context": "c d e f g h a b c e g"}
    samples(tmp_path, row)
    answer = run_snippet(tmp_path)["answer"]
    assert (
        answer == QuestionAnsweringPredictor(tmp_path).predict([row])[0]["answer"]
        and 0 < len(answer.split()) <= 2
    )


def test_the_multiple_choice_snippet_picks_what_our_predictor_picks(tmp_path, bert_tokenizer):
    torch.manual_seed(3)
    model = bert(BertForMultipleChoice, bert_tokenizer)
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    save(model, bert_tokenizer, tmp_path)
    record("multiple_choice").save(tmp_path)
    row = {"text": "a b", "choices": ["c d", "e f g", "h"]}
    samples(tmp_path, row)
    answer = run_snippet(tmp_path)["answer"]
    assert answer == MultipleChoicePredictor(tmp_path).predict([row])[0]["choice"]


def test_card_of_an_encoder_has_its_tables_and_its_errors(tmp_path, bert_tokenizer):
    save(bert(BertForSequenceClassification, bert_tokenizer), bert_tokenizer, tmp_path)
    metrics = {"accuracy": 0.75, "f1": 0.5, "eval_loss": 1.0}
    record(
        "classification", metrics=metrics, data=[{"name": "a.csv"}, {"name": "/home/me/b.csv"}]
    ).save(tmp_path)
    classes = [
        {"label": f"l{n}", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "rows": n}
        for n in range(32)
    ]
    (tmp_path / "classification.json").write_text(json.dumps({"classes": classes}))
    errors = [
        {"text": f"wrong {n}", "label": ["a", "b"], "predicted": "c", "probability": 0.98765}
        for n in range(7)
    ]
    (tmp_path / "errors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in errors))
    card = card_text(tmp_path)
    results = section(card, "Results")
    assert (
        "| label | rows | precision | recall | f1 |" in results
        and "| l31 | 31 | 0.5 | 1 | 0.6667 |" in results
    )
    assert (
        "| l1 |" not in results
        and "The 30 most frequent of 32 labels; `classification.json` has all." in results
    )
    wrong = section(card, "Errors")
    assert "| wrong 0 | a; b | c | 0.9877 |" in wrong and "wrong 5" not in wrong
    index = front_and_body(card)[0]["model-index"]
    [result] = model_index_to_eval_results(index)[1][1:]
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("f1", 0.5, "b.csv")
    assert "/home/me" not in yaml.safe_dump(index)


def test_cards_of_ner_and_question_answering_have_their_tables(tmp_path):
    ner, answers = tmp_path / "t", tmp_path / "r"
    record("ner").save(ner)
    types = [
        {"type": "per", "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "entities": 4, "marked": 2}
    ]
    (ner / "ner.json").write_text(json.dumps({"types": types}))
    (ner / "errors.jsonl").write_text(
        json.dumps({"tokens": ["Ada", "left"], "errors": ["missed: Ada (per)"]}) + "\n"
    )
    card = card_text(ner)
    assert "| per | 4 | 1 | 0.5 | 0.6667 |" in section(card, "Results")
    assert "| Ada left | missed: Ada (per) |" in section(card, "Errors")
    record(
        "question_answering",
        metrics={"exact": 0.5},
        data=[{"name": "someone/squad", "revision": "1" * 40}],
    ).save(answers)
    kinds = [{"question": "who is", "exact": 0.5, "f1": 0.75, "rows": 4}]
    mistakes = [
        {"id": "q1", "question": "Who?", "gold": "Ada", "exact": 0.0, "f1": 0.0, "predicted": ""}
    ]
    (answers / "question_answering.json").write_text(
        json.dumps({"kinds": kinds, "mistakes": mistakes})
    )
    card = card_text(answers)
    assert "| who is | 4 | 0.5 | 0.75 |" in section(
        card, "Results"
    ) and "| Who? | Ada |  | 0 |" in section(card, "Errors")
    [result] = model_index_to_eval_results(front_and_body(card)[0]["model-index"])[1]
    assert (result.dataset_type, result.metric_type) == ("someone/squad", "exact_match")


def test_a_reward_model_without_chat_template_gets_a_snippet_that_scores(tmp_path, plain_tokenizer):
    save(reward_model(plain_tokenizer), plain_tokenizer, tmp_path)
    record("reward").save(tmp_path)
    run_snippet(tmp_path)


EVIL = "`<img src=x onerror=alert(1)>` [a](javascript:b) ![c](http://d/e.png)\n---\n</b>"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": EVIL},
        {"status": EVIL},
        {"machine": {"cpu": EVIL, "cores": 2}, "started": EVIL},
        {"config": {"hub_model_id": EVIL, "algorithm": EVIL, "note": EVIL}},
        {"command": EVIL},
        {"data": [{"name": EVIL, "rows": EVIL, "sha256": EVIL}]},
        {"parents": {EVIL: {"name": EVIL, "recipe": EVIL, "sha256": EVIL}}},
        {"parents": {"model": {"name": "runs/sft", "sha256": "ab", "hub_id": EVIL}}},
        {"parents": {"model": {"name": "runs/sft", "sha256": "ab", "license": EVIL}}},
        {
            "parents": {
                "model": {
                    "name": "a/b",
                    "license": "other",
                    "license_name": EVIL,
                    "license_link": EVIL,
                }
            }
        },
        {"parents": {"feedback": {"name": EVIL, "events": 2, "kinds": {}, "models": {EVIL: ""}}}},
        {"metrics": {EVIL: EVIL}, "versions": {EVIL: EVIL}},
    ],
)
def test_names_from_anywhere_are_shown_and_do_nothing(tmp_path, change):
    """The record and the card of a model of the Hub are somebody else's, and so is the label of a model in the feedback."""
    RunRecord(**({"recipe": "ppo"} | change)).save(tmp_path)
    samples = [{"prompt": EVIL, "completion": EVIL, EVIL: 1}]
    (tmp_path / "samples.jsonl").write_text(json.dumps(samples[0]) + "\n")
    card = ModelCard(card_text(tmp_path))
    # As a page that lets HTML through.
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    inner = [child for token in tokens for child in token.children or []]
    kinds = {token.type for token in [*tokens, *inner]}
    assert not kinds & {"html_block", "image"}
    assert {token.content for token in inner if token.type == "html_inline"} <= {"<br>"}
    links = [str(token.attrGet("href")) for token in inner if token.type == "link_open"]
    assert not [link for link in links if not link.startswith("https://huggingface.co/")]
    assert card.data.to_dict()["tags"][0] == "rlhf"


def test_a_name_that_is_no_text_is_written(tmp_path):
    text = json.dumps({"recipe": "ppo", "data": [{"name": "\udc80.jsonl", "rows": 1}]})
    (tmp_path / "run.json").write_text(text)
    assert "?.jsonl" in write_card(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {"parents": []},
        {"parents": {"model": {"name": 5}}},
        {"data": [5]},
        {"data": [{"name": "a" * 5000}]},
        {"weights": {"files": []}},
        {"ancestors": {"a@b": {"parents": [1]}}},
        {"seconds": "long"},
        {"metrics": [1]},
        {"config": None},
    ],
)
def test_a_record_of_another_form_says_so(tmp_path, change):
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "ppo", "status": "done"} | change))
    with pytest.raises(UserError, match="no readable run.json"):
        card_text(tmp_path)
    with pytest.raises(UserError, match="no readable run.json"):
        public_record(tmp_path)


def test_numbers_that_are_none_are_not_results(tmp_path):
    metrics = {"token_accuracy": float("nan"), "eval_loss": float("inf")}
    record("sft", data=[{"name": "a/b", "rows": 1}], metrics=metrics).save(tmp_path)
    assert "model-index" not in ModelCard(card_text(tmp_path)).data.to_dict()


def test_data_are_of_the_hub_by_the_record_alone(tmp_path, monkeypatch):
    """A folder of the same name may be where the card is written, and may be gone where the run was."""
    there = {"name": "a/b", "rows": 1, "revision": "1" * 40, "license": ""}
    here = {"name": "c/d", "rows": 1, "files": {"rows.jsonl": "ab"}}
    record("sft", data=[there, here]).save(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = card_text(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert card_text(tmp_path) == text
    assert ModelCard(text).data.datasets == ["a/b"]
    assert f"| a/b | 1 | {'1' * 40} | not stated |" in text
