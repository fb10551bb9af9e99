"""Writing texts with a trained encoder-decoder: beam search as its generation config says, and its alignment."""

from collections.abc import Sequence

import torch

from rlhf.models.load import load_seq2seq, load_tokenizer
from rlhf.models.parts import freeze
from rlhf.tasks.seq2seq.encode import encode_sources


class Seq2SeqPredictor:
    """A trained model of a run folder.

    The config says what it was trained with: `trained_prefix`, and `trained_source_length`, the longest source in tokens.
    """

    def __init__(self, folder, device: str = "cpu"):
        self.tokenizer = load_tokenizer(str(folder))
        self.model = freeze(load_seq2seq(str(folder))).to(device)
        config = self.model.config
        self.prefix = getattr(config, "trained_prefix", None) or ""
        self.longest = getattr(config, "trained_source_length", None)
        self.too_long = 0  # texts that were longer than those of the training, and were read whole

    def predict(self, texts: Sequence[str], batch_size: int = 32) -> list[str]:
        """The text that the model writes for each text, in their order."""
        ids = encode_sources(self.tokenizer, list(texts), self.prefix)
        if self.longest:
            self.too_long += sum(len(row) > self.longest for row in ids)
        # Sources of one length together, so that there is little padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        written = [""] * len(ids)
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            output = self._generate([ids[i] for i in part])
            for i, text in zip(part, decoded(self.tokenizer, output), strict=True):
                written[i] = text
        return written

    @torch.no_grad()
    def _generate(self, ids: list[list[int]]):
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        return self.model.generate(**batch)


def decoded(tokenizer, ids) -> list[str]:
    """The texts of rows of token ids, without special tokens."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def align(model, tokenizer, source: list[int], target: list[int]) -> dict | None:
    """How much each written token reads of each token of the source: the mean over the heads of the last layer.

    source, target: token ids; the target without the token that it starts from. None for a model without attention.
    Returns the tokens of both as text, and weights, a list of S numbers for each of the T tokens of the target.
    """
    ids = torch.tensor([source], device=model.device)
    labels = torch.tensor([target], device=model.device)
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
        output_attentions=True,
    )
    if not output.cross_attentions:
        return None
    weights = output.cross_attentions[-1][0].float().mean(0)  # (T, S)
    return {
        "source": pieces(tokenizer, source),
        "target": pieces(tokenizer, target),
        "weights": [[round(value, 4) for value in row] for row in weights.tolist()],
    }


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """Each token as text. Half a character decodes to a replacement character, and a space to ␣."""
    return [tokenizer.decode([token]).strip() or "␣" for token in ids]
