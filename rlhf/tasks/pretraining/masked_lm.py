"""Training on masked words: the vocabulary is computed only where a word is masked, and judged without shipping logits.

The projection to the vocabulary is most of the work of a small encoder, and 85 % of the places have nothing to predict. Two
hooks leave the model's own forward as it is: one takes `labels` down to the masked places, the other the hidden states that
enter the head. Loss and gradients are those of the plain forward; the logits come as (N, V) in place of (B, L, V).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rlhf.tasks.pretraining.encode import IGNORED, DrawnRows


class MaskedPlacesOnly:
    """Install on a model with a masked language model head; a forward without labels stays the plain one."""

    def __init__(self, model: nn.Module):
        self.places: Tensor | None = None  # (B, L) bool
        head = (
            getattr(getattr(model, "cls", None), "predictions", None)
            or model.get_output_embeddings()
        )
        model.register_forward_pre_hook(self._narrow_labels, with_kwargs=True)
        head.register_forward_pre_hook(self._narrow_states)

    def _narrow_labels(self, module, args, kwargs):
        labels = kwargs.get("labels")
        self.places = None if labels is None else labels != IGNORED
        return args, kwargs if labels is None else kwargs | {"labels": labels[self.places]}

    def _narrow_states(self, module, args):
        return args if self.places is None else (args[0][self.places], *args[1:])


def row_sums(logits, labels) -> Tensor:
    """What each row adds to the metrics: (B, 3) sum of losses, hits, masked places; with next sentences (B, 4), hit last.

    logits: (N, V) of the masked places, or a tuple of these and (B, 2); labels: (B, L), or a tuple of these and (B,).
    """
    (words, *next_logits), (labels, *next_labels) = as_tuple(logits), as_tuple(labels)
    places = labels != IGNORED
    row, truth = places.nonzero()[:, 0], labels[places]
    losses = cross_entropy(words.float(), truth, reduction="none")
    hits = words.argmax(-1) == truth
    each = torch.stack([losses, hits.float(), torch.ones_like(losses)], dim=1)  # (N, 3)
    sums = each.new_zeros(len(labels), 3).index_add_(0, row, each)
    if next_logits:
        sums = torch.cat(
            [sums, (next_logits[0].argmax(-1) == next_labels[0]).float()[:, None]], dim=1
        )
    return sums


def as_tuple(value) -> tuple:
    return value if isinstance(value, tuple | list) else (value,)


def masked_metrics(output) -> dict[str, float]:
    """Over all masked places: masked_loss (mean, nats), perplexity = exp of it, masked_accuracy; nsp_accuracy of pairs."""
    loss, hits, places, *nsp = output.predictions.astype("float64").sum(0).tolist()
    metrics = {
        "masked_loss": loss / places,
        "perplexity": math.exp(min(loss / places, 50)),
        "masked_accuracy": hits / places,
    }
    return metrics | ({"nsp_accuracy": nsp[0] / len(output.predictions)} if nsp else {})


@torch.inference_mode()
def filled_in(model, tokenizer, rows: DrawnRows, *, count: int, around: int = 10) -> list[dict]:
    """What the model reads into one [MASK] of each of `count` rows.

    text: `around` tokens on either side of it, itself shown as [?]; word: the true one; filled: the three likeliest.
    """
    model.eval()
    found = []
    for place in range(0, len(rows), max(1, len(rows) // count)):
        inputs = {name: value[None].to(model.device) for name, value in rows[place].items()}
        ids, labels = inputs.pop("input_ids"), inputs.pop("labels")[0]
        inputs.pop("next_sentence_label", None)
        masks = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        if not masks:  # every chosen token kept itself or became another
            continue
        spot = masks[len(masks) // 2]
        logits, *_ = model(input_ids=ids, **inputs, return_dict=False)
        before = tokenizer.decode(ids[0, max(0, spot - around) : spot])
        after = tokenizer.decode(ids[0, spot + 1 : spot + 1 + around])
        likeliest = [
            tokenizer.decode([token]) for token in logits[0, spot].topk(3).indices.tolist()
        ]
        word = tokenizer.decode([labels[spot]])
        found.append(
            {"text": f"{before} [?] {after}", "word": word, "filled": ", ".join(likeliest)}
        )
    return found[:count]
