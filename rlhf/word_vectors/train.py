r"""Word vectors by skip-gram and CBOW with negative sampling, through gensim.

Every word w has a vector v_w and, as context, a vector u_w; s is the logistic function. For a word o with k words n_i that
are drawn from P_n, the loss is (Mikolov et al. 2013b, arXiv 1310.4546, equation 4)

  - log s(u_o^T h) - sum_i log s(- u_{n_i}^T h),   P_n(w) proportional to count(w)^{3/4}

- skip-gram: h = v_c, of one word c at most `window` words away from o
- CBOW (Mikolov et al. 2013a, arXiv 1301.3781): h = the mean of v_c over all of these

Subsampling: with f(w) the share of w in the text, a word is passed over with probability
1 - sqrt(sample / f(w)) (equation 5).

Deviations, all of gensim, which follows the paper's program word2vec:
- A word is kept with probability sqrt(sample / f) + sample / f.
- The window of each word is drawn from 1 to `window`, so that nearer words count more.
- A draw n_i that is o itself is passed over.

A context never crosses the end of a row of text. gensim passes over what follows the 10,000th word of a row, so longer rows
are cut into rows of that length here. Training is deterministic with one worker: the threads of several change the same
vectors in an order that nobody sets.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.errors import UserError
from rlhf.runs.ranges import at_least, more_than
from rlhf.word_vectors.vectors import WordVectors, words_of

ARCHITECTURES = ("skipgram", "cbow")
LONGEST_ROW = 10_000  # words, gensim's own limit
EXAMPLES = 20_000  # held-out examples that are measured after each epoch
NONE = -1  # in a row of context words, behind its last


@dataclass
class VectorSettings:
    """The keys of training, by gensim's names."""

    architecture: str = field(
        default="skipgram",
        metadata={
            "help": "skipgram (gensim: sg=1), for few or rare words; or cbow, which is faster."
        },
    )
    vector_size: int = field(
        default=100,
        metadata={"help": "Numbers of a vector: the hidden_size of a model that starts from them."},
    )
    window: int = field(default=5, metadata={"help": "Most words between a word and its context."})
    min_count: int = field(
        default=5, metadata={"help": "Words that occur less often have no vector."}
    )
    sample: float = field(
        default=1e-3,
        metadata={
            "help": "Share of the text from which on a word is subsampled; 1e-5 for a billion words, 0: none."
        },
    )
    negative: int = field(
        default=5,
        metadata={"help": "Words drawn against each word: 5 to 20, 2 to 5 for large text."},
    )
    ns_exponent: float = field(
        default=0.75, metadata={"help": "Power of the counts by which these are drawn."}
    )
    alpha: float = field(
        default=0.025, metadata={"help": "Learning rate at the start; it falls linearly."}
    )
    epochs: int = field(default=5, metadata={"help": "Passes over the text."})
    workers: int = field(
        default=1,
        metadata={"help": "Threads. With more than one, no two runs give the same vectors."},
    )
    lowercase: bool = field(default=True, metadata={"help": "Lowercase the text."})

    RANGES: ClassVar[dict] = {
        "vector_size": at_least(1),
        "window": at_least(1),
        "min_count": at_least(1),
        "sample": at_least(0),
        "negative": at_least(1),
        "epochs": at_least(1),
        "workers": at_least(1),
        "alpha": more_than(0),
    }


def import_gensim():
    """The package, which is optional. UserError where it is missing."""
    try:
        import gensim.models
    except ImportError as error:
        raise UserError(
            'word vectors are trained by gensim, which is not installed: pip install "rlhf[ladder]"'
        ) from error
    return gensim


def cut_rows(texts: Iterable[str], *, lowercase: bool) -> list[list[str]]:
    """The words of each text, in rows of at most LONGEST_ROW. Texts without a word give no row."""
    known: dict[str, str] = {}  # one string in memory per word
    rows = []
    for text in texts:
        # Without this, a large text would have an object per occurrence.
        words = [known.setdefault(word, word) for word in words_of(text, lowercase=lowercase)]
        for start in range(0, len(words), LONGEST_ROW):
            rows.append(words[start : start + LONGEST_ROW])
    return rows


def new_vectors(rows: Sequence[Sequence[str]], settings: VectorSettings, *, seed: int):
    """gensim's Word2Vec with the vocabulary of the rows, before training: v is random and u is 0.

    UserError where the rows hold no words, or min_count leaves fewer than two.
    """
    gensim = import_gensim()
    model = gensim.models.Word2Vec(
        sg=int(settings.architecture == "skipgram"),
        vector_size=settings.vector_size,
        window=settings.window,
        min_count=settings.min_count,
        sample=settings.sample,
        negative=settings.negative,
        ns_exponent=settings.ns_exponent,
        alpha=settings.alpha,
        epochs=settings.epochs,
        workers=settings.workers,
        seed=seed,
    )
    # gensim's own errors speak of its functions, and not of keys.
    if not rows:
        raise UserError("the text has no words: give other rows")
    check_min_count(Counter(chain.from_iterable(rows)), settings.min_count)
    model.build_vocab(rows)
    return model


