"""Tiny chat models, trained in a second to give two known answers, as finished run folders."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, GPT2Config, PreTrainedTokenizerFast

from rlhf.data.chat import add_chat_template, encode_completion, encode_prompt
from rlhf.models.load import save
from rlhf.models.parts import fit_embeddings
from rlhf.models.scratch import new_policy
from rlhf.runs.record import RunRecord
from rlhf.serving.engine.engine import Engine

ANSWERS = {"hi": "Hello \N{GRINNING FACE} friend", "bye": "See you, 안녕"}


def make_tokenizer():
    """Byte-level BPE with hardly any merges: an emoji is several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hi there, hello friend, see you"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    add_chat_template(tokenizer)
    return tokenizer


def make_policy(tokenizer, steps: int = 60):
    torch.manual_seed(0)
    policy = new_policy(tokenizer, model_type="gpt2", hidden_size=32, layers=2, heads=2, context=64)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(steps):
        for question, answer in ANSWERS.items():
            prompt, completion = (
                encode_prompt(tokenizer, question),
                encode_completion(tokenizer, answer),
            )
            labels = torch.tensor([[-100] * len(prompt) + completion])
            policy(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy.eval()


def make_runs(root) -> None:
    """root/demo/ppo and root/demo/pretrain, which can chat, and root/demo/reward, which scores."""
    tokenizer = make_tokenizer()
    policy = make_policy(tokenizer)
    save(policy, tokenizer, root / "demo" / "ppo")
    save(make_policy(tokenizer, steps=0), tokenizer, root / "demo" / "pretrain")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64, num_labels=1
    )
    reward_model = AutoModelForSequenceClassification.from_config(config)
    fit_embeddings(reward_model, tokenizer)
    save(reward_model, tokenizer, root / "demo" / "reward")
    for recipe in ("pretrain", "reward", "ppo"):
        record = RunRecord.begin(recipe, config={}, seed=0)
        record.status = "done"
        record.save(root / "demo" / recipe)


CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, without a window: one for all tests, since a thread can drive one Playwright only."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=list(CHROMIUM))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_runs(root)
    return root


@pytest.fixture(scope="session")
def engine(runs):
    demo = runs / "demo"
    engine = Engine(
        {"ppo": demo / "ppo", "base": demo / "pretrain"},
        "cpu",
        reward_runs={"reward": demo / "reward"},
    )
    yield engine
    engine.close()
