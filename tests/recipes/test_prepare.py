"""What is checked before the first step: `prepare` of each recipe refuses it, before a model is loaded where it can."""

import sys
import typing

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from rlhf.errors import UserError
from rlhf.models.load import save
from rlhf.models.parts import fit_embeddings
from rlhf.models.scratch import new_policy
from rlhf.runs.run import Run, start
from rlhf.runs.settings import parse

LETTERS = "a b c d e f g h".split()
PAIRS = [f"{first} {second}" for first in LETTERS for second in LETTERS[:3]]
QUICK = ["--use_cpu", "--report_to", "none"]
FUNCTIONS = """
def fail(prompts, completions, **columns):
    raise KeyError("answers")


def leave_one_out(prompts, completions, **columns):
    return [0.0] * (len(prompts) - 1)


def zero(prompts, completions, **columns):
    return [0.0] * len(prompts)
"""


@pytest.fixture
def prepare(recipe_module):
    """f(recipe, flags) -> what `prepare` returns; no step is made."""

    def prepare(name: str, *flags, module=None):
        module = module or recipe_module(name)
        hints = typing.get_type_hints(module.main)
        hints.pop("return")
        settings, args = parse(list(hints.values()), "", [*QUICK, *map(str, flags)])
        return module.prepare(settings, args, Run(name, settings, args))

    return prepare


@pytest.fixture
def never_loads(recipe_module, monkeypatch):
    """f(recipe, name) -> its module, in which the function of that name, which loads a model, must not be called."""

    def never_loads(recipe: str, name: str):
        module = recipe_module(recipe)

        def load(*args, **options):
            raise AssertionError(f"{name} was called before the checks")

        monkeypatch.setattr(module, name, load)
        return module

    return never_loads


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """The module of reward functions above."""
    (tmp_path / "tried_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("tried_rewards", None)


@pytest.fixture
def folders(tokenizer, tmp_path, write):
    """The folder of a policy with a context of 32, and of prompts."""
    policy = new_policy(tokenizer, model_type="gpt2", hidden_size=16, layers=1, heads=2, context=32)
    save(policy, tokenizer, tmp_path / "policy")
    write("prompts.jsonl", [{"prompt": text, "topic": [text]} for text in PAIRS])
    return tmp_path


@pytest.fixture
def reward_model(tokenizer, folders):
    """f(name, context, labels, weight) -> the folder of a reward model, all of whose weights are `weight` if it is given."""

    def reward_model(name: str, *, context=32, labels=1, weight=None) -> str:
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=context, num_labels=labels
        )  # fmt: skip
        model = GPT2ForSequenceClassification(config)
        fit_embeddings(model, tokenizer)
        if weight is not None:
            torch.nn.init.constant_(model.score.weight, weight)
        save(model, tokenizer, folders / name)
        return str(folders / name)

    return reward_model


@pytest.fixture
def ppo(prepare, folders):
    """f(flags) -> the trainer of a short run."""

    def ppo(*flags, module=None):
        short = "--total_episodes 8 --rollout_batch_size 8 --per_device_train_batch_size 4".split()
        names = ["--model_name_or_path", folders / "policy", "--output_dir", folders / "run"]
        data = ["--dataset_name", folders / "prompts.jsonl"]
        length = [] if "--max_completion_length" in flags else ["--max_completion_length", "4"]
        return prepare("ppo", *short, *names, *data, *length, *flags, module=module)

    return ppo


# ---- policy gradients ----


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--reward_functions tried_rewards:fail", "reward function fail raised KeyError: 'answers'"),
        ("--reward_functions tried_rewards:leave_one_out", "returned 2 scores for 3 completions"),
        ("--reward_functions tried_rewards:none_such", "has no attribute 'none_such'"),
        ("--reward_functions tried_rewards:zero --ptx_coef 1", "ptx_coef=1.0 needs plain text"),
        ("--reward_functions tried_rewards:zero --reward_weights 1 2", "2 numbers for 1 rewards"),
        ("", "no reward given"),
        ("--reward_functions tried_rewards:zero --value_model reward_model", "needs a reward_model"),
    ],
)  # fmt: skip
def test_ppo_refuses_rewards_before_a_model_is_loaded(ppo, never_loads, functions, flags, said):
    shared = [] if "value_model" in flags else ["--value_model", "shared"]
    with pytest.raises(UserError) as caught:
        ppo(*shared, *flags.split(), module=never_loads("ppo", "load_policy"))
    assert said in str(caught.value)


