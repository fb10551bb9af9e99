"""recipes/reward.py on a few rankings: what it checks before the training, and what it saves after it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
)

from rlhf.baselines.table import BASELINES
from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.models.load import load_reward_model, save
from rlhf.models.parts import fit_embeddings
from rlhf.models.scratch import new_baseline, new_policy
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.run import Run, start

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
)
FLAGS = "--use_cpu --report_to none --eval_fraction 0.25 --max_steps 2 --per_device_train_batch_size 4".split()


@pytest.fixture
def bases(tokenizer, bert_tokenizer, tmp_path):
    """f(kind) -> the folder of a model to start from."""

    def bases(kind: str) -> str:
        torch.manual_seed(0)
        folder = tmp_path / kind
        if kind == "bert":
            config = BertConfig(vocab_size=len(bert_tokenizer), **SMALL)
            save(AutoModel.from_config(config), bert_tokenizer, folder)
        elif kind == "llama":
            config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **SMALL)
            model = AutoModelForCausalLM.from_config(config)
            fit_embeddings(model, tokenizer)
            save(model, tokenizer, folder)
        elif kind in BASELINES:
            sizes = dict(hidden_size=16, layers=1, order=5, dropout=0.0)
            save(new_baseline(tokenizer, kind, **sizes), tokenizer, folder)
        else:
            sizes = dict(hidden_size=16, layers=1, heads=2, context=24, dropout=0.0)
            save(new_policy(tokenizer, model_type="gpt2", **sizes), tokenizer, folder)
        return str(folder)

    return bases


@pytest.fixture
def train(recipe_module, bases, write, tmp_path):
    module = recipe_module("reward")

    def train(*flags, kind="gpt2", rows=None):
        data = write("rankings.jsonl", rows or rankings())
        names = ["--dataset_name", data, "--model_name_or_path", bases(kind)]
        folder = tmp_path / "run"
        start(module.main, module.__doc__, [*names, "--output_dir", str(folder), *FLAGS, *flags])
        return folder

    return train


def rankings(best="c c c", ranks=(0, 1, 2)):
    rows = []
    for first in "abdefgh":
        for second in "abc":
            prompt = f"{first} {second}"
            rows.append(
                {"prompt": prompt, "completions": [best, "c d c", "d d c"], "ranks": list(ranks)}
            )
    return rows


def steps_made(folder) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def mean_score(folder, rows, completion) -> float:
    """The mean over the training prompts, as the recipe splits them."""
    scorer = RewardModelScorer.load(str(folder))
    prompts = [row["prompt"] for row in rows]
    return scorer(ScoringBatch(prompts, [completion] * len(prompts))).mean().item()


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama", False),
        ("lstm", False),
        pytest.param("bert", True, marks=pytest.mark.slow),
        pytest.param("gpt2", False, marks=pytest.mark.slow),
        pytest.param("gpt2", True, marks=pytest.mark.slow),
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("bert", False, marks=pytest.mark.slow),
    ],
)
def test_demonstrations_score_0_and_the_record_says_where_that_is_stored(train, write, kind, lora):
    demonstrations = [{"prompt": row["prompt"], "completion": "g g"} for row in rankings()]
    path = write("sft.jsonl", demonstrations)
    flags = ["--use_peft", "--lora_r", "2"] if lora else []
    folder = train("--demonstrations", path, "--learning_rate", "1e-2", *flags, kind=kind)
    assert mean_score(folder, rankings(), "g g") == pytest.approx(0, abs=1e-4)
    assert abs(mean_score(folder, rankings(), "h")) > 1e-5
    metrics = RunRecord.load(folder).metrics
    expected = {
        "gpt2": "the bias of the last layer norm",
        "llama": "score_centre in config.json",
        "bert": "the bias of the head",
        "lstm": "the bias of the head",
    }
    assert metrics["score_centre_in"] == expected[kind]
    config = json.loads((folder / "config.json").read_text())
    assert config.get("score_centre") == pytest.approx(
        metrics["score_centre"] if kind == "llama" else None, abs=1e-6
    )
    assert ("model.config.score_centre" in (folder / "README.md").read_text()) == (kind == "llama")


@pytest.mark.parametrize(
    "kind",
    ["gru", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lstm", "rnn", "mlp"))],
)
def test_a_model_before_the_transformer_learns_to_rank(train, kind):
    """Its scores depend neither on the rest of a batch nor on the loader, and plain transformers gives the same."""
    folder = train("--max_steps", "12", "--learning_rate", "5e-2", kind=kind)
    assert RunRecord.load(folder).metrics["accuracy"] == 1.0
    completions = ["c c c", "c", "d d c", "c d c a b e f"]
    scorer = RewardModelScorer.load(str(folder))
    together = scorer(ScoringBatch(["a b"] * 4, completions))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for score, completion in zip(together, completions, strict=True):
        alone = scorer(ScoringBatch(["a b"], [completion]))
        assert alone.item() == pytest.approx(score.item(), abs=1e-5)
        messages = [
            {"role": "user", "content": "a b"},
            {"role": "assistant", "content": completion},
        ]
        inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            assert model(**inputs).logits.item() == pytest.approx(score.item(), abs=1e-5)


def test_an_encoder_learns_from_pairs_and_scores_them_as_plain_transformers_does(train):
    folder = train(kind="bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(**tokenizer("a b", "c d", return_tensors="pt")).logits.item()
    scorer = RewardModelScorer.load(str(folder))
    assert scorer(ScoringBatch(["a b"], ["c d"])).item() == pytest.approx(expected, abs=1e-5)
    assert tokenizer.chat_template is None
    assert (
        "inputs = tokenizer('Hello, how are you?', \"Hello!\"" in (folder / "README.md").read_text()
    )


def test_a_best_completion_that_is_too_long_is_counted_and_the_model_is_saved(train, capsys):
    rows = rankings()
    for row in rows[::2]:
        row["completions"] = ["c " * 40, *row["completions"][1:], "d"]
        row["ranks"] = [0, 1, 2, 3]
    folder = train(rows=rows)
    assert (folder / "model.safetensors").is_file()
    record = RunRecord.load(folder)
    assert record.status == "done" and 0 < record.metrics["centred_on"] < len(rows) * 3 / 4
    assert "whose best completion is too long" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_what_can_be_known_before_the_training_is_refused_before_it(failing, kind, tmp_path):
    said = failing("--demonstrations", str(tmp_path / "nowhere.jsonl"), kind=kind)
    assert "nowhere.jsonl" in said
    assert steps_made(tmp_path / "run") == 0


def test_ties_alone_are_refused_before_the_training(failing, tmp_path):
    said = failing(rows=rankings(ranks=(1, 1, 1)))
    assert "no strictly ordered pair in the training rankings" in said
    assert steps_made(tmp_path / "run") == 0


def test_demonstrations_that_are_all_too_long_are_refused_before_the_training(
    failing, write, tmp_path
):
    path = write("sft.jsonl", [{"prompt": "a", "completion": "c " * 40}])
    said = failing("--demonstrations", path)
    assert "max_length=24" in said and steps_made(tmp_path / "run") == 0


def test_an_error_in_the_report_loses_no_model(train, monkeypatch, tmp_path):
    def broken(*args):
        raise RuntimeError("a defect in the report")

    monkeypatch.setattr(Run, "write", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        train()
    load_reward_model(str(tmp_path / "run"))


@pytest.mark.slow
def test_ppo_of_a_decoder_is_scored_by_an_encoder(train, recipe_module, bases, write, tmp_path):
    """The text is tokenised again for the encoder, in rollouts as in training."""
    reward = train("--learning_rate", "0.1", kind="bert")
    module = recipe_module("ppo")
    prompts = write("prompts.jsonl", [{"prompt": row["prompt"]} for row in rankings()])
    flags = [
        *("--dataset_name", prompts, "--model_name_or_path", bases("gpt2")),
        *("--reward_model_path", str(reward), "--output_dir", str(tmp_path / "ppo")),
        *"--use_cpu --report_to none --total_episodes 8 --rollout_batch_size 8 --eval_fraction 0.2".split(),
        *"--epochs_per_rollout 1 --max_completion_length 4".split(),
    ]
    with pytest.raises(SystemExit):  # an encoder gives no values of partial texts
        start(module.main, module.__doc__, flags)
    folder = tmp_path / "shared"
    flags += ["--value_model", "shared", "--output_dir", str(folder)]
    start(module.main, module.__doc__, flags)
    samples = read_jsonl(folder / "samples.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(reward)
    model = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    for sample in samples:
        inputs = tokenizer(sample["prompt"], sample["completion"], return_tensors="pt")
        with torch.no_grad():
            assert model(**inputs).logits.item() == pytest.approx(sample["score"], abs=1e-4)
    assert max(abs(sample["score"]) for sample in samples) > 1e-3


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(train, launch, bases, write, tmp_path):
    """The prompts with an ordered pair are counted over both: one has ties alone in half of its rows."""
    rows = rankings()
    for row in rows[::3]:
        row["ranks"] = [0, 0, 0]
    options = "--max_steps 2 --optim sgd --learning_rate 1.0 --max_grad_norm 0".split()
    one = train(*options, "--per_device_train_batch_size", "8", rows=rows)
    two = tmp_path / "two"
    data = str(tmp_path / "rankings.jsonl")
    names = [
        "--dataset_name",
        data,
        "--model_name_or_path",
        bases("gpt2"),
        "--output_dir",
        str(two),
    ]
    launch(RECIPES / "reward.py", *names, *FLAGS, *options, layout="ddp_cpu")
    expected = load_reward_model(str(one)).state_dict()
    for name, tensor in load_reward_model(str(two)).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)
    assert expected["score.weight"].norm() > 1e-3
