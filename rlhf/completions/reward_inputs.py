"""The inputs of a reward model: one encoding of prompt and completion for training, scoring and reports.

A decoder reads the ids of both with its chat template, closed by EOS. An encoder (BERT, DeBERTa, ModernBERT) reads the pair
that its own tokenizer makes of two texts, with its special tokens and token types, as the reward models of the Hub do:
`tokenizer(prompt, completion)`. It needs no EOS and no template. Of a prompt of several turns, the first text has a line
for each turn, with its role in front: "user: ...".
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rlhf.data.chat import (
    Prompt,
    as_messages,
    encode_completion,
    encode_prompt,
    same_encoding,
)
from rlhf.models.parts import fit_tokenizer
from rlhf.models.scores import reads_pairs, score_token_ids


class RewardInput(NamedTuple):
    """Token ids of prompt and completion, the type of each token if the model reads types, and the completion's length."""

    ids: list[int]
    types: list[int] | None
    completion_tokens: int


class RewardInputs:
    """Encodes for one reward model. The tokenizer of an encoder is fitted to it."""

    def __init__(self, model, tokenizer):
        self.tokenizer = tokenizer
        self.pairs = reads_pairs(model)
        if self.pairs:
            fit_tokenizer(tokenizer, model, pairs=False)
        self._same: dict[int, bool] = {}  # id of another tokenizer -> it encodes as ours does

    def encode(self, prompt: Prompt, completions: list[str]) -> list[RewardInput]:
        """One input for each completion of a prompt."""
        if self.pairs:
            return encode_pairs(self.tokenizer, prompt, completions)
        return encode_conversations(self.tokenizer, prompt, completions)

    def of_batch(self, batch) -> list[RewardInput]:
        """One input per row of a `ScoringBatch`: of the policy's own ids where both tokenizers agree, else of the texts."""
        if batch.completion_ids is not None and not self.pairs:
            key = id(batch.tokenizer)
            if key not in self._same:
                self._same[key] = same_encoding(batch.tokenizer, self.tokenizer)
            if self._same[key]:
                pairs = zip(batch.prompt_ids, batch.completion_ids, strict=True)
                return [RewardInput(prompt + ids, None, len(ids)) for prompt, ids in pairs]
        inputs = []
        for prompt, completion in zip(batch.prompts, batch.completions, strict=True):
            inputs += self.encode(prompt, [completion])
        return inputs


def score_inputs(model, inputs: Sequence[RewardInput], *, pad_token_id: int) -> Tensor:
    """One score per input, in one forward pass: (B,), fp32, on the model's device."""
    ids = [row.ids for row in inputs]
    types = [row.types for row in inputs]
    has_types = types[0] is not None
    return score_token_ids(model, ids, types if has_types else None, pad_token_id=pad_token_id)


def encode_conversations(tokenizer, prompt: Prompt, completions: list[str]) -> list[RewardInput]:
    """The inputs of a decoder."""
    prompt_ids = encode_prompt(tokenizer, prompt)
    inputs = []
    for text in completions:
        ids = encode_completion(tokenizer, text)
        inputs.append(RewardInput(prompt_ids + ids, None, len(ids)))
    return inputs


def encode_pairs(tokenizer, prompt: Prompt, completions: list[str]) -> list[RewardInput]:
    """The inputs of an encoder. The spelling of a control token stays text."""
    options = {"split_special_tokens": True, "verbose": False}
    first = pair_text(prompt)
    inputs = []
    for text in completions:
        encoding = tokenizer(first, text, **options)
        alone = tokenizer(text, add_special_tokens=False, **options)
        types = encoding.get("token_type_ids")
        inputs.append(RewardInput(encoding["input_ids"], types, len(alone["input_ids"])))
    return inputs


def pair_text(prompt: Prompt) -> str:
    """The first text of an encoder's pair: one question as it is, several turns with a line each."""
    messages = as_messages(prompt)
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n".join(lines)
