"""A trained encoder-decoder at work: texts by beam search, as its generation config says, and its alignment."""

import os
from collections.abc import Sequence

import torch

from rlhf.errors import UserError
from rlhf.models.load import load_seq2seq, load_tokenizer
from rlhf.models.parts import context_length, freeze
from rlhf.models.seq2seq import fit_pair_tokenizer
from rlhf.tasks.answers import Answers, Table
from rlhf.tasks.seq2seq.encode import check_text, encode_sources
from rlhf.tasks.seq2seq.metrics import MISSING, corpus_scores, is_installed


class Seq2SeqPredictor:
    """A trained model of a run folder, or an encoder-decoder of the Hub.

    The config says what it was trained with: `trained_prefix`, and `trained_source_length`, the longest source in tokens.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.tokenizer = load_tokenizer(str(folder))
        self.model = freeze(load_seq2seq(str(folder))).to(device)
        # What a Hub's model lacks and training would have added.
        fit_pair_tokenizer(self.tokenizer)
        config = self.model.config
        self.prefix = getattr(config, "trained_prefix", None) or ""
        self.longest = getattr(config, "trained_source_length", None) or context_length(self.model)

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """Rows with `prompt`, or with `text` -> {completion}, the text that the model writes for each, in their order.

        UserError for a source that is longer than those of the training: it is not cut.
        """
        ids = self._encoded([row.get("prompt", row.get("text")) for row in rows])
        # Sources of one length together, so that there is little padding.
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        results: list[dict] = [{}] * len(ids)
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            output = self._generate([ids[i] for i in part])
            for i, text in zip(part, decoded(self.tokenizer, output), strict=True):
                results[i] = {"completion": text}
        return results

    def _encoded(self, sources: list) -> list[list[int]]:
        for source in sources:
            reason = check_text(source)
            if reason:
                raise UserError(f"{str(source)[:80]!r}: {reason}")
        ids = encode_sources(self.tokenizer, sources, self.prefix)
        # A text that is cut would be translated in part, without a word about it.
        for source, row in zip(sources, ids):
            if len(row) > self.longest:
                raise UserError(
                    f"{source[:80]!r} has {len(row)} tokens, and the model was trained on at most {self.longest}: split the "
                    "text, or train with a larger max_source_length"
                )
        return ids

    @torch.no_grad()
    def _generate(self, ids: list[list[int]]):
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        return self.model.generate(**batch)


class Seq2SeqAnswers(Answers):
    """chrF and BLEU of the written texts, where rows have a reference."""

    columns = ("rows", "chrf", "chrf_low", "chrf_high", "bleu", "bleu_low", "bleu_high")

    def __init__(self, predictor, run_config: dict):
        super().__init__(predictor, run_config)
        self.bleu_tokenize = run_config.get("bleu_tokenize") or "13a"
        self.written: list[str] = []
        self.references: list[str] = []

    def add(self, answer, prediction: dict) -> bool:
        self.written.append(prediction["completion"])
        self.references.append(answer)
        return True

    def report(self) -> list[str | Table]:
        if not is_installed():
            return [MISSING]
        scores = corpus_scores(self.written, self.references, self.bleu_tokenize)
        return [Table(self.columns, [{"rows": len(self.written)} | scores])]


def decoded(tokenizer, ids) -> list[str]:
    """The texts of rows of token ids, without special tokens."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def align(model, tokenizer, source: list[int], target: list[int]) -> dict | None:
    """The share of each source token in each written token: the mean over the heads of the last layer.

    source, target: token ids; the target without the token that it starts from. None for a model without attention.
    Returns the tokens of both as text, and weights, a list of S numbers for each of the T tokens of the target.
    """
    ids = torch.tensor([source], device=model.device)  # (1, S)
    labels = torch.tensor([target], device=model.device)  # (1, T)
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
        output_attentions=True,
    )
    # An LSTM without attention has none.
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