def test_ppo_refuses_a_classifier_as_a_reward_by_its_config(ppo, never_loads, reward_model):
    module = never_loads("ppo", "load_policy")
    path = reward_model("classes", labels=3)
    with pytest.raises(UserError, match="is a classifier with 3 labels"):
        ppo("--reward_model_path", path, module=module)
    shared = ["--value_model", "shared", "--reward_functions", "recipes.rewards:slot_coverage"]
    with pytest.raises(UserError, match="is a classifier with 3 labels"):
        ppo("--watch_reward_model_path", path, *shared, module=module)


def test_ppo_refuses_completions_without_room_before_the_rewards_are_loaded(
    ppo, never_loads, reward_model
):
    flags = ["--reward_model_path", reward_model("reward"), "--max_completion_length", "32"]
    with pytest.raises(UserError, match="leaves no room for a prompt in the model's context of 32"):
        ppo(*flags, module=never_loads("ppo", "load_rewards"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context": 8}, "reward_model reads at most 8 tokens, and the longest prompt has 5"),
        ({"weight": float("nan")}, "the reward model: 1 score is not a finite number: row 0"),
    ],
    ids=["short", "nan"],
)
def test_ppo_refuses_a_reward_model_that_cannot_score(ppo, reward_model, options, said):
    shared = ["--value_model", "shared"]
    with pytest.raises(UserError, match=said):
        ppo("--reward_model_path", reward_model("reward", **options), *shared)


def test_ppo_is_prepared_without_a_step(ppo, reward_model, folders):
    trainer = ppo("--reward_model_path", reward_model("reward", context=9))
    assert trainer.state.global_step == 0
    assert not (folders / "run").exists() or not list((folders / "run").iterdir())


# ---- the other recipes ----


RANKING = {"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1]}
TIE = RANKING | {"ranks": [0, 0]}


@pytest.mark.parametrize(
    ("rows", "eval_rows", "demonstrations", "said"),
    [
        ([RANKING, {"prompt": "b"}], [RANKING | {"prompt": "c"}], None, "completions"),
        ([TIE], [RANKING | {"prompt": "c"}], None, "pair in the training rankings"),
        ([RANKING], [TIE | {"prompt": "c"}], None, "pair in the evaluation rankings"),
        ([RANKING], [RANKING | {"prompt": "c"}], [{"prompt": "a"}], "sft.jsonl"),
    ],
    ids=["bad row", "ties", "held-out ties", "demonstrations"],
)
def test_reward_reads_all_rows_before_a_model_is_loaded(
    prepare, never_loads, folders, write, rows, eval_rows, demonstrations, said
):
    module = never_loads("reward", "load_reward_model")
    flags = ["--dataset_name", write("train.jsonl", rows)]
    flags += ["--eval_dataset_name", write("eval.jsonl", eval_rows)]
    if demonstrations:
        flags += ["--demonstrations", write("sft.jsonl", demonstrations)]
    names = ["--model_name_or_path", folders / "policy", "--output_dir", folders / "run"]
    with pytest.raises(UserError, match=said):
        prepare("reward", *flags, *names, module=module)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--eval_fraction 0 --eval_strategy epoch", "there are no evaluation rows"),
        ("--pretraining_dataset text.jsonl", "text.jsonl:1: text: empty"),
        ("--pretraining_dataset prompts.jsonl --pretraining_share 1", "pretraining_share=1.0"),
    ],
)
def test_sft_reads_all_rows_before_a_model_is_loaded(
    prepare, never_loads, folders, write, flags, said, monkeypatch
):
    monkeypatch.chdir(folders)
    write("text.jsonl", [{"text": ""}])
    write("sft.jsonl", [{"prompt": text, "completion": "c"} for text in PAIRS])
    module = never_loads("sft", "load_or_make_policy")
    names = ["--model_name_or_path", folders / "policy", "--output_dir", folders / "run"]
    with pytest.raises(UserError, match=said):
        prepare("sft", "--dataset_name", "sft.jsonl", *names, *flags.split(), module=module)


@pytest.fixture
def encoder(prepare, make_tokenizer, tmp_path, write):
    """f(recipe, rows, flags) -> `prepare` of a model from scratch."""

    def encoder(recipe: str, rows: list[dict], *flags, module=None):
        make_tokenizer(LETTERS).save_pretrained(tmp_path / "bert")
        sizes = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 32".split()
        names = ["--tokenizer_name_or_path", tmp_path / "bert", "--output_dir", tmp_path / "run"]
        data = ["--dataset_name", write("rows.jsonl", rows), "--precision", "fp32"]
        return prepare(recipe, *sizes, *names, *data, *flags, module=module)

    return encoder


LABELLED = [{"text": text, "label": "xy"[i % 2]} for i, text in enumerate(PAIRS)]


