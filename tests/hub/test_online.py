"""Every recipe as its users meet it: models and data sets by their names on the Hub, and the run pushed back.

The models are small and random, under the names that are the recipes' defaults. The data sets have the layouts of those
whose names they bear.
"""

import json
from argparse import ArgumentParser
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import ModelCard, constants
from transformers import BertConfig, BertForPreTraining, Qwen3Config, Qwen3ForCausalLM

from rlhf.commands import predict, report, validate
from rlhf.data import hub as data_hub
from rlhf.hub.share import CARD
from rlhf.models.parts import fit_embeddings
from rlhf.models.snapshots import forget_commits, model_folder
from rlhf.runs.record import RunRecord
from rlhf.runs.run import start
from rlhf.serving.engine.engine import Engine
from rlhf.serving.engine.requests import SamplingSettings
from tests.conftest import byte_tokenizer, tiny_policy, whole_word_tokenizer

pytestmark = pytest.mark.slow

LETTERS = "a b c d e f g h who is fine".split()
QUIET = "--use_cpu true --report_to none --seed 1".split()
TRAINING = (
    "--max_steps 2 --per_device_train_batch_size 2 --eval_strategy no --save_strategy no".split()
)


def tiny_bert(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=512,
    )  # fmt: skip
    return BertForPreTraining(config)


def tiny_qwen(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    fit_embeddings(model, tokenizer)
    return model


def words(start: int, count: int = 3) -> str:
    return " ".join(LETTERS[(start + i) % 8] for i in range(count))


def parquet(tmp_path: Path, rows: list[dict], features=None) -> bytes:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path.read_bytes()


def tag_features():
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER"]))
    return datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})


def label_features():
    label = datasets.ClassLabel(names=["neg", "pos"])
    return datasets.Features({"text": datasets.Value("string"), "label": label})


ROWS = {
    "stanfordnlp/imdb": ([{"text": words(i), "label": i % 2} for i in range(12)], label_features),
    "eriktks/conll2003": (
        [{"tokens": words(i).split(), "ner_tags": [1, 2, 0]} for i in range(12)],
        tag_features,
    ),
    "rajpurkar/squad": (
        [
            {
                "id": str(i), "title": "t", "context": f"{words(i)} is fine", "question": "who is",
                "answers": {"text": [words(i)], "answer_start": [0]},
            }
            for i in range(12)
        ],
        None,
    ),
    "allenai/swag": (
        [
            {"sent1": words(i), "sent2": "who", "ending0": "a b", "ending1": "c", "ending2": "d", "ending3": "e",
             "label": i % 4}
            for i in range(12)
        ],
        None,
    ),
    "trl-lib/Capybara": (
        [
            {"messages": [{"role": "user", "content": words(i)}, {"role": "assistant", "content": words(i + 1)}]}
            for i in range(12)
        ],
        None,
    ),
    "trl-lib/ultrafeedback_binarized": (
        [{"prompt": words(i), "chosen": words(i + 1), "rejected": words(i + 2)} for i in range(12)],
        None,
    ),
    "trl-lib/tldr": ([{"prompt": words(i)} for i in range(12)], None),
    "roneneldan/TinyStories": ([{"text": words(i, 20)} for i in range(12)], None),
}  # fmt: skip


@pytest.fixture
def shelf(hub, tmp_path):
    """The Hub with the models and data sets that the recipes name."""
    bytes_tokenizer, bert_tokenizer = byte_tokenizer(chat=False), whole_word_tokenizer(LETTERS)
    models = {
        "gpt2": (tiny_policy(bytes_tokenizer, context=128), bytes_tokenizer),
        "bert-base-uncased": (tiny_bert(bert_tokenizer), bert_tokenizer),
        "bert-base-cased": (tiny_bert(bert_tokenizer), bert_tokenizer),
        "Qwen/Qwen3-0.6B": (tiny_qwen(byte_tokenizer()), byte_tokenizer()),
    }
    for name, (model, tokenizer) in models.items():
        folder = tmp_path / "shelf" / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        hub.put_folder(name, folder)
    for name, (rows, features) in ROWS.items():
        content = parquet(tmp_path, rows, features() if features else None)
        hub.put(name, {"data/train-00000-of-00001.parquet": content}, kind="datasets")
    return hub


@pytest.fixture
def train(shelf, recipe_module, tmp_path):
    """f(recipe, *flags, name): run a recipe with push_to_hub; its folder."""

    def train(recipe: str, *flags, name: str | None = None) -> Path:
        folder = tmp_path / "runs" / (name or recipe)
        push = ["--push_to_hub", "--hub_model_id", f"alice/{folder.name}"]
        argv = ["--output_dir", str(folder), *QUIET, *push, *map(str, flags)]
        start(recipe_module(recipe).main, "", argv)
        return folder

    return train


def check_shared(hub, folder: Path) -> RunRecord:
    """The run came from the Hub, and is there again byte for byte, with a card that is valid."""
    name = f"alice/{folder.name}"
    contents = hub.contents(name)
    has_weights = "model.safetensors" in contents
    pulled = Path(model_folder(name, weights=has_weights))
    for path in pulled.rglob("*"):
        file = path.relative_to(pulled).as_posix()
        if path.is_file():
            assert path.read_bytes() == contents[file], file
            is_written_anew = file in (CARD, "run.json", "samples.jsonl")
            assert is_written_anew or path.read_bytes() == (folder / file).read_bytes(), file
    ModelCard.load(name).validate()
    record = RunRecord.load(folder)
    assert record.status == "done"
    for entry in record.parents.values():
        assert entry["revision"] == hub.repo(entry["name"]).refs["main"]
    for entry in record.data:
        assert entry["revision"] == hub.repo(entry["name"], "datasets").refs["main"]
    return record