def check_min_count(counts: dict[str, int], min_count: int) -> None:
    """UserError where fewer than two words occur so often. counts: word -> its number of occurrences."""
    kept = [word for word, count in counts.items() if count >= min_count]
    if len(kept) > 1:
        return
    # the second largest count leaves two words
    most = sorted(counts.values())[-2:]
    if len(most) < 2:
        raise UserError("the text has only one word, many times: give other rows")
    raise UserError(
        f"min_count={min_count}: only {len(kept)} of the {len(counts)} words of this text occur so often, and vectors need "
        f"two; set min_count to at most {most[0]}, or give more text"
    )


def as_vectors(model, *, lowercase: bool) -> WordVectors:
    """A copy of what gensim has learned so far."""
    # gensim has sorted them by their counts
    words = list(model.wv.index_to_key)
    counts = [model.wv.get_vecattr(word, "count") for word in words]
    return WordVectors(
        words,
        # clone: gensim trains its arrays in place
        torch.from_numpy(model.wv.vectors).clone(),
        torch.from_numpy(model.syn1neg).clone(),
        torch.tensor(counts),
        lowercase,
    )


def train(model, rows: Sequence[Sequence[str]], after_epoch: Callable[[int], None]) -> None:
    """Train gensim's model on the rows. after_epoch(number) is called before the training with 0, and after each epoch."""
    gensim = import_gensim()

    # A class within: without gensim there is no base to inherit from.
    class Report(gensim.models.callbacks.CallbackAny2Vec):
        def __init__(self):
            self.epochs = 0

        def on_train_begin(self, model):
            after_epoch(0)

        def on_epoch_end(self, model):
            self.epochs += 1
            after_epoch(self.epochs)

    model.train(
        rows,
        total_examples=len(rows),
        total_words=sum(map(len, rows)),
        epochs=model.epochs,
        callbacks=[Report()],
    )


# ---- the loss on held-out text -----------------------------------------------------------------------------------


@dataclass
class Examples:
    """N held-out examples of the loss.

    contexts: (N, C) rows of context words, NONE behind the last. targets: (N,) of the words o. negatives: (N, k).
    """

    contexts: Tensor
    targets: Tensor
    negatives: Tensor


def held_out_examples(
    rows: Sequence[Sequence[str]], vectors: WordVectors, settings: VectorSettings, *, seed: int
) -> Examples | None:
    """At most EXAMPLES examples, drawn by the seed; None where no word has a context.

    Words without a vector are passed over, as in training. The window is the whole one, and nothing is subsampled.
    """
    known = []
    for row in rows:
        known.append([vectors.index[word] for word in row if word in vectors.index])
    # (row, position) of each word that has a neighbour
    places = []
    for number, row in enumerate(known):
        if len(row) > 1:
            places += [(number, i) for i in range(len(row))]
    if not places:
        return None
    draw = random.Random(seed)
    if len(places) > EXAMPLES:
        places = draw.sample(places, EXAMPLES)
    contexts, targets = [], []
    for number, i in places:
        row = known[number]
        around = row[max(0, i - settings.window) : i] + row[i + 1 : i + 1 + settings.window]
        if settings.architecture == "skipgram":
            # one pair per word, so that both architectures have as many examples
            around = [draw.choice(around)]
        # to one width, so that all examples are one tensor
        contexts.append(around + [NONE] * (2 * settings.window - len(around)))
        targets.append(row[i])
    weights = vectors.counts.double() ** settings.ns_exponent
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(
        weights, len(targets) * settings.negative, replacement=True, generator=generator
    )
    negatives = drawn.view(len(targets), settings.negative)
    return Examples(torch.tensor(contexts), torch.tensor(targets), negatives)


def mean_of_contexts(vectors: Tensor, contexts: Tensor) -> Tensor:
    """h (N, D): the mean of the vectors (V, D) of each row of contexts (N, C), which holds at least one word."""
    counts = contexts != NONE
    summed = (vectors[contexts.clamp(min=0)] * counts.unsqueeze(-1)).sum(1)
    return summed / counts.sum(1, keepdim=True)


def negative_sampling_loss(
    hidden: Tensor, outputs: Tensor, targets: Tensor, negatives: Tensor
) -> Tensor:
    """The loss (N,) of the file's docstring in nats.

    hidden: h (N, D). outputs: u (V, D). targets: (N,). negatives: (N, k); one that is the target does not count.
    """
    # The sign of the product tells a real context from a drawn one.
    right = (hidden * outputs[targets]).sum(-1)  # (N,)
    wrong = torch.einsum("nd,nkd->nk", hidden, outputs[negatives])
    counts = negatives != targets.unsqueeze(1)
    return -logsigmoid(right) - (logsigmoid(-wrong) * counts).sum(1)


def held_out_loss(model, examples: Examples) -> float:
    """The mean loss of the examples, in nats per word, with what gensim has learned so far."""
    # views of gensim's arrays, without a copy
    vectors, outputs = torch.from_numpy(model.wv.vectors), torch.from_numpy(model.syn1neg)
    hidden = mean_of_contexts(vectors, examples.contexts)
    losses = negative_sampling_loss(hidden, outputs, examples.targets, examples.negatives)
    return losses.mean().item()
