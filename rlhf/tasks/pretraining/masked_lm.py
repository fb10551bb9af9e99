"""Training on masked words: the vocabulary is computed only at the masked positions, and metrics need no logits on the CPU.

The projection to the vocabulary is most of the work of a small encoder, and 85 % of the positions have nothing to predict.
Two hooks leave the model's own forward as it is: one narrows `labels` to the masked positions, the other the hidden states
that enter the head. Loss and gradients are those of the plain forward. The logits come as (N, V) instead of (B, L, V).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rlhf.tasks.pretraining.encode import IGNORED, DrawnRows

LARGEST_LOSS = 50  # nats, so that a perplexity is finite


class MaskedPlacesOnly:
    """Install on a model with a masked language model head; a forward without labels stays the plain one."""

    def __init__(self, model: nn.Module):
        self.places: Tensor | None = None  # (B, L) bool, of the forward under way
        # BERT has layers between the encoder and the projection; other models narrow at the projection.
        head = getattr(getattr(model, "cls", None), "predictions", None)
        if head is None:
            head = model.get_output_embeddings()
        model.register_forward_pre_hook(self._narrow_labels, with_kwargs=True)
        head.register_forward_pre_hook(self._narrow_states)

    def _narrow_labels(self, module, args, kwargs):
        labels = kwargs.get("labels")
        if labels is None:
            self.places = None
            return args, kwargs
        self.places = labels != IGNORED
        return args, {**kwargs, "labels": labels[self.places]}

    def _narrow_states(self, module, args):
        if self.places is None:
            return args
        states, *rest = args
        return states[self.places], *rest


def row_sums(logits, labels) -> Tensor:
    """The share of each row in the metrics: (B, 3) sum of losses, hits, masked places; with next sentences (B, 4), hit last.

    logits: (N, V) of the masked places, or a tuple of these and (B, 2).
    labels: (B, L), or a tuple of these and (B,).
    """
    words, *next_logits = as_tuple(logits)
    labels, *next_labels = as_tuple(labels)
    places = labels != IGNORED
    row_of = places.nonzero()[:, 0]  # (N,)
    truth = labels[places]  # (N,)
    losses = cross_entropy(words.float(), truth, reduction="none")
    hits = words.argmax(-1) == truth
    of_place = torch.stack([losses, hits.float(), torch.ones_like(losses)], dim=1)  # (N, 3)
    sums = of_place.new_zeros(len(labels), 3).index_add_(0, row_of, of_place)
    if next_logits:
        is_right = next_logits[0].argmax(-1) == next_labels[0]  # (B,)
        sums = torch.cat([sums, is_right.float()[:, None]], dim=1)
    return sums


def as_tuple(value) -> tuple:
    if isinstance(value, tuple | list):
        return value
    return (value,)


def masked_metrics(output) -> dict[str, float]:
    """Over all masked places: masked_loss (mean, nats), perplexity = exp of it, masked_accuracy; nsp_accuracy of pairs."""
    rows = output.predictions.astype("float64")  # (rows, 3 or 4), as row_sums gives them
    loss, hits, places, *next_hits = rows.sum(0).tolist()
    mean_loss = loss / places
    metrics = {
        "masked_loss": mean_loss,
        "perplexity": math.exp(min(mean_loss, LARGEST_LOSS)),
        "masked_accuracy": hits / places,
    }
    if next_hits:
        metrics["nsp_accuracy"] = next_hits[0] / len(rows)
    return metrics


@torch.inference_mode()
def filled_in(
    model,
    tokenizer,
    rows: DrawnRows,
    *,
    count: int,
    around: int = 10,
) -> list[dict]:
    """The words that the model reads into one [MASK] of each of `count` rows.

    text: `around` tokens on either side of it, itself shown as [?].
    word: the true one.
    filled: the three likeliest.
    """
    model.eval()
    examples = []
    step = max(1, len(rows) // count)
    for i in range(0, len(rows), step):
        row = rows[i]
        ids = row["input_ids"]
        masks = (ids == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        if not masks:  # every chosen token stayed or became another
            continue
        index = masks[len(masks) // 2]
        inputs = {"input_ids": ids[None].to(model.device)}  # (1, L)
        if "token_type_ids" in row:
            inputs["token_type_ids"] = row["token_type_ids"][None].to(model.device)
        logits, *_ = model(**inputs, return_dict=False)
        likeliest = logits[0, index].topk(3).indices.tolist()
        words = [tokenizer.decode([token]) for token in likeliest]
        before = tokenizer.decode(ids[max(0, index - around) : index])
        after = tokenizer.decode(ids[index + 1 : index + 1 + around])
        examples.append(
            {
                "text": f"{before} [?] {after}",
                "word": tokenizer.decode([row["labels"][index]]),
                "filled": ", ".join(words),
            }
        )
    return examples[:count]
