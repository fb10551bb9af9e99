"""Three tiny runs (base, sft, ppo) that answer the same prompts, and two rewards that score the answers."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf.comparison.compare import ReportSettings, build_report
from rlhf.completions.score import FunctionScorer, WeightedSum
from rlhf.data.chat import add_chat_template
from rlhf.models.load import save
from rlhf.models.scratch import new_policy
from rlhf.runs.record import RunRecord

PROMPTS = ["Hello!", "Who are you?", "Is it late?", "What is a fox?"]


def byte_level_tokenizer(words: list[str]):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    add_chat_template(fast)
    return fast


def tiny_model(tokenizer, seed: int):
    torch.manual_seed(seed)
    model = new_policy(tokenizer, model_type="gpt2", hidden_size=32, layers=2, heads=2, context=64)
    for parameter in model.parameters():  # GPT-2's own 0.02 is all but uniform
        parameter.data *= 3
    return model


def save_finished_run(folder, model, tokenizer, recipe: str, **config) -> str:
    save(model, tokenizer, folder)
    RunRecord(recipe=recipe, config=config, status="done").save(folder)
    return str(folder)


def write_log(folder: str, rows: list[dict]) -> None:
    Path(folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))


def letters(prompts, completions, **columns):
    """A reward that counts characters."""
    return [float(len(text)) for text in completions]


def even(prompts, completions, answers, **columns):
    """A reward of zeros and ones, which checks that it is given the column `answers`."""
    assert all(answer == {"calm": "A fine day."} for answer in answers)
    return [len(text) % 2 for text in completions]


@pytest.fixture(scope="session")
def rows():
    answers = {"calm": "A fine day."}
    return [
        {"prompt": prompt, "completion": "A fine day.", "answers": answers} for prompt in PROMPTS
    ]


@pytest.fixture(scope="session")
def rewards():
    scorers = {
        function.__name__: FunctionScorer(function, function.__name__)
        for function in (letters, even)
    }
    return WeightedSum(scorers, [1.0, 2.0])


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level_tokenizer(PROMPTS * 4)


@pytest.fixture(scope="session")
def other_tokenizer():
    """A tokenizer that splits the same texts differently."""
    return byte_level_tokenizer(["zebra quiz"] * 4)


@pytest.fixture(scope="session")
def tiny():
    return tiny_model


@pytest.fixture(scope="session")
def save_run():
    return save_finished_run


@pytest.fixture(scope="session")
def runs(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    base = save_finished_run(root / "base", tiny_model(tokenizer, 1), tokenizer, "pretrain")
    sft = save_finished_run(root / "sft", tiny_model(tokenizer, 2), tokenizer, "sft")
    ppo = save_finished_run(
        root / "ppo", tiny_model(tokenizer, 3), tokenizer, "ppo", max_completion_length=8
    )
    rollouts = [
        {"step": s, "score": 0.1 * s, "score_letters": 5 + s, "kl": 0.2 * s, "eval_score": s}
        for s in range(4)
    ]
    write_log(ppo, rollouts)
    write_log(sft, [{"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 2, "eval_loss": 2}])
    return [base, sft, ppo]


@pytest.fixture(scope="module")
def report(runs, rows, rewards):
    """The three runs, sampled and greedy, with both rewards."""
    settings = ReportSettings(samples=3, max_completion_length=8, greedy=True)
    return build_report(runs, rows, settings=settings, rewards=rewards)
