"""Train word vectors on plain text: skip-gram or CBOW with negative sampling (word2vec), through gensim.

    accelerate launch recipes/word_vectors.py --dataset_name text.txt --output_dir runs/vectors
    accelerate launch recipes/word_vectors.py --dataset_name text.txt --vector_size 128 --nearest_to king paris \\
        --analogies questions-words.txt --similarity_pairs wordsim353.tsv --output_dir runs/vectors

Needs pip install "rlhf[ladder]". Time: seconds for 1 MB. Look at: eval_loss of held-out text after each epoch, the table of
nearest words, plots/words.png, and the accuracy and correlation of your own questions, next to how many had unknown words.
`embeddings_from` of pretrain.py and classification.py starts a model's embeddings from the run folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from transformers import TrainingArguments

from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.runs.keys import PUSH, Unused
from rlhf.runs.plots import saved_figure
from rlhf.runs.progress import append_jsonl, sample_table
from rlhf.runs.replacement import replacement
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings
from rlhf.word_vectors.questions import (
    Analogy,
    RatedPair,
    analogy_report,
    check_answerable,
    pair_report,
    read_analogies,
    read_pairs,
)
from rlhf.word_vectors.train import (
    ARCHITECTURES,
    Examples,
    VectorSettings,
    as_vectors,
    cut_rows,
    held_out_examples,
    held_out_loss,
    import_gensim,
    new_vectors,
    train,
)
from rlhf.word_vectors.vectors import WordVectors, principal_plane, shown_words, with_neighbours

# of TrainingArguments
READ = ("output_dir", "seed", "use_cpu", "local_rank", *PUSH)
SHOWN = 8  # words with their nearest, where nearest_to names none
NEAREST = 5
LARGEST_TEXT = 5_000_000  # numbers that are also written as text, about 50 MB


@dataclass
class WordVectorSettings(DataSettings, VectorSettings):
    """The text, the training, and the questions that are put to the vectors."""

    nearest_to: list[str] = field(
        default_factory=list,
        metadata={"help": "Words whose nearest are shown. Default: some from frequent to rare."},
    )
    analogies: str | None = field(
        default=None,
        metadata={"help": "File of questions: four words a line, a is to b as c is to d."},
    )
    similarity_pairs: str | None = field(
        default=None,
        metadata={"help": "File of pairs that people rated: word, word and a number a line."},
    )

    UNUSED: ClassVar[tuple] = (
        Unused(
            tuple(f.name for f in fields(TrainingArguments) if f.name not in READ),
            "gensim trains word vectors on the CPU with keys of its own (epochs, alpha, workers); drop it",
        ),
    )


@dataclass
class PreparedVectors:
    """All that is checked before training.

    model: gensim's. rows: the words of the training text. held_out: those of the held-out text.
    examples: of the held-out loss, or None. analogies, pairs: the questions, or [].
    """

    model: object
    rows: list[list[str]]
    held_out: list[list[str]]
    examples: Examples | None
    analogies: list[Analogy]
    pairs: list[RatedPair]


def main(settings: WordVectorSettings, args: TrainingArguments) -> None:
    import_gensim()  # before a folder is made
    with recording("word_vectors", settings, args) as run:
        prepared = prepare(settings, args, run)
        if not run.main:
            return  # one process trains the vectors
        train(prepared.model, prepared.rows, lambda epoch: log_loss(run, prepared, epoch))
        vectors = as_vectors(prepared.model, lowercase=settings.lowercase)
        save(run, vectors)
        measure(run, settings, vectors, prepared)


def prepare(settings: WordVectorSettings, args: TrainingArguments, run: Run) -> PreparedVectors:
    """Read and check all that the run needs, without a step of training."""
    if settings.architecture not in ARCHITECTURES:
        raise UserError(f"architecture={settings.architecture!r}: use {' or '.join(ARCHITECTURES)}")
    # short files, before the text is read
    analogies = read_analogies(settings.analogies) if settings.analogies else []
    pairs = read_pairs(settings.similarity_pairs) if settings.similarity_pairs else []
    splits = load_splits(settings, ("text",), seed=args.seed)
    run.data(splits)
    rows = cut_rows((row["text"] for row in splits.train), lowercase=settings.lowercase)
    held_out = cut_rows((row["text"] for row in splits.eval), lowercase=settings.lowercase)
    model = new_vectors(rows, settings, seed=args.seed)
    untrained = as_vectors(model, lowercase=settings.lowercase)
    # before the training: the vocabulary is known now
    for word in settings.nearest_to:
        check_known(untrained, word)
    if analogies:
        check_answerable(untrained, analogies, "analogies")
    if pairs:
        check_answerable(untrained, pairs, "similarity_pairs")
    if settings.workers > 1:
        run.say(f"workers={settings.workers}: the same seed gives other vectors each time")
    describe(run, untrained, rows, splits)
    examples = held_out_examples(held_out, untrained, settings, seed=args.seed)
    return PreparedVectors(model, rows, held_out, examples, analogies, pairs)


def check_known(vectors: WordVectors, word: str) -> None:
    """UserError where a word that is to be shown has no vector."""
    if vectors.find(word) is None:
        raise UserError(
            f"nearest_to: {word!r} has no vector, because it occurs less than min_count times in the text; name another "
            "word, or lower min_count"
        )


def describe(run: Run, vectors: WordVectors, rows: Sequence[Sequence[str]], splits) -> None:
    """Say and record how many words of the text have a vector."""
    total = sum(map(len, rows))
    kept = int(vectors.counts.sum())
    run.say(
        f"{len(splits.train)} texts with {total} words; {len(vectors)} different words have a vector, which are "
        f"{kept / total:.1%} of the text"
    )
    run.metrics(
        {
            "vocabulary": len(vectors),
            "train_words": total,
            "train_words_known": kept / total,
            "train_rows": len(splits.train),
            "eval_rows": len(splits.eval),
        }
    )


# ---- training and after ------------------------------------------------------------------------------------------


def log_loss(run: Run, prepared: PreparedVectors, epoch: int) -> None:
    """Measure the held-out loss after an epoch."""
    if prepared.examples is None:
        return
    loss = held_out_loss(prepared.model, prepared.examples)
    append_jsonl(run.folder / "metrics.jsonl", {"step": epoch, "epoch": epoch, "eval_loss": loss})
    # epoch 0 is before the training, when all contexts are equally likely
    run.metrics({"eval_loss_before" if epoch == 0 else "eval_loss": loss})
    run.say(f"epoch {epoch}: eval_loss {loss:.4f}")


def save(run: Run, vectors: WordVectors) -> None:
    """Write the vectors, and as text where that is small enough."""
    with replacement(run.folder) as folder:
        vectors.save(folder)
        # Text takes three times the room, and many tools read it.
        if vectors.vectors.numel() <= LARGEST_TEXT:
            vectors.save_text(folder)


def measure(
    run: Run, settings: WordVectorSettings, vectors: WordVectors, prepared: PreparedVectors
) -> None:
    """Put the questions to the vectors, and write the results, the table of nearest words and the picture."""
    # words of other text that have a vector
    total = sum(map(len, prepared.held_out))
    if total:
        known = sum(word in vectors.index for row in prepared.held_out for word in row)
        run.metrics({"eval_words_known": known / total})
    report = {}
    if prepared.analogies:
        report["analogies"] = analogy_report(vectors, prepared.analogies)
    if prepared.pairs:
        report["similarity_pairs"] = pair_report(vectors, prepared.pairs)
    if report:
        run.write("questions.json", report)
        run.metrics(report)
        say_questions(run, report)
    # the same words in the table and in the picture
    words = settings.nearest_to or shown_words(vectors, SHOWN)
    show_nearest(run, vectors, words)
    draw(run, vectors, words)


def say_questions(run: Run, report: dict) -> None:
    for name, metric in (("analogies", "accuracy"), ("similarity_pairs", "spearman")):
        if name not in report:
            continue
        part = report[name]
        known = f"of {part['n']} questions; {part['unknown']} more have a word without a vector"
        # below four pairs
        if metric not in part:
            run.say(f"{name}: no {metric}, for there are too few {known}")
            continue
        interval = f"{part[f'{metric}_low']:.3f} to {part[f'{metric}_high']:.3f}"
        run.say(f"{name}: {metric} {part[metric]:.3f} ({interval}) {known}")


def show_nearest(run: Run, vectors: WordVectors, words: Sequence[str]) -> None:
    """The nearest of each word on the terminal and in samples.jsonl."""
    samples = []
    for word in words:
        near = vectors.nearest(vectors.find(word), NEAREST)
        shown = ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)
        samples.append({"word": vectors.key(word), "nearest": shown})
    run.samples(samples)
    run.say("Nearest words, with cosines:")
    run.say(sample_table(samples, columns=["word", "nearest"], limit=len(samples)))


def draw(run: Run, vectors: WordVectors, words: Sequence[str]) -> None:
    """plots/words.png: the words and their nearest in the plane of most variance."""
    shown = with_neighbours(vectors, words, NEAREST)
    rows = [vectors.index[word] for word in shown]
    # Directions alone: a frequent word has a long vector.
    points, shares = principal_plane(vectors.units()[rows])
    path = run.folder / "plots" / "words.png"
    path.parent.mkdir(exist_ok=True)
    with saved_figure(path, figsize=(8, 6)) as (_, axis):
        axis.scatter(points[:, 0], points[:, 1], s=8)
        for word, point in zip(shown, points.tolist(), strict=True):
            axis.annotate(word, point, fontsize=8, xytext=(2, 2), textcoords="offset points")
        for set_label, share in zip((axis.set_xlabel, axis.set_ylabel), shares, strict=False):
            set_label(f"{share:.0%} of the variance")


if __name__ == "__main__":
    start(main, __doc__)
