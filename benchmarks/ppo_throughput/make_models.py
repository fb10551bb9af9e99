"""Writes the models and prompts of one shape that both sides are given: python make_models.py JOB.json

Random weights. No completion may end early, so EOS and the pad token are given probability 0 by the weights themselves: one
hidden unit is the constant 10 and only these two tokens read it, with weight -100.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.data.chat import add_chat_template, encode_prompt
from rlhf.models.load import save
from rlhf.models.parts import fit_embeddings
from rlhf.models.scratch import new_encoder, new_policy

TEMPLATE = (
    3  # tokens of the chat template around the words of a prompt: user, end of turn, assistant
)
SPECIAL = 6  # EOS, unknown, three roles, pad


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = ["<eos>", "<unk>", *(f"w{place}" for place in range(vocabulary - SPECIAL))]
    inner = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<eos>",
        bos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    add_chat_template(tokenizer)
    assert len(tokenizer) == vocabulary, len(tokenizer)
    return tokenizer


@torch.no_grad()
def never_say(policy, tokens: list[int]) -> None:
    norm, words = policy.transformer.ln_f, policy.lm_head.weight
    norm.weight[0], norm.bias[0] = 0.0, 10.0
    words[:, 0] = 0.0
    words[tokens, 0] = -100.0


def main(job: dict) -> None:
    shape, folder = job["shape"], Path(job["folder"])
    torch.manual_seed(0)
    tokenizer = word_tokenizer(shape["vocabulary"])
    sizes = dict(
        model_type="gpt2",
        hidden_size=shape["hidden"],
        layers=shape["layers"],
        heads=shape["heads"],
        context=shape["prompt"] + shape["completion"],
    )
    policy = new_policy(tokenizer, **sizes)
    never_say(policy, [tokenizer.eos_token_id, tokenizer.pad_token_id])
    fit_embeddings(policy, tokenizer)
    save(policy, tokenizer, folder / "policy")
    save(
        new_encoder(tokenizer, "AutoModelForSequenceClassification", labels=["score"], **sizes),
        tokenizer,
        folder / "reward",
    )
    words = torch.randint(
        shape["vocabulary"] - SPECIAL, (job["prompts"], shape["prompt"] - TEMPLATE)
    )
    rows = [{"prompt": " ".join(f"w{word}" for word in row)} for row in words.tolist()]
    ids = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    assert {len(row) for row in ids} == {shape["prompt"]}
    (folder / "prompts.json").write_text(json.dumps({"rows": rows, "ids": ids}))
    print(json.dumps({"parameters": policy.num_parameters()}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
