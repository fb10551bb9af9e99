"""Untrained GPT-2 shaped chat models whose answers never end early, so that every way to serve writes as many tokens."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from rlhf.data.chat import add_chat_template
from rlhf.models.load import save
from rlhf.models.parts import fit_embeddings
from rlhf.models.scratch import new_policy

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "small": dict(hidden_size=128, layers=2, heads=2, context=512),  # the model of the demo
    "medium": dict(hidden_size=512, layers=8, heads=8, context=512),
    "gpt2": dict(hidden_size=768, layers=12, heads=12, context=1024),
}
WORDS = (
    "the model reads a question and writes its answer one token at a time while others wait".split()
)


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    add_chat_template(fast)
    return fast


def make_model(folder: Path, size: str) -> None:
    """Save a model with its tokenizer, with random weights and a sampling config that is greedy."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = new_policy(tokenizer, model_type="gpt2", dropout=0.0, **SIZES[size])
    fit_embeddings(model, tokenizer)
    with torch.no_grad():
        # The logit of a control token is 0, and among thousands of others one is always larger.
        for token in tokenizer.all_special_ids:
            model.transformer.wte.weight[token] = 0
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    save(model, tokenizer, folder)


def questions(count: int) -> list[str]:
    """Questions of 20 to 50 words, each beginning differently."""
    texts = []
    for i in range(count):
        words = [f"{i}:"]
        for j in range(20 + 7 * i % 31):
            words.append(WORDS[(i + j * 5) % len(WORDS)])
        texts.append(" ".join(words))
    return texts
