"""An error after the last step costs the evaluation, the plots or the card, never the model."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from rlhf.models.load import save
from rlhf.models.scratch import new_policy
from rlhf.runs.run import start

LETTERS = "a b c d e f g h".split()
STEP = "--use_cpu true --report_to none --max_steps 1 --per_device_train_batch_size 4 --save_strategy no".split()
SIZES = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 32".split()
ENCODER = [*STEP, *SIZES, *"--eval_strategy no --precision fp32 --eval_fraction 0.2".split()]
DECODER = [*STEP, *"--model_name_or_path BASE --precision fp32 --eval_fraction 0.2".split()]
PPO = (
    "--use_cpu true --report_to none --total_episodes 4 --rollout_batch_size 4 --per_device_train_batch_size 4 "
    "--max_completion_length 4 --value_model shared --reward_functions recipes.rewards:slot_coverage "
    "--model_name_or_path BASE --eval_fraction 0.2"
).split()
ANSWER = "--max_completion_length 4 --eval_limit 2".split()  # of the policy, at an evaluation
PAIRS = [f"{first} {second}" for first in LETTERS for second in LETTERS]


@dataclass(frozen=True)
class Case:
    """A recipe on a few rows.

    recipe: its name. flags: of the command line. rows: its data. loader: the Auto class of the saved model.
    """

    recipe: str
    flags: list[str]
    rows: list[dict]
    loader: type


def question(text: str, i: int) -> dict:
    """A question about a context; every third has no answer there."""
    answers = {"text": [text[0]], "answer_start": [0]}
    if i % 3 == 0:
        answers = {"text": [], "answer_start": []}
    return {"id": str(i), "question": "c", "context": text, "answers": answers}


def ranking(text: str) -> dict:
    return {"prompt": text, "completions": ["c c c", "c d c", "d d c"], "ranks": [0, 1, 2]}


CLASSES = [{"text": text, "label": "xy"[i % 2]} for i, text in enumerate(PAIRS)]
NUMBERS = [{"text": text, "label": 2000.5 + i % 5} for i, text in enumerate(PAIRS)]
TAGGED = [{"tokens": text.split(), "tags": ["O", "B-x"]} for text in PAIRS]
QUESTIONS = [question(text, i) for i, text in enumerate(PAIRS)]
CHOICES = [{"text": text, "choices": ["a", "b"], "label": i % 2} for i, text in enumerate(PAIRS)]
TEXTS = [{"text": f"{text} {text} {text} {text}"} for text in PAIRS]
ANSWERS = [{"prompt": text, "completion": text[0]} for text in PAIRS]
RANKINGS = [ranking(text) for text in PAIRS]
THUMBS = [
    {"prompt": text, "completion": text[0], "label": i % 2 == 0} for i, text in enumerate(PAIRS)
]
PROMPTS = [{"prompt": text} for text in PAIRS]
TAGGER, READER = AutoModelForTokenClassification, AutoModelForQuestionAnswering
CLASSIFIER, CAUSAL = AutoModelForSequenceClassification, AutoModelForCausalLM
CASES = {
    "classification": Case("classification", ENCODER, CLASSES, CLASSIFIER),
    "regression": Case("classification", ENCODER, NUMBERS, CLASSIFIER),
    "ner": Case("ner", ENCODER, TAGGED, TAGGER),
    "question_answering": Case(
        "question_answering", [*ENCODER, "--stride", "2"], QUESTIONS, READER
    ),
    "multiple_choice": Case("multiple_choice", ENCODER, CHOICES, AutoModelForMultipleChoice),
    "seq2seq": Case("seq2seq", ENCODER, ANSWERS, AutoModelForSeq2SeqLM),
    "pretrain": Case("pretrain", [*ENCODER, "--block_size", "8"], TEXTS, CAUSAL),
    "sft": Case("sft", DECODER, ANSWERS, CAUSAL),
    "reward": Case("reward", DECODER, RANKINGS, CLASSIFIER),
    "dpo": Case("dpo", [*DECODER, *ANSWER], RANKINGS, CAUSAL),
    "kto": Case("kto", [*DECODER, *ANSWER], THUMBS, CAUSAL),
    "ilql": Case("ilql", [*DECODER, *ANSWER], THUMBS, CAUSAL),
    "ppo": Case("ppo", PPO, PROMPTS, CAUSAL),
}
# What breaks after the training: a name in the recipe's module, or the path of an attribute.
PREDICT, EVALUATE = "transformers.Trainer.predict", "transformers.Trainer.evaluate"
SCORES = "rlhf.reward_model.trainer.RewardTrainer.scores"
PPO_EVALUATE = "rlhf.policy_gradient.trainer.PolicyGradientTrainer.evaluate"
DIRECT_EVALUATE = "rlhf.direct_preference.trainer.DirectTrainer.evaluate"
WRITE, SAMPLES = "rlhf.runs.run.Run.write", "rlhf.runs.run.Run.samples"
RANKING_PLOT = "rlhf.reward_model.report.plot_ranking_report"
CURVES, CARD = "rlhf.runs.run.plot_curves", "rlhf.runs.card.write_card"
STAGES = {
    "classification": [PREDICT, WRITE, SAMPLES, "plot_evaluation", CURVES, CARD],
    "regression": [PREDICT, WRITE, SAMPLES, "plot_evaluation", CURVES, CARD],
    "ner": [PREDICT, WRITE, SAMPLES, "plot_entities", CURVES, CARD],
    "question_answering": [PREDICT, "add_to_config", WRITE, SAMPLES, CURVES, CARD],
    "multiple_choice": [PREDICT, WRITE, SAMPLES, CURVES, CARD],
    "seq2seq": [PREDICT, "corpus_scores", WRITE, "draw", SAMPLES, CURVES, CARD],
    "pretrain": [EVALUATE, CURVES, CARD],
    "sft": [EVALUATE, CURVES, CARD],
    "reward": [SCORES, "shift_scores", WRITE, RANKING_PLOT, CURVES, CARD],
    "dpo": [DIRECT_EVALUATE, WRITE, RANKING_PLOT, CURVES, CARD],
    "kto": [DIRECT_EVALUATE, "thumb_report", CURVES, CARD],
    "ilql": ["rlhf.implicit_q.trainer.ILQLTrainer.evaluate", CURVES, CARD],
    "ppo": [PPO_EVALUATE, "sample_table", CURVES, CARD],
}
# Before these the scores of a reward model are centred.
UNCENTRED = (SCORES, "shift_scores")
IN_SHORT = {
    ("regression", PREDICT),
    ("reward", "shift_scores"),
}


def all_stages() -> list:
    """(recipe, case, stage)."""
    parameters = []
    for case, stages in STAGES.items():
        for stage in stages:
            marks = [] if (case, stage) in IN_SHORT else [pytest.mark.slow]
            name = f"{case}-{stage.rpartition('.')[2]}"
            recipe = CASES[case].recipe
            parameters.append(pytest.param(recipe, case, stage, marks=marks, id=name))
    return parameters


@pytest.fixture(scope="module")
def run_case(recipe_module, make_tokenizer, tokenizer, tmp_path_factory):
    """f(case, folder's name) -> the folder of its run. All runs have the same seed, data and base model."""
    home = tmp_path_factory.mktemp("saved_first")
    make_tokenizer(LETTERS).save_pretrained(home / "bert")
    make_tokenizer(LETTERS, "gpt2").save_pretrained(home / "gpt2")
    torch.manual_seed(0)
    policy = new_policy(tokenizer, model_type="gpt2", hidden_size=16, layers=1, heads=2, context=32)
    save(policy, tokenizer, home / "base")

    def run_case(name: str, folder: str, module=None):
        case = CASES[name]
        module = module or recipe_module(case.recipe)
        data = home / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in case.rows))
        flags = [str(home / "base") if flag == "BASE" else flag for flag in case.flags]
        if "--from_scratch" in flags:
            kind = "gpt2" if case.recipe in ("pretrain", "seq2seq") else "bert"
            flags += ["--tokenizer_name_or_path", str(home / kind)]
        folder = home / folder
        start(module.main, "", [*flags, "--dataset_name", str(data), "--output_dir", str(folder)])
        return folder

    run_case.home = home
    return run_case