@pytest.mark.parametrize(
    ("flags", "first", "said"),
    [
        ("--class_weights balance", "read_task", "class_weights='balance'"),
        ("--metric_for_best_model acuracy", "start_classifier", "use one of loss, accuracy"),
        ("--eval_dataset_name other.jsonl", "start_classifier", "z"),
    ],
)
def test_classification_is_checked_before_what_takes_long(
    encoder, never_loads, write, tmp_path, monkeypatch, flags, first, said
):
    monkeypatch.chdir(tmp_path)
    write("other.jsonl", [{"text": "a a a", "label": "z"}])
    module = never_loads("classification", first)
    with pytest.raises(UserError, match=said):
        encoder("classification", LABELLED, *flags.split(), module=module)


@pytest.mark.parametrize("recipe", ["ner", "question_answering", "multiple_choice"])
def test_a_metric_that_does_not_exist_is_refused_before_rows_are_read(encoder, never_loads, recipe):
    module = never_loads(recipe, "read_task")
    with pytest.raises(UserError, match="metric_for_best_model='f2': use one of loss"):
        encoder(recipe, LABELLED, "--metric_for_best_model", "f2", module=module)


BEST = "--load_best_model_at_end true --eval_strategy epoch --save_strategy epoch"


@pytest.mark.parametrize("recipe", ["seq2seq"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (f"--metric_for_best_model f2 {BEST}", "metric_for_best_model=f2: use one of loss"),
        ("--model_type bert", "use one of lstm_seq2seq, marian"),
        ("--bleu_tokenize words", "bleu_tokenize"),
    ],
)
def test_seq2seq_is_checked_before_pairs_are_read(encoder, never_loads, recipe, flags, said):
    module = never_loads(recipe, "load_splits")
    with pytest.raises(UserError, match=said):
        encoder(recipe, [], *flags.split(), module=module)


@pytest.mark.parametrize("recipe", ["word_vectors"])
@pytest.mark.parametrize("file", ["analogies", "similarity_pairs"])
def test_word_vectors_read_the_questions_before_the_text(
    prepare, never_loads, tmp_path, recipe, file
):
    module = never_loads(recipe, "load_splits")
    (tmp_path / "questions.txt").write_text("a b\n")
    flags = ["--dataset_name", "text.txt", "--output_dir", tmp_path / "run"]
    with pytest.raises(UserError, match="questions.txt:1: "):
        prepare(recipe, *flags, f"--{file}", tmp_path / "questions.txt", module=module)


def test_pretraining_is_checked_before_text_is_read(encoder, never_loads):
    module = never_loads("pretrain", "load_splits")
    for flags in ("--objective cloze", "--block_size 2", "--metric_for_best_model f1"):
        with pytest.raises(UserError, match=flags.split()[0].strip("-")):
            encoder("pretrain", LABELLED, *flags.split(), module=module)


def test_a_run_that_would_make_no_step_is_refused_before_it_trains(encoder):
    flags = "--dataloader_drop_last true --per_device_train_batch_size 64 --eval_fraction 0.2"
    with pytest.raises(UserError, match="no step would be made: the .* rows are fewer than"):
        encoder("classification", LABELLED, *flags.split())


# ---- nothing is left behind ----


NAMES = {
    "classification": "--dataset_name",
    "dpo": "--ref_model",
    "ilql": "--eval_dataset_name",
    "kto": "--eval_dataset_name",
    "multiple_choice": "--eval_dataset_name",
    "ner": "--model_name_or_path",
    "ppo": "--ptx_dataset_name",
    "pretrain": "--tokenizer_name_or_path",
    "question_answering": "--dataset_name",
    "reward": "--demonstrations",
    "seq2seq": "--model_name_or_path",
    "sft": "--pretraining_dataset",
    "tokenizer": "--compare_tokenizers",
    "word_vectors": "--analogies",
}


@pytest.mark.parametrize("recipe", NAMES)
def test_a_name_that_is_missing_leaves_nothing_behind(
    recipe_module, write, tmp_path, capsys, recipe
):
    module, flag = recipe_module(recipe), NAMES[recipe]
    missing = tmp_path / "none" / "such.jsonl"
    flags = ["--output_dir", str(tmp_path / "run"), flag, str(missing)]
    if flag != "--dataset_name":
        flags += ["--dataset_name", write("rows.jsonl", LABELLED)]
    if flag == "--ptx_dataset_name":
        flags += ["--ptx_coef", "1"]
    quick = QUICK if recipe != "tokenizer" else ["--use_cpu"]
    with pytest.raises(SystemExit) as left:
        start(module.main, "", [*quick, *flags])
    assert left.value.code == 2
    assert f"{missing}: no such" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sft_without_any_flag_leaves_nothing_behind(recipe_module, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = recipe_module("sft")
    with pytest.raises(SystemExit):
        start(module.main, "", ["--use_cpu"])
    assert "dataset_name is not set" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