ENCODERS = {
    "classification": ("stanfordnlp/imdb", "bert-base-uncased", []),
    "ner": ("eriktks/conll2003", "bert-base-cased", []),
    "question_answering": ("rajpurkar/squad", "bert-base-uncased", []),
    "multiple_choice": ("allenai/swag", "bert-base-uncased", []),
}


@pytest.mark.parametrize("recipe", ENCODERS)
def test_an_encoder_with_its_defaults(train, shelf, recipe, tmp_path, capsys):
    data, base, flags = ENCODERS[recipe]
    folder = train(recipe, "--dataset_name", data, *TRAINING, *flags)
    record = check_shared(shelf, folder)
    assert record.parents["base"]["name"] == base and record.data[0]["name"] == data
    # And what was pushed predicts.
    rows = [row for _, row in data_hub.hub_rows(data, None, "train")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    parser = ArgumentParser()
    predict.add_arguments(parser)
    output = tmp_path / "predictions.jsonl"
    given = [
        f"alice/{recipe}",
        str(tmp_path / "rows.jsonl"),
        "--output",
        str(output),
        "--device",
        "cpu",
    ]
    assert predict.main(parser.parse_args(given)) == 0
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_pretraining_goes_on_from_the_hub(train, shelf, objective):
    base = {"causal": "gpt2", "masked": "bert-base-uncased"}[objective]
    flags = ["--objective", objective, "--model_name_or_path", base, "--from_scratch", "false"]
    folder = train(
        "pretrain",
        "--dataset_name",
        "roneneldan/TinyStories",
        "--block_size",
        16,
        *flags,
        *TRAINING,
    )
    assert check_shared(shelf, folder).parents["base"]["name"] == base


def test_a_tokenizer_is_compared_with_those_of_the_hub(train, shelf):
    flags = ["--vocab_size", 265, "--compare_tokenizers", "gpt2", "bert-base-uncased"]
    folder = train("tokenizer", "--dataset_name", "roneneldan/TinyStories", *flags)
    assert set(check_shared(shelf, folder).metrics["compared"]) == {"gpt2", "bert-base-uncased"}


@pytest.mark.parametrize("base", ["gpt2", "Qwen/Qwen3-0.6B"])
def test_from_sft_to_ppo_through_the_hub(train, shelf, base, tmp_path, monkeypatch, capsys):
    sft = train(
        "sft", "--dataset_name", "trl-lib/Capybara", "--model_name_or_path", base, *TRAINING
    )
    assert check_shared(shelf, sft).parents["base"]["name"] == base
    revision = shelf.repo("alice/sft").refs["main"]
    reward = train(
        "reward", "--dataset_name", "trl-lib/ultrafeedback_binarized", "--model_name_or_path", f"alice/sft@{revision}",
        *TRAINING,
    )  # fmt: skip
    assert check_shared(shelf, reward).parents["base"]["name"] == "alice/sft"
    dpo = train(
        "dpo", "--dataset_name", "trl-lib/ultrafeedback_binarized", "--model_name_or_path", f"alice/sft@{revision}",
        "--max_completion_length", 4, *TRAINING,
    )  # fmt: skip
    assert check_shared(shelf, dpo).parents["policy"]["name"] == "alice/sft"
    ppo = train(
        "ppo", "--dataset_name", "trl-lib/tldr", "--model_name_or_path", "alice/sft", "--model_revision", revision,
        "--reward_model_path", "alice/reward", "--total_episodes", 4, "--rollout_batch_size", 4,
        "--per_device_train_batch_size", 2, "--max_completion_length", 4, "--save_strategy", "no",
    )  # fmt: skip
    parents = check_shared(shelf, ppo).parents
    assert {role: entry["name"] for role, entry in parents.items()} == {
        "policy": "alice/sft",
        "reward": "alice/reward",
    }

    # From here on there is no network.
    forget_commits()
    data_hub.forget_commits()
    model_folder("alice/ppo")
    for names in (constants, datasets.config):
        monkeypatch.setattr(names, "HF_HUB_OFFLINE", True)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a b"}\n{"prompt": "b c"}\n')
    parser = ArgumentParser()
    report.add_arguments(parser)
    output = tmp_path / "report"
    given = ["alice/sft", "alice/ppo", "--prompts", str(prompts), "--reward_model", "alice/reward"]
    assert report.main(parser.parse_args([*given, "--output", str(output), "--samples", "1"])) == 0
    assert (output / "report.json").is_file()
    engine = Engine({"ppo": "alice/ppo"}, reward_runs={"reward": "alice/reward"})
    facts = engine.facts("ppo")
    assert facts.stage == "ppo" and facts.path == "alice/ppo"
    [answer] = engine.sample(
        "ppo", [{"role": "user", "content": "a"}], SamplingSettings(max_new_tokens=2), 1
    )
    assert answer.tokens <= 2
    engine.close()


def test_a_data_set_is_validated_with_a_tokenizer_of_the_hub(shelf, capsys):
    parser = ArgumentParser()
    validate.add_arguments(parser)
    assert validate.main(parser.parse_args(["trl-lib/tldr", "--tokenizer", "gpt2"])) == 0
    assert "tokens" in capsys.readouterr().out