@pytest.fixture(scope="module")
def weights_of_whole_run(run_case):
    """f(case) -> the weights that its uninterrupted run saves."""
    kept = {}

    def weights_of_whole_run(name: str) -> dict:
        if name not in kept:
            kept[name] = load_file(run_case(name, f"{name}-whole") / "model.safetensors")
        return kept[name]

    return weights_of_whole_run


def breaks_after_training(monkeypatch, module, stage: str) -> None:
    """Let a function raise; an evaluation before the training is not broken."""
    import importlib

    owner, _, name = stage.rpartition(".")
    if not owner:
        target = module
    elif owner.rpartition(".")[2][0].isupper():
        package, _, class_name = owner.rpartition(".")
        target = getattr(importlib.import_module(package), class_name)
    else:
        target = importlib.import_module(owner)
    original = getattr(target, name)

    def broken(*args, **options):
        state = getattr(args[0], "state", None) if args else None
        if state is not None and state.global_step == 0:
            return original(*args, **options)
        raise RuntimeError("a defect after the training")

    monkeypatch.setattr(target, name, broken)


@pytest.mark.parametrize(("recipe", "name", "stage"), all_stages())
def test_an_error_after_the_training_loses_no_model(
    run_case, weights_of_whole_run, recipe_module, monkeypatch, capsys, recipe, name, stage
):
    expected = weights_of_whole_run(name)
    module = recipe_module(recipe)
    breaks_after_training(monkeypatch, module, stage)
    folder = f"{name}-{stage.rpartition('.')[2]}"
    with pytest.raises(RuntimeError, match="a defect after the training"):
        run_case(name, folder, module)
    folder = run_case.home / folder
    CASES[name].loader.from_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    different = [key for key in expected if not torch.equal(saved[key], expected[key])]
    # The scores are centred in the bias of the last layer norm.
    centred = name == "reward" and stage in UNCENTRED
    assert saved.keys() == expected.keys()
    assert different == (["transformer.ln_f.bias"] if centred else [])
    assert ("its scores are not centred" in capsys.readouterr().out) == centred
    assert not (folder / ".replacement").exists()


@pytest.mark.slow
def test_a_reader_gets_its_threshold_after_the_evaluation(run_case, recipe_module, monkeypatch):
    """A model that once had one does not keep it where the new evaluation never came."""
    whole = run_case("question_answering", "threshold")
    config = json.loads((whole / "config.json").read_text())
    report = json.loads((whole / "question_answering.json").read_text())
    assert config["no_answer_threshold"] == report["no_answer_threshold"] > 0
    module = recipe_module("question_answering")
    breaks_after_training(monkeypatch, module, PREDICT)
    flags = [*STEP, "--eval_strategy", "no", "--eval_fraction", "0.2", "--stride", "2"]
    data = run_case.home / "question_answering.jsonl"
    folder = run_case.home / "again"
    flags += ["--model_name_or_path", str(whole), "--max_length", "32"]
    with pytest.raises(RuntimeError):
        start(module.main, "", [*flags, "--dataset_name", str(data), "--output_dir", str(folder)])
    assert json.loads((folder / "config.json").read_text()).get("no_answer_threshold") is None
